"""Training of LoRA experts, one for each category of harm."""

from safety.experts.config import ExpertConfig

__all__ = ["ExpertConfig"]
