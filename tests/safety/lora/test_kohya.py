"""Kohya's form of an adapter: ComfyUI's own names, and the same image in stock diffusers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import load_file

from safety.errors import ArtifactFormatError
from safety.exports.original_layout import unet_name
from safety.families import ModelFamily
from safety.lora.files import load_lora, save_lora
from safety.lora.kohya import KOHYA_FILE, component_of, kohya_tensors, write_kohya
from safety.lora.weights import LoraLayer, LoraWeights
from tests.support import comfyui_keys
from tests.support.real_unets import UNETS

MakeWeights = Callable[..., LoraWeights]
PIXEL = 1.0 / 255.0
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")


def adapter_on(denoiser: torch.nn.Module, endings: tuple[str, ...] = ATTENTION) -> LoraWeights:
    """Return a LoRA of rank 1, of zeros, on the linear layers of a model without memory (meta) that end so."""
    return LoraWeights(
        {
            name: LoraLayer(torch.zeros(1, module.in_features), torch.zeros(module.out_features, 1))
            for name, module in denoiser.named_modules()
            if isinstance(module, torch.nn.Linear) and name.endswith(endings)
        }
    )


def stems(weights: LoraWeights, component: str) -> dict[str, str]:
    """Return the layer of each name in kohya's form, without what follows the first dot."""
    tensors = kohya_tensors(weights, component)
    found = {name.partition(".")[0] for name in tensors}
    assert len(tensors) == 3 * len(found)
    assert {name.partition(".")[2] for name in tensors} == {"lora_down.weight", "lora_up.weight", "alpha"}
    by_stem = {f"{name}": layer for layer in weights for name in found if name.endswith("_" + layer.replace(".", "_"))}
    assert set(by_stem) == found
    return by_stem


@pytest.mark.parametrize(("model", "layers"), [("1.5", 128), ("2.1", 128), ("xl", 560)])
def test_comfyui_maps_every_name_of_a_unet_onto_the_layers_own_weight(model: str, layers: int) -> None:
    """At the real sizes; that the weight is the layer's own is said by the single file's layout too."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**UNETS[model])
    weights = adapter_on(unet)
    assert len(weights) == layers
    known = comfyui_keys.of_unet(unet.config)
    names = stems(weights, "unet")
    assert set(names) <= set(known)
    for name, layer in names.items():
        assert f"model.{known[name]}" == unet_name(f"{layer}.weight", unet.config)


def test_comfyui_maps_every_name_of_sd3_and_flux() -> None:
    with torch.device("meta"):
        medium = SD3Transformer2DModel(num_layers=3, dual_attention_layers=(0, 1))
        flux = FluxTransformer2DModel(num_layers=2, num_single_layers=3)
    for denoiser, known in ((medium, comfyui_keys.of_sd3(3)), (flux, comfyui_keys.of_flux(2, 3))):
        # The default targets of a run are the reader of the prompt there.
        names = stems(adapter_on(denoiser, (*ATTENTION, "context_embedder")), "transformer")
        assert len(names) > 16
        assert "context_embedder" in names.values()
        assert set(names) <= set(known)
        assert len({known[name] for name in names}) == len(names)


@pytest.fixture
def draw(tiny_model_dir: Path) -> Callable[[Path | None], np.ndarray]:
    def make(adapter: Path | None) -> np.ndarray:
        """Return the stock pipeline's image with an adapter's file, or without one."""
        pipeline = StableDiffusionPipeline.from_pretrained(tiny_model_dir, safety_checker=None)
        pipeline.set_progress_bar_config(disable=True)
        if adapter is not None:
            pipeline.load_lora_weights(adapter)
        noise = torch.Generator().manual_seed(2)
        image: np.ndarray = pipeline("a knife", num_inference_steps=3, generator=noise, output_type="np").images[0]
        return image

    return make


def test_stock_diffusers_draws_the_same_image_with_either_form(
    make_weights: MakeWeights, draw: Callable[[Path | None], np.ndarray], tmp_path: Path
) -> None:
    adapter = save_lora(make_weights((3, 2)), tmp_path / "plain", metadata={})
    kohya = write_kohya(adapter, tmp_path / "kohya" / KOHYA_FILE, {"release": "tiny"})
    base, plain, other = draw(None), draw(adapter), draw(kohya)
    assert np.abs(plain - base).max() > 10 * PIXEL
    assert np.abs(other - plain).max() <= PIXEL
    # Beside each other in a release, the folder still loads.
    write_kohya(adapter, adapter.parent / KOHYA_FILE, {})
    assert np.array_equal(draw(adapter.parent), plain)


def test_stock_diffusers_applies_kohyas_form_to_flux_as_its_own(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"num_layers": 2, "num_single_layers": 2, "attention_head_dim": 16, "in_channels": 4}
    flux = FluxTransformer2DModel(
        **sizes, num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 4, 8)
    )
    draw = torch.Generator().manual_seed(4)
    weights = LoraWeights(
        {
            name: LoraLayer(torch.randn(2, layer.down.shape[1], generator=draw), torch.randn(layer.up.shape[0], 2))
            for name, layer in adapter_on(flux).items()
        }
    )
    adapter = save_lora(weights, tmp_path, metadata={}, component="transformer")
    kohya = write_kohya(adapter, tmp_path / KOHYA_FILE, {})
    inputs = {
        "hidden_states": torch.randn(1, 16, 4, generator=draw),
        "encoder_hidden_states": torch.randn(1, 6, 32, generator=draw),
        "pooled_projections": torch.randn(1, 32, generator=draw),
        "timestep": torch.tensor([0.5]),
        "img_ids": torch.zeros(16, 3),
        "txt_ids": torch.zeros(6, 3),
    }

    def predict(file: Path | None) -> torch.Tensor:
        if file is not None:
            state = FluxPipeline.lora_state_dict(file)
            assert len(state) == 2 * len(weights)
            FluxPipeline.load_lora_into_transformer(state, network_alphas=None, transformer=flux, adapter_name="x")
        with torch.no_grad():
            found: torch.Tensor = flux(**inputs).sample
        if file is not None:
            flux.delete_adapters("x")
        return found

    base, plain, other = predict(None), predict(adapter), predict(kohya)
    assert float((plain - base).abs().max()) > 0.1
    torch.testing.assert_close(other, plain)


def test_kohyas_form_holds_the_same_matrices_at_one_rank_with_alpha_as_rank(
    make_weights: MakeWeights, tmp_path: Path
) -> None:
    weights = make_weights((3, 2))
    adapter = save_lora(weights, tmp_path, metadata={})
    tensors = load_file(write_kohya(adapter, tmp_path / KOHYA_FILE, {"release": "tiny"}))
    for name, layer in weights.items():
        key = f"lora_unet_{name.replace('.', '_')}"
        alpha, up, down = (tensors[f"{key}.{part}"] for part in ("alpha", "lora_up.weight", "lora_down.weight"))
        assert float(alpha) == len(down) == 3
        assert torch.equal(up[:, : layer.rank], layer.up)
        assert torch.equal(down[: layer.rank], layer.down)
        torch.testing.assert_close(up @ down, layer.delta())
    assert component_of(adapter) == "unet"
    first = (tmp_path / KOHYA_FILE).read_bytes()
    assert write_kohya(adapter, tmp_path / KOHYA_FILE, {"release": "tiny"}).read_bytes() == first
    with pytest.raises(ArtifactFormatError, match="kohya's format"):
        load_lora(tmp_path / KOHYA_FILE)
    other = save_lora(weights, tmp_path / "other", metadata={}, component="transformer")
    with pytest.raises(ArtifactFormatError, match="kohya's format"):
        load_lora(write_kohya(other, tmp_path / KOHYA_FILE, {}))


def test_a_family_of_its_own_is_a_unet_here(model: ModelFamily, make_weights: MakeWeights, tmp_path: Path) -> None:
    adapter = save_lora(make_weights(), tmp_path, metadata={})
    known = comfyui_keys.of_unet(model.denoiser.config)
    written = load_file(write_kohya(adapter, tmp_path / KOHYA_FILE, {}))
    assert {name.partition(".")[0] for name in written} <= set(known)
