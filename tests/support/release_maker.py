"""Publishes adapters as releases, as ``jobs.release`` does, without a run before it."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from cluster.store.artifacts import ArtifactStore
from cluster.store.pointer import read_pointer, swap_pointer
from safety.lora.files import save_lora
from safety.lora.weights import LoraLayer, LoraWeights
from safety.release import BaseModelIdentity, ReleaseInfo, file_hash, model_hash


def publish(store: ArtifactStore, release: str, weights: LoraWeights, model_dir: Path, base_sha256: str = "") -> str:
    """Put an adapter into the store as a release; ``base_sha256`` names another base than the model's."""
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        path = save_lora(weights, folder, metadata={})
        info = ReleaseInfo(
            name="tiny",
            base=BaseModelIdentity(id="tiny", family="stable-diffusion", sha256=base_sha256 or model_hash(model_dir)),
            adapter_sha256=file_hash(path),
            judge=None,
            provenance={},
        )
        (folder / "release.json").write_text(info.model_dump_json())
        store.put("release", release, folder, config={}, seed=0)
    return release


def point(store: ArtifactStore, pointer: str, release: str) -> None:
    """Move a pointer to a release, whatever it named."""
    swap_pointer(store, pointer, read_pointer(store, pointer), release)


def scaled(weights: LoraWeights, factor: float) -> LoraWeights:
    """Return an adapter that changes the base that many times as much."""
    return LoraWeights({name: LoraLayer(layer.down, factor * layer.up) for name, layer in weights.items()})
