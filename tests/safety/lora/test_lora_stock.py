"""Adapters as peft and diffusers write them: each draws what ``pipe.load_lora_weights`` draws, or is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from safety.errors import ArtifactFormatError
from safety.families import ModelConfig, load_model
from safety.families.stable_diffusion import StableDiffusion
from safety.lora.files import ADAPTER_METADATA, LORA_FILE, load_lora
from safety.lora.fuse import fused

TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0"
EQUAL: dict[str, dict[str, Any]] = {
    "alpha by suffix": {"alpha_pattern": {"attn2.to_k": 16}},
    "alpha by a shorter suffix": {"alpha_pattern": {"to_k": 16, "attn2.to_k": 1}},
    "alpha by regex": {"alpha_pattern": {r".*attn[2]\.to_(k|v)": 16, "to_q": 2.5}},
    "alpha by full name": {"alpha_pattern": {f"{BLOCK}.attn1.to_q": 16}},
    "alpha by anchored name": {"alpha_pattern": {f"^{BLOCK}.attn1.to_q": 16}},
    "alpha of the start of a name alone": {"alpha_pattern": {"down_blocks": 16}},
    "rank by suffix": {"rank_pattern": {"attn2.to_k": 2}},
    "rank and alpha by different patterns": {"rank_pattern": {r"attn\d.to_k": 2}, "alpha_pattern": {"to_out.0": 1}},
    "rsLoRA": {"use_rslora": True, "alpha_pattern": {"attn2.to_k": 16}, "rank_pattern": {"to_v": 9}},
    "a Gaussian start": {"init_lora_weights": "gaussian", "lora_alpha": 3},
    "no start": {"init_lora_weights": False},
    "an EVA start": {"init_lora_weights": "eva"},
    "fan_in_fan_out": {"fan_in_fan_out": True, "lora_alpha": 3},
    "dropout": {"lora_dropout": 0.5, "lora_alpha": 3},
    "some layers": {"layers_to_transform": [0], "layers_pattern": "transformer_blocks", "lora_alpha": 3},
    "some modules": {"target_modules": r"down_blocks.*to_(q|k)", "lora_alpha": 3},
    "all but some modules": {"exclude_modules": ["to_k"], "lora_alpha": 3},
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "DoRA": ({"use_dora": True}, "use_dora"),
    "biases": ({"lora_bias": True, "target_modules": ["to_out.0"]}, "lora_bias"),
    "the base's biases": ({"bias": "lora_only"}, "bias is 'lora_only'"),
    "whole modules": ({"modules_to_save": ["conv_out"]}, "modules_to_save"),
    "PiSSA": ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
    "OLoRA": ({"init_lora_weights": "olora"}, "init_lora_weights is 'olora'"),
    "a convolution": ({"target_modules": ["conv1"]}, "convolution"),
}


@pytest.fixture(scope="module")
def model(tiny_model_dir: Path) -> StableDiffusion:
    found = load_model(ModelConfig(path=str(tiny_model_dir)))
    assert isinstance(found, StableDiffusion)
    return found


def written(model: StableDiffusion, folder: Path, settings: dict[str, Any]) -> Path:
    """Train nothing: attach peft's LoRA with random matrices, and save it as diffusers' training scripts do."""
    torch.manual_seed(0)
    unet = load_model(ModelConfig(path=str(model.pipeline.config._name_or_path))).denoiser
    config = peft.LoraConfig(**{"r": 4, "target_modules": TARGETS, **settings})
    peft.inject_adapter_in_model(config, unet)
    state = {k: 0.3 * torch.randn_like(v) for k, v in get_peft_model_state_dict(unet, adapter_name="default").items()}
    model.pipeline.save_lora_weights(
        folder, unet_lora_layers=state, unet_lora_adapter_metadata=unet.peft_config["default"].to_dict()
    )
    return folder / LORA_FILE


def predicted(model: StableDiffusion) -> torch.Tensor:
    noise = torch.randn((1, 4, 4, 4), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        return model.predict(noise, torch.tensor([500]), model.encode_text(["a knife"]))


def assert_as_stock(model: StableDiffusion, file: Path) -> None:
    base = predicted(model)
    model.pipeline.load_lora_weights(file)
    try:
        model.denoiser.eval()  # peft attaches its dropout in training mode
        stock = predicted(model)
    finally:
        model.pipeline.unload_lora_weights()
    with fused(model, load_lora(file)):
        own = predicted(model)
    assert torch.allclose(own, stock, atol=2e-4 * float(stock.abs().max())), float((own - stock).abs().max())
    assert not torch.allclose(base, stock, atol=1e-2)


@pytest.mark.parametrize("name", EQUAL)
def test_what_peft_writes_is_applied_as_stock_applies_it(model: StableDiffusion, tmp_path: Path, name: str) -> None:
    assert_as_stock(model, written(model, tmp_path, EQUAL[name]))


@pytest.mark.parametrize("name", REFUSED)
def test_what_plain_matrices_cannot_meet_is_refused_by_its_setting(
    model: StableDiffusion, tmp_path: Path, name: str
) -> None:
    settings, named = REFUSED[name]
    with pytest.raises(ArtifactFormatError, match=named):
        load_lora(written(model, tmp_path, settings))


def rewritten(file: Path, rename: dict[str, str], metadata: dict[str, Any] | None) -> Path:
    """Write the file's tensors under other names, with other metadata."""
    tensors = load_file(file)
    for old, new in rename.items():
        tensors = {key.replace(old, new): value for key, value in tensors.items()}
    save_file(tensors, file, metadata=None if metadata is None else {ADAPTER_METADATA: json.dumps(metadata)})
    return file


@pytest.mark.parametrize(
    ("settings", "rename", "metadata"),
    [
        ({}, {}, None),
        ({"rank_pattern": {"to_k": 2}}, {}, None),
        ({"r": 8}, {}, {"unet.lora_alpha": 3, "unet.target_modules": TARGETS}),
        ({}, {}, {"unet.r": 4, "unet.target_modules": TARGETS}),
        ({"r": 8}, {"lora_A": "lora.down", "lora_B": "lora.up"}, None),
        (
            {"r": 8},
            {".to_out.0.": ".to_out.", ".to_": ".processor.to_", ".lora_A": "_lora.down", ".lora_B": "_lora.up"},
            None,
        ),
    ],
    ids=["no metadata", "ranks, no metadata", "no rank", "no alpha", "older names", "oldest names"],
)
def test_older_and_shorter_files_are_applied_as_stock_applies_them(
    model: StableDiffusion,
    tmp_path: Path,
    settings: dict[str, Any],
    rename: dict[str, str],
    metadata: dict[str, Any] | None,
) -> None:
    assert_as_stock(model, rewritten(written(model, tmp_path, settings), rename, metadata))


@pytest.mark.parametrize(
    ("rename", "metadata", "named"),
    [
        ({"unet.": "text_encoder."}, None, "text encoder"),
        ({"unet.": "base_model.model."}, None, "peft's own format"),
        ({"unet.": "lora_unet_", "lora_A": "lora_down", "lora_B": "lora_up"}, None, "kohya"),
        ({"lora_A.weight": "lora_magnitude_vector"}, None, "DoRA"),
        ({"lora_A.weight": "dora_scale"}, None, "DoRA"),
        ({}, {"unet.lora_alpha": 5, "unet_2.r": 4, "text_encoder.r": 4}, "has rank 4, and 8 by"),
        ({}, {"unet.r": 5}, "has rank 4, and 5 by the metadata"),
        ({}, {"unet.r": 4, "unet.a_new_setting": 3}, "a_new_setting is 3"),
        ({}, {"unet.r": 4, "unet.alpha_pattern": {"to_(": 3}}, "unterminated"),
        ({}, {"unet.r": 4, "unet.alpha_pattern": 7}, "not iterable"),
        ({}, {"unet.r": "four"}, "invalid literal"),
    ],
)
def test_other_formats_and_settings_are_refused_by_name(
    model: StableDiffusion, tmp_path: Path, rename: dict[str, str], metadata: dict[str, Any] | None, named: str
) -> None:
    file = rewritten(written(model, tmp_path, {}), rename, metadata)
    with pytest.raises(ArtifactFormatError, match=named):
        load_lora(file)


def test_an_alpha_beside_the_matrices_scales_them_unless_the_metadata_give_another(
    model: StableDiffusion, tmp_path: Path
) -> None:
    file = written(model, tmp_path, {})
    with safe_open(file, "pt") as handle:
        metadata = handle.metadata()
    plain = load_lora(rewritten(file, {}, None))
    tensors = load_file(file)
    layer = next(iter(plain))
    save_file({**tensors, f"unet.{layer}.alpha": torch.tensor(2.0)}, file)
    assert torch.allclose(load_lora(file)[layer].delta(), plain[layer].delta() / 2)
    save_file({**tensors, f"unet.{layer}.alpha": torch.tensor(2.0)}, file, metadata=metadata)
    with pytest.raises(ArtifactFormatError, match="an alpha of its own"):
        load_lora(file)
