"""Every form in which hubs hand models out, for every family, in layouts that stock diffusers writes: each loads the same.

What does not depend on the family is in ``test_model_sources``, single files in ``test_single_file``.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from safety.families import ModelConfig, family_name, load_model
from safety.families.identity import model_identity
from safety.fetchers import Place, fetchers
from tests.safety.families.test_model_sources import ID, as_cache
from tests.support.pico_models import PICO_MODELS

NAMES = [name for name in PICO_MODELS if name not in ("sd3-without-t5", "flux-schnell", "stable-diffusion")]
FORMS = ("hub cache", "fp16 only", "fp16 beside", "shards", ".bin beside", "address")


def as_form(form: str, folder: Path, stock: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return the settings of a model in a form, made of its folder."""
    from huggingface_hub import constants

    made = tmp_path / "made"
    if form == "hub cache":
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        as_cache(folder, tmp_path / "hub")
        return {"path": ID}
    if form == "fp16 only":
        stock.to(torch.float16).save_pretrained(made, variant="fp16")
        return {"path": str(made)}
    if form == "fp16 beside":
        shutil.copytree(folder, made)
        stock.to(torch.float16).save_pretrained(made, variant="fp16")
        return {"path": str(made), "variant": "fp16"}
    if form == "shards":
        stock.save_pretrained(made, max_shard_size="40KB")
        assert list(made.glob("*/*-of-*.safetensors"))
        return {"path": str(made)}
    shutil.copytree(folder, made)
    if form == ".bin beside":
        for part in ("vae/diffusion_pytorch_model.bin", "text_encoder/pytorch_model.bin"):
            (made / part).write_bytes(b"never opened")
        return {"path": str(made)}

    def fetch(_: Place, choose: Callable[[Any], list[str]]) -> Path:
        copy = tmp_path / "copy"
        for name in choose([path.relative_to(made).as_posix() for path in made.rglob("*") if path.is_file()]):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(made / name, copy / name)
        return copy

    monkeypatch.setitem(fetchers, "mem", fetch)
    return {"path": f"mem://bucket/{tmp_path.name}"}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NAMES)
def test_a_model_is_the_same_in_every_form(
    pico_model_dir: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, form: str
) -> None:
    folder = pico_model_dir(name)
    plain = ModelConfig(path=str(folder))
    stock = PICO_MODELS[name].stock(folder)
    settings = ModelConfig(cache=tmp_path / "cache", **as_form(form, folder, stock, tmp_path, monkeypatch))
    assert family_name(settings) == PICO_MODELS[name].family
    found = load_model(settings, "denoiser").denoiser.state_dict()
    expected = load_model(plain, "denoiser").denoiser.state_dict()
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        stored = tensor.half().float() if "fp16" in form else tensor
        assert torch.equal(found[key], stored), key
    same = form not in ("fp16 only", "fp16 beside", "shards")
    assert (model_identity(settings) == model_identity(plain)) is same


def test_half_weights_of_a_variant_are_half_on_the_disk(pico_model_dir: Callable[[str], Path], tmp_path: Path) -> None:
    stock = PICO_MODELS["sdxl"].stock(pico_model_dir("sdxl"))
    stock.to(torch.float16).save_pretrained(tmp_path, variant="fp16")
    [file] = (tmp_path / "unet").glob("*.fp16.safetensors")
    assert {tensor.dtype for tensor in load_file(file).values()} == {torch.float16}
