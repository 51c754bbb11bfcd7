"""Loads releases from the store into an engine."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from cluster.store.artifacts import ArtifactStore
from cluster.store.manifest import MANIFEST, Manifest
from cluster.store.pointer import read_pointer
from cluster.store.signatures import TrustedKeys
from safety.errors import ArtifactFormatError, ConfigError
from safety.families import ModelFamily, load_model
from safety.families.family import model_folder
from safety.lora.fuse import fuse
from safety.release import load_release
from safety.rendering import initial_noise
from serve.config import ServeConfig
from serve.endpoint_config import BASE
from serve.engine import Engine, ServedModel
from serve.output_judge import load_output_judge
from serve.schema import ModelInfo

KIND = "release"
TRIAL_PROMPT = "a picture"


def load_engine(config: ServeConfig) -> Engine:
    """Fetch the releases that the pointers name, verify them, fuse each into a base model and return the engine.

    Each name has a whole model in memory, and a release that replaces another is held beside it for a while.

    Raises:
        ConfigError: There is no such release, or no such judge.
        ArtifactFormatError: A release is malformed, is for another base model, or renders an image that is not finite.
        CorruptArtifact: The store's copy does not match its manifest.
        UntrustedArtifact: Trusted keys are configured and none has signed a release.
    """
    if config.serve.threads is not None:
        torch.set_num_threads(config.serve.threads)
    models = {name: load_served(config, name, find_release(config, name)) for name in config.serve.pointers}
    if config.serve.serve_base:
        family = load_model(config.model)
        models[BASE] = ServedModel(ModelInfo(id=BASE, created=0, size=_native_size(family), aligned=False), family)
    return Engine(models, config.serve, load_output_judge(config))


def find_release(config: ServeConfig, pointer: str) -> str:
    """Return the id of the release that a pointer names; raise ConfigError when there is none."""
    release = read_pointer(ArtifactStore(config.store), pointer)
    if release is None:
        raise ConfigError(
            f"the store has no release {pointer!r}",
            field="serve.pointer" if pointer == config.serve.pointer else "serve.models",
            fix="publish one with python -m jobs.release, or name another pointer",
        )
    return release


def load_served(config: ServeConfig, name: str, release: str) -> ServedModel:
    """Fetch a release, verify it, fuse it into its own base model and render one image.

    Raises:
        ArtifactFormatError: It is malformed, is for another base model, or renders an image that is not finite.
        CorruptArtifact: The store's copy does not match its manifest.
        UntrustedArtifact: Trusted keys are configured and none has signed it.
    """
    keys = config.serve.trusted_keys
    trusted = TrustedKeys.read(keys, "serve.trusted_keys") if keys else None
    with TemporaryDirectory(prefix="safetydpo-release-") as scratch:
        folder = ArtifactStore(config.store).fetch(KIND, release, Path(scratch) / release, trusted)
        # After the release, which may be refused, or not be there yet, at every poll.
        family = load_model(config.model)
        _, weights = load_release(folder, family, model_folder(config.model))
        fuse(family, weights)
        manifest = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    _check_renders(family, config, release)
    created = int(manifest.created.timestamp())
    info = ModelInfo(id=name, created=created, release=release, size=_native_size(family), aligned=True)
    return ServedModel(info, family)


def _check_renders(family: ModelFamily, config: ServeConfig, release: str) -> None:
    """Render one image and check it before rounding, which would hide numbers that are not finite."""
    steps, guidance = config.serve.default_steps, config.serve.default_guidance
    noise = initial_noise(family, 0)
    image = family.sample(family.encode_text([TRIAL_PROMPT]), noise, steps=steps, guidance=guidance)
    if not bool(torch.isfinite(image).all()):
        raise ArtifactFormatError(
            f"{release} renders images that are not finite", field="release", fix="publish another release"
        )


def _native_size(family: ModelFamily) -> str:
    return f"{family.default_size}x{family.default_size}"
