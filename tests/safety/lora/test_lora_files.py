"""LoRA files, held against stock diffusers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from safety.errors import ArtifactFormatError
from safety.families import ModelFamily
from safety.lora.files import OWN_METADATA, check_fits, load_lora, save_lora
from safety.lora.fuse import fused
from safety.lora.weights import LoraLayer, LoraWeights


def same(one: LoraWeights, other: LoraWeights) -> bool:
    return list(one) == list(other) and all(
        torch.equal(one[n].down, other[n].down) and torch.equal(one[n].up, other[n].up) for n in one
    )


def stock_image(folder: Path, adapter: Path | None) -> torch.Tensor:
    pipe = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    if adapter is not None:
        pipe.load_lora_weights(adapter)
    draw = torch.Generator().manual_seed(5)
    image: torch.Tensor = pipe("a knife", num_inference_steps=3, output_type="pt", generator=draw).images
    return image


@pytest.mark.parametrize("ranks", [(3,), (1, 4, 2)])
def test_stock_diffusers_draws_what_the_fused_model_draws(
    model: ModelFamily,
    make_weights: Callable[..., LoraWeights],
    tiny_model_dir: Path,
    tmp_path: Path,
    ranks: tuple[int, ...],
) -> None:
    weights = make_weights(ranks)
    save_lora(weights, tmp_path, metadata={"category": "hate"})
    expected = stock_image(tiny_model_dir, tmp_path)
    noise = torch.randn((1, 4, 4, 4), generator=torch.Generator().manual_seed(5))
    with fused(model, load_lora(tmp_path)):
        got = model.sample(model.encode_text(["a knife"]), noise, steps=3, guidance=7.5)
    assert torch.allclose((got + 1) / 2, expected, atol=1e-4)
    assert not torch.allclose(stock_image(tiny_model_dir, None), expected, atol=1e-2)


def test_reading_gives_what_was_written(make_weights: Callable[..., LoraWeights], tmp_path: Path) -> None:
    weights = make_weights((2, 5))
    path = save_lora(weights, tmp_path, metadata={"category": "hate", "steps": 3})
    assert same(load_lora(tmp_path), weights)
    assert same(load_lora(path), weights)
    with safe_open(path, "pt") as handle:
        assert json.loads(handle.metadata()[OWN_METADATA]) == {"category": "hate", "steps": 3}


def test_equal_adapters_give_equal_bytes_in_every_process(
    make_weights: Callable[..., LoraWeights], tmp_path: Path
) -> None:
    path = save_lora(make_weights(), tmp_path / "a", metadata={"b": 1, "a": 2})
    program = (
        "import sys; from pathlib import Path; from safety.lora.files import *; p = Path(sys.argv[1]); "
        "save_lora(load_lora(p), p.parent / 'b', metadata={'a': 2, 'b': 1})"
    )
    subprocess.run([sys.executable, "-c", program, str(path.parent)], check=True)
    assert (tmp_path / "b" / path.name).read_bytes() == path.read_bytes()


def test_a_file_of_stock_diffusers_is_read_with_its_scale(
    model: ModelFamily, make_weights: Callable[..., LoraWeights], tmp_path: Path
) -> None:
    from peft import LoraConfig

    weights = make_weights((4,))
    state = {f"{n}.lora_A.weight": layer.down for n, layer in weights.items()}
    state |= {f"{n}.lora_B.weight": layer.up for n, layer in weights.items()}
    settings = LoraConfig(r=4, lora_alpha=10, target_modules=list(weights)).to_dict()
    StableDiffusionPipeline.save_lora_weights(tmp_path, unet_lora_layers=state, unet_lora_adapter_metadata=settings)
    name = next(iter(weights))
    assert torch.allclose(load_lora(tmp_path)[name].delta(), 2.5 * weights[name].delta(), atol=1e-5)


def test_pickled_files_are_never_opened(tmp_path: Path) -> None:
    for suffix in (".bin", ".pt", ".ckpt", ".pth"):
        path = tmp_path / f"pytorch_lora_weights{suffix}"
        torch.save({"unet.x.lora_A.weight": torch.zeros(1, 1)}, path)
        with pytest.raises(ArtifactFormatError, match="only safetensors"):
            load_lora(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(
    make_weights: Callable[..., LoraWeights], tmp_path: Path, value: float
) -> None:
    weights = make_weights()
    path = save_lora(weights, tmp_path, metadata={})
    tensors = load_file(path)
    key = next(iter(tensors))
    tensors[key][0, 0] = value
    save_file(tensors, path)
    with pytest.raises(ArtifactFormatError, match="not finite"):
        load_lora(path)
    spoilt = {n: LoraLayer(layer.down * value, layer.up) for n, layer in weights.items()}
    with pytest.raises(ArtifactFormatError, match="not finite"):
        save_lora(LoraWeights(spoilt), tmp_path, metadata={})


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"unet.a.lora_A.weight": torch.zeros(2, 3)}, "a has no up matrix"),
        ({"unet.a.lora_A.weight": torch.zeros(2, 3), "unet.a.lora_B.weight": torch.zeros(3, 1)}, "do not fit"),
        ({"text_encoder.a.lora_A.weight": torch.zeros(2, 3)}, "does not belong to a denoiser"),
        ({"unet.a.lokr_w1": torch.zeros(2, 3)}, "not the name of a LoRA tensor"),
        ({}, "no tensor"),
    ],
)
def test_other_contents_are_refused(tmp_path: Path, tensors: dict[str, torch.Tensor], message: str) -> None:
    save_file(tensors, tmp_path / "pytorch_lora_weights.safetensors")
    with pytest.raises(ArtifactFormatError, match=message):
        load_lora(tmp_path)


def test_broken_and_missing_files_are_refused(make_weights: Callable[..., LoraWeights], tmp_path: Path) -> None:
    with pytest.raises(ArtifactFormatError, match="no such file"):
        load_lora(tmp_path)
    path = save_lora(make_weights(), tmp_path, metadata={})
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ArtifactFormatError, match="not a whole safetensors"):
        load_lora(tmp_path)


def test_an_adapter_for_another_base_is_refused_by_layer(
    model: ModelFamily, make_weights: Callable[..., LoraWeights]
) -> None:
    weights = make_weights()
    check_fits(weights, model)
    name = next(iter(weights))
    with pytest.raises(ArtifactFormatError, match="no layer other"):
        check_fits(LoraWeights({**weights, "other": weights[name]}), model)
    wide = LoraLayer(torch.zeros(3, 999), weights[name].up)
    with pytest.raises(ArtifactFormatError, match=f"{name} is .*999"):
        check_fits(LoraWeights({**weights, name: wide}), model)
    with pytest.raises(ArtifactFormatError, match="nothing would be applied"):
        check_fits(LoraWeights({}), model)
