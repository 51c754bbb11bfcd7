"""Base-model families: one view of a text-to-image model, whatever its architecture."""

from safety.families.family import Conditioning, ModelConfig, ModelFamily, Parts, families, family_name, load_model

__all__ = ["Conditioning", "ModelConfig", "ModelFamily", "Parts", "families", "family_name", "load_model"]
