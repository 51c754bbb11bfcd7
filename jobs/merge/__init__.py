"""The job that merges the experts into one LoRA and consolidates it, on Ray Tune and Ray Train."""
