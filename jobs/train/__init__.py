"""The job that trains one LoRA expert per category, on Ray Train and DeepSpeed."""
