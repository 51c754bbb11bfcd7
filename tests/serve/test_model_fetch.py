"""A model on a real S3 server, as jobs and endpoints load it: by its address alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import jobs
from cluster.store.artifacts import ArtifactStore
from safety.families import ModelConfig, family_name, load_model
from safety.families.identity import model_identity
from safety.fetchers import fetchers
from tests.support.original_layout import save_original

pytestmark = pytest.mark.slow


def upload(store: ArtifactStore, folder: Path, prefix: str) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            store.upload(f"{prefix}/{path.relative_to(folder).as_posix()}", str(path))


def test_a_folder_and_a_single_file_at_an_address_are_the_model(
    s3_store: ArtifactStore, tiny_model_dir: Path, tmp_path: Path
) -> None:
    from diffusers import StableDiffusionPipeline

    assert jobs.__name__ == "jobs"  # its import is what enters the fetcher in a worker
    assert "s3" in fetchers
    stock = StableDiffusionPipeline.from_pretrained(tiny_model_dir, safety_checker=None)
    (tmp_path / "up").mkdir()
    save_original(stock, "1", tmp_path / "up" / "model.safetensors")
    upload(s3_store, tiny_model_dir, "models/tiny")
    upload(s3_store, tmp_path / "up", "files")
    s3_store.write("models/tiny/unet/diffusion_pytorch_model.bin", b"never fetched")
    store = s3_store.config
    address = f"s3://{store.bucket}/{store.full_key('models/tiny')}"
    cache, place = tmp_path / "cache", {"endpoint": store.endpoint, "region": store.region}
    settings = ModelConfig(path=address, cache=cache, **place)
    expected = load_model(ModelConfig(path=str(tiny_model_dir)))
    assert family_name(settings) == "stable-diffusion"
    assert not list(cache.rglob("*.safetensors")), "its class is known by its index alone"
    assert model_identity(settings) == model_identity(ModelConfig(path=str(tiny_model_dir)))
    file = f"s3://{store.bucket}/{store.full_key('files/model.safetensors')}"
    single = ModelConfig(path=file, cache=cache, settings=str(tiny_model_dir), vae=address, **place)
    for config in (settings, single):
        pairs = zip(load_model(config).denoiser.parameters(), expected.denoiser.parameters(), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)
    assert not list(cache.rglob("*.bin"))
