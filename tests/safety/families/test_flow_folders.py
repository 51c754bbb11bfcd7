"""Folders of flow-matching models that are not what they say are known errors before anything is loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from safety.errors import SafetyError
from safety.families import ModelConfig, load_model
from safety.families.flux_folder import check_folder as check_flux
from safety.families.sd3_folder import check_folder as check_sd3

CHECKS: dict[str, Callable[[Path], Any]] = {"sd3": check_sd3, "sd3-without-t5": check_sd3, "flux-dev": check_flux}
TRANSFORMER = "transformer/config.json"
SCHEDULER = "scheduler/scheduler_config.json"


@pytest.fixture
def copy(pico_model_dir: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    return lambda name: Path(shutil.copytree(pico_model_dir(name), tmp_path / name))


def change(path: Path, **settings: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


@pytest.mark.parametrize(
    ("name", "file", "settings", "named"),
    [
        ("sd3", "model_index.json", {"_class_name": "StableDiffusionPipeline"}, "StableDiffusionPipeline"),
        ("sd3", "model_index.json", {"_class_name": "FluxPipeline"}, "FluxPipeline"),
        ("sd3", "model_index.json", {"text_encoder": ["transformers", "CLIPTextModel"]}, "CLIPTextModel,"),
        ("sd3", "model_index.json", {"text_encoder_2": [None, None]}, "names no text_encoder_2"),
        ("sd3", "model_index.json", {"text_encoder_3": ["transformers", "UMT5EncoderModel"]}, "UMT5EncoderModel"),
        ("sd3", "model_index.json", {"text_encoder_3": [None, None]}, "names tokenizer_3, and of"),
        ("sd3", "model_index.json", {"controlnet": ["diffusers", "SD3ControlNetModel"]}, "SD3ControlNetModel"),
        ("sd3-without-t5", "model_index.json", {"text_encoder_3": ["transformers", "T5EncoderModel"]}, "no weights"),
        ("sd3", TRANSFORMER, {"_class_name": "SanaTransformer2DModel"}, "SanaTransformer2DModel"),
        ("sd3", TRANSFORMER, {"in_channels": 33}, "in_channels is 33, and .* latent channels is 16"),
        ("sd3", TRANSFORMER, {"out_channels": 4}, "out_channels is 4"),
        ("sd3", TRANSFORMER, {"joint_attention_dim": 64}, "joint_attention_dim is 64, and the T5's width is 32"),
        (
            "sd3-without-t5",
            TRANSFORMER,
            {"joint_attention_dim": 16},
            "states are 24 wide, and the transformer reads 16",
        ),
        ("sd3", TRANSFORMER, {"pooled_projection_dim": 2048}, "pooled_projection_dim is 2048, and .* together is 24"),
        ("sd3", TRANSFORMER, {"caption_projection_dim": 64}, "caption_projection_dim is 64"),
        ("sd3", "text_encoder_2/config.json", {"projection_dim": 64}, "pooled_projection_dim is 24, and .* is 72"),
        ("sd3", "vae/config.json", {"shift_factor": None}, "states no shift_factor"),
        ("sd3", "vae/config.json", {"latent_channels": 4}, "latent channels is 4"),
        ("sd3", SCHEDULER, {"_class_name": "DDIMScheduler"}, "is a DDIMScheduler"),
        ("sd3", SCHEDULER, {"stochastic_sampling": True}, "stochastic_sampling"),
        ("flux-dev", "model_index.json", {"_class_name": "FluxFillPipeline"}, "FluxFillPipeline"),
        ("flux-dev", "model_index.json", {"text_encoder_2": [None, None]}, "names no text_encoder_2"),
        ("flux-dev", "model_index.json", {"transformer": ["diffusers", "Flux2Transformer2DModel"]}, "Flux2Transformer"),
        ("flux-dev", TRANSFORMER, {"in_channels": 384}, "in_channels is 384, and .* four times is 64"),
        ("flux-dev", TRANSFORMER, {"patch_size": 2}, "patch_size is 2"),
        ("flux-dev", TRANSFORMER, {"joint_attention_dim": 64}, "joint_attention_dim is 64"),
        ("flux-dev", TRANSFORMER, {"pooled_projection_dim": 768}, "pooled_projection_dim is 768"),
        ("flux-dev", TRANSFORMER, {"axes_dims_rope": [16, 56, 56]}, "axes_dims_rope is 128"),
        ("flux-dev", "vae/config.json", {"scaling_factor": None}, "states no scaling_factor"),
        ("flux-dev", SCHEDULER, {"invert_sigmas": True}, "invert_sigmas"),
    ],
)
def test_parts_that_are_not_the_familys_are_refused(
    copy: Callable[[str], Path], name: str, file: str, settings: dict[str, Any], named: str
) -> None:
    folder = copy(name)
    CHECKS[name](folder)
    change(folder / file, **settings)
    with pytest.raises(SafetyError, match=named) as refused:
        CHECKS[name](folder)
    assert refused.value.field == "model.path"


@pytest.mark.parametrize(
    ("name", "lost", "named"),
    [
        ("sd3", "text_encoder_3", "text_encoder_3"),
        ("sd3", "tokenizer_3/tokenizer.json", "tokenizer_3: it holds neither"),
        ("sd3", "transformer/diffusion_pytorch_model.safetensors", "transformer: it holds no weights"),
        ("flux-dev", "text_encoder_2/model.safetensors", "text_encoder_2: it holds no weights"),
        ("flux-dev", "transformer/config.json", "transformer/config.json"),
    ],
)
def test_a_missing_part_is_named(copy: Callable[[str], Path], name: str, lost: str, named: str) -> None:
    folder = copy(name)
    path = folder / lost
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    with pytest.raises(SafetyError, match=named) as refused:
        load_model(ModelConfig(path=str(folder)))
    assert refused.value.field == "model.path"


@pytest.mark.parametrize("name", ["sd3", "flux-dev"])
def test_weights_that_lack_one_are_refused(copy: Callable[[str], Path], name: str) -> None:
    folder = copy(name)
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors.pop("context_embedder.weight")
    save_file(tensors, file)
    with pytest.raises(SafetyError, match=r"lack 1 of the network's, such as context_embedder\.weight"):
        load_model(ModelConfig(path=str(folder)))


def test_a_tokenizer_with_words_that_the_t5_does_not_know_is_refused(copy: Callable[[str], Path]) -> None:
    folder = copy("flux-dev")
    file = folder / "text_encoder_2" / "model.safetensors"
    change(folder / "text_encoder_2" / "config.json", vocab_size=50)
    tensors = {key: value[:50].clone() if value.shape[0] > 64 else value for key, value in load_file(file).items()}
    save_file(tensors, file)
    with pytest.raises(SafetyError, match=r"tokenizer_2: it has \d+ words, and the text encoder knows 50"):
        load_model(ModelConfig(path=str(folder)))


def test_folders_of_the_same_parts_are_taken(copy: Callable[[str], Path]) -> None:
    for name, kind in (("sd3", "StableDiffusion3Img2ImgPipeline"), ("flux-dev", "FluxInpaintPipeline")):
        folder = copy(name)
        change(folder / "model_index.json", _class_name=kind)
        model = load_model(ModelConfig(path=str(folder)))
        assert torch.isfinite(model.encode_text(["a knife"])["states"]).all()
