"""Base-model families: what the rest of the science needs to know of a text-to-image model."""

from safety.families.family import Conditioning, ModelConfig, ModelFamily, families, load_model
from safety.families.stable_diffusion import StableDiffusion

__all__ = ["Conditioning", "ModelConfig", "ModelFamily", "StableDiffusion", "families", "load_model"]
