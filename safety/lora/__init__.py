"""LoRA experts: attaching, training parameters, files, fusing."""

from safety.lora.config import LoraConfig
from safety.lora.weights import LoraLayer, LoraWeights

__all__ = ["LoraConfig", "LoraLayer", "LoraWeights"]
