"""Training of LoRA experts, one per category of harm."""

from safety.experts.config import ExpertConfig

__all__ = ["ExpertConfig"]
