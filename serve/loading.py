"""Brings an engine up from a release in the store."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from cluster.store.artifacts import ArtifactStore
from cluster.store.manifest import MANIFEST, Manifest
from cluster.store.pointer import read_pointer
from safety.errors import ConfigError
from safety.families import ModelFamily, load_model
from safety.families.family import model_folder
from safety.lora.fuse import fuse
from safety.release import load_release
from serve.config import ServeConfig
from serve.engine import Engine, ServedModel
from serve.schema import ModelInfo

BASE = "base"
"""The name of the unaligned model, where it is offered."""


def load_engine(config: ServeConfig) -> Engine:
    """Fetch the release that the pointer names, verify it, fuse it into its base model and return the engine.

    Raises:
        ConfigError: There is no such release.
        ArtifactFormatError: The release is damaged in form or is for another base model.
        CorruptArtifact: The store's copy does not match its manifest.
    """
    if config.serve.pointer == BASE:
        raise ConfigError("'base' is the base model's name", field="serve.pointer", fix="name a release pointer")
    if config.serve.threads is not None:
        torch.set_num_threads(config.serve.threads)
    models = {config.serve.pointer: _load_aligned(config)}
    if config.serve.serve_base:
        family = load_model(config.model)
        models[BASE] = ServedModel(ModelInfo(id=BASE, created=0, size=_native_size(family), aligned=False), family)
    return Engine(models, config.serve)


def find_release(config: ServeConfig) -> str:
    """Return the id of the release that the pointer names; raise ConfigError when there is none."""
    release = read_pointer(ArtifactStore(config.store), config.serve.pointer)
    if release is None:
        raise ConfigError(
            f"the store has no release {config.serve.pointer!r}",
            field="serve.pointer",
            fix="publish one with python -m jobs.release, or name another pointer",
        )
    return release


def _load_aligned(config: ServeConfig) -> ServedModel:
    store, release = ArtifactStore(config.store), find_release(config)
    family = load_model(config.model)
    with TemporaryDirectory(prefix="safetydpo-release-") as scratch:
        folder = store.fetch("release", release, Path(scratch) / release)
        _, weights = load_release(folder, family, model_folder(config.model.path))
        fuse(family, weights)
        manifest = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    info = ModelInfo(
        id=config.serve.pointer,
        created=int(manifest.created.timestamp()),
        release=release,
        size=_native_size(family),
        aligned=True,
    )
    return ServedModel(info, family)


def _native_size(family: ModelFamily) -> str:
    return f"{family.default_size}x{family.default_size}"
