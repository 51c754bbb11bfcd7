"""Whether a judge or features were made for the model: those of the embedded world know nothing but its drawings.

A photo model's FID against its drawings, or an IP by its judge, would be a number that means nothing, and worse than none.
"""

from __future__ import annotations

from pathlib import Path

from safety.embedded import EMBEDDED_MODEL, EMBEDDED_MODEL_FOLDER, EMBEDDED_PACKAGE
from safety.errors import ConfigError
from safety.families.identity import model_hash
from safety.families.model_config import ModelConfig

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def require_made_for(model: ModelConfig, implementation: object, name: str, field: str, fix: str) -> None:
    """Raise ConfigError when an implementation is the embedded world's own and the model is another.

    Args:
        model: The run's model.
        implementation: What a registry holds for a judge or for features.
        name: Its name in the config.
        field: The setting that names it.
        fix: What to set instead.
    """
    module = str(getattr(implementation, "__module__", ""))
    if f"{module}.".startswith(f"{EMBEDDED_PACKAGE}.") and not is_embedded_model(model):
        raise ConfigError(
            f"{name!r} was made for the embedded model's drawings, and its figures would mean nothing for {model.path}",
            field=field,
            fix=fix,
        )


def is_embedded_model(model: ModelConfig) -> bool:
    """Return whether a model is the embedded one, by its name or, for a copy elsewhere, by its content."""
    if model.vae is not None:
        return False
    if model.path == EMBEDDED_MODEL:
        return True
    folder = Path(model.path)
    own, other = EMBEDDED_MODEL_FOLDER / WEIGHTS, folder / WEIGHTS
    # Hashing a large model takes a while; no other model's denoiser has this size but by chance.
    if not other.is_file() or other.stat().st_size != own.stat().st_size:
        return False
    return model_hash(folder) == model_hash(EMBEDDED_MODEL_FOLDER)
