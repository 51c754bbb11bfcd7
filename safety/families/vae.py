"""Another VAE than a model's own: as a folder of it, a whole model's, or a single file; its latents must be of the same kind."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safety.errors import ConfigError
from safety.families.model_config import ModelConfig
from safety.families.unpacking import unpack_vae
from safety.families.weight_files import INDEX_FILE, broken, read_json, require_weights

PART, CLASS = "vae", "AutoencoderKL"
SAME = {
    "latent_channels": 4,
    "scaling_factor": 0.18215,
    "shift_factor": None,
}
"""Settings that say of which kind latents are, with diffusers' values where a file leaves them out."""


def find_vae(place: Path, model: Path, config: ModelConfig) -> Path:
    """Return the folder of another VAE.

    Args:
        place: What ``model.vae`` stands for on this machine.
        model: The model's diffusers folder.
        config: The model's settings, for the cache.

    Raises:
        ConfigError: There is no VAE, or its latents are of another kind than the model's.
        ArtifactFormatError: One of its files is damaged.
    """
    own = model / PART
    if place.is_file():
        folder = unpack_vae(place, own, config)
    else:
        folder = place / PART if (place / INDEX_FILE).is_file() else place
    if not (folder / "config.json").is_file():
        raise broken(folder, "it is no VAE: it holds no config.json", "name the folder of a VAE, or of a whole model")
    settings = read_json(folder / "config.json")
    require_weights(folder)
    _require_same(settings, read_json(own / "config.json"), folder)
    return folder


def _require_same(found: Mapping[str, Any], own: Mapping[str, Any], folder: Path) -> None:
    kind = found.get("_class_name", CLASS)
    if kind != own.get("_class_name", CLASS):
        raise _misfit(f"{folder} is a {kind}, and the model's own VAE a {own.get('_class_name', CLASS)}")
    for name, default in SAME.items():
        values = [settings.get(name, default) for settings in (found, own)]
        if values[0] != values[1]:
            raise _misfit(f"{folder} has {name} {values[0]}, and the model's own VAE {values[1]}")
    scales = [2 ** (len(settings.get("block_out_channels", (0,))) - 1) for settings in (found, own)]
    if scales[0] != scales[1]:
        raise _misfit(f"{folder} makes one latent of {scales[0]} pixels, and the model's own VAE of {scales[1]}")


def _misfit(what: str) -> ConfigError:
    return ConfigError(
        f"{what}: the denoiser was trained on other latents",
        field="model.vae",
        fix="name a VAE that was made for this kind of model",
    )
