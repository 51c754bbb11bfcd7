"""LoRA as a value: adapter weights apart from any model, their files, and how they act on a model."""

from safety.lora.weights import LoraLayer, LoraWeights

__all__ = ["LoraLayer", "LoraWeights"]
