"""Fused folders and single files: stock diffusers draws with them what it draws with base and adapter."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusion3Pipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from safety.errors import ArtifactFormatError, ConfigError
from safety.exports.fused_file import write_fused_file
from safety.exports.fused_folder import write_fused_folder
from safety.exports.original_layout import unet_name
from safety.families import ModelConfig
from safety.families.single_file import KNOWN, predicted, read_header
from safety.families.weight_files import read_index
from safety.lora.files import save_lora
from safety.lora.weights import LoraLayer, LoraWeights
from tests.support.tiny_pipelines import PIXELS, draw, make_pipeline, random_adapter


def pipeline_class(base: Path) -> type[DiffusionPipeline]:
    import diffusers

    found: type[DiffusionPipeline] = getattr(diffusers, read_index(base)["_class_name"])
    return found


@pytest.fixture
def expected(base: Path, adapter: LoraWeights, tmp_path: Path) -> np.ndarray:
    """Return the image of the stock pipeline with the adapter, which differs from the base's own."""
    pipeline = DiffusionPipeline.from_pretrained(base)
    plain = draw(pipeline)
    pipeline.load_lora_weights(save_lora(adapter, tmp_path / "lora", metadata={}))
    found = draw(pipeline)
    assert np.abs(found - plain).max() > 10 * PIXELS
    return found


def test_a_fused_folder_draws_the_adapters_image(
    base: Path, adapter: LoraWeights, expected: np.ndarray, tmp_path: Path
) -> None:
    rounding = write_fused_folder(base, adapter, tmp_path / "fused")
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "fused")
    assert type(pipeline) is pipeline_class(base)
    assert np.abs(draw(pipeline) - expected).max() <= PIXELS
    assert rounding.dtypes == {"float32"}
    assert rounding.error < 1e-6


def test_a_fused_file_in_original_layout_draws_the_adapters_image(
    base: Path, adapter: LoraWeights, expected: np.ndarray, tmp_path: Path
) -> None:
    file = tmp_path / "fused.safetensors"
    rounding = write_fused_file(base, adapter, file, {"title": "fused"})
    with safe_open(file, "pt") as handle:
        assert handle.metadata() == {"format": "pt", "title": "fused", "modelspec.prediction_type": prediction_of(base)}
    pipeline = pipeline_class(base).from_single_file(file, config=str(base), local_files_only=True)
    assert np.abs(draw(pipeline) - expected).max() <= PIXELS
    assert rounding.error < 1e-6


def prediction_of(base: Path) -> str:
    """Return what a base predicts, in the words of single files: "v" for velocity."""
    settings = json.loads((base / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
    return {"epsilon": "epsilon", "v_prediction": "v"}[settings["prediction_type"]]


@pytest.mark.parametrize(("kind", "base"), [("xl", "xl"), ("1", "1"), ("2", "2")], indirect=["base"])
@pytest.mark.parametrize("zero_snr", [False, True])
def test_a_single_file_says_what_it_predicts_as_other_programs_and_our_own_reader_know_it(
    kind: str, base: Path, adapter: LoraWeights, tmp_path: Path, zero_snr: bool
) -> None:
    """A file has no settings: velocity taken for noise, or a schedule for another, draws noise."""
    velocity = tmp_path / "velocity"
    shutil.copytree(base, velocity)
    path = velocity / "scheduler" / "scheduler_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    changed = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": zero_snr}
    path.write_text(json.dumps({**settings, **changed}), encoding="utf-8")
    file = tmp_path / "fused.safetensors"
    write_fused_file(velocity, adapter, file, {})
    header = read_header(file)
    assert {name for name in header.shapes if "." not in name} == {"v_pred", *(["ztsnr"] if zero_snr else [])}
    layout = {"1": "v1", "2": "v2", "xl": "xl_base"}[kind]
    assert predicted(file, header, KNOWN[layout], ModelConfig(path=str(file))) == "v_prediction"


def test_every_tensor_of_the_base_is_in_the_single_file(base: Path, adapter: LoraWeights, tmp_path: Path) -> None:
    """OpenCLIP's encoders join queries, keys and values; nothing else changes in number or size."""
    write_fused_file(base, adapter, tmp_path / "fused.safetensors", {})
    found = load_file(tmp_path / "fused.safetensors")
    parts = list(base.rglob("*.safetensors"))
    assert sum(t.numel() for t in found.values()) == sum(t.numel() for p in parts for t in load_file(p).values())


def half(base: Path, target: Path, variant: str | None = None) -> Path:
    DiffusionPipeline.from_pretrained(base, torch_dtype=torch.float16).save_pretrained(
        target, variant=variant, max_shard_size="200KB"
    )
    return target


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_a_half_base_of_shards_stays_half_and_says_what_rounding_costs(
    base: Path, adapter: LoraWeights, tmp_path: Path, variant: str | None
) -> None:
    small = adapter.scaled(0.01)
    folder = half(base, tmp_path / "half", variant)
    assert list((folder / "unet").glob("*.index*.json")), "it is sharded"
    rounding = write_fused_folder(folder, small, tmp_path / "fused")
    assert rounding.dtypes == {"float16"}
    # The stored weights against exact sums, from what stock diffusers loads.
    before = DiffusionPipeline.from_pretrained(folder, variant=variant, torch_dtype=torch.float16).unet.state_dict()
    after = DiffusionPipeline.from_pretrained(tmp_path / "fused", torch_dtype=torch.float16).unet.state_dict()
    lost = change = 0.0
    for name, tensor in before.items():
        layer = small.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
        if layer is None:
            assert torch.equal(tensor, after[name])
        else:
            delta = layer.up.double() @ layer.down.double()
            lost += float((after[name].double() - tensor.double() - delta).square().sum())
            change += float(delta.square().sum())
    assert rounding.error == pytest.approx((lost / change) ** 0.5, rel=1e-3)
    assert 1e-4 < rounding.error < 0.5
    assert not list((tmp_path / "fused").rglob("*fp16*"))


def test_an_adapter_for_another_base_is_refused_by_its_first_misfit(
    base: Path, adapter: LoraWeights, tmp_path: Path
) -> None:
    first = next(iter(adapter))
    wide = LoraWeights({**adapter, first: LoraLayer(torch.zeros(1, 999), torch.zeros(16, 1))})
    odd = LoraWeights({**adapter, "down_blocks.9.attn.to_q": adapter[first]})
    for write in (write_fused_folder, lambda *given: write_fused_file(*given, {})):
        with pytest.raises(ArtifactFormatError, match=rf"{first} is \(16, 999\) in the adapter and \("):
            write(base, wide, tmp_path / "wide")
        with pytest.raises(ArtifactFormatError, match=r"the base model has no layer down_blocks\.9"):
            write(base, odd, tmp_path / "odd")
    assert not list(tmp_path.glob("*"))


def test_a_model_without_an_original_layout_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": StableDiffusion3Pipeline.__name__}))
    with pytest.raises(ConfigError, match="StableDiffusion3Pipeline, and the original layout is written for"):
        write_fused_file(tmp_path, LoraWeights({}), tmp_path / "x.safetensors", {})
    with pytest.raises(ConfigError, match="neither of the parts unet and transformer"):
        write_fused_folder(tmp_path, LoraWeights({}), tmp_path / "fused")
    for odd in ("mid_block.attentions.1.norm.weight", "class_embedding.weight", "down_blocks.0.motion.0.x.weight"):
        with pytest.raises(ConfigError, match="no place for"):
            unet_name(odd, {"layers_per_block": 2})


def test_a_folder_of_a_kindred_pipeline_has_the_same_layout(tmp_path: Path) -> None:
    """Hubs hold the same parts under image-to-image classes too, and the families take them."""
    pipeline = make_pipeline("1")
    pipeline.save_pretrained(tmp_path / "base")
    index = tmp_path / "base" / "model_index.json"
    named = json.loads(index.read_text(encoding="utf-8")) | {"_class_name": "StableDiffusionImg2ImgPipeline"}
    index.write_text(json.dumps(named), encoding="utf-8")
    write_fused_file(tmp_path / "base", random_adapter(pipeline.unet), tmp_path / "x.safetensors", {})
    assert any(name.startswith("cond_stage_model.") for name in load_file(tmp_path / "x.safetensors"))


def test_the_names_of_an_older_vae_are_read(tmp_path: Path) -> None:
    """Folders on hubs often hold a VAE that diffusers before 0.18 wrote."""
    pipeline = make_pipeline("1")
    base, old = tmp_path / "base", tmp_path / "old"
    for folder in (base, old):
        pipeline.save_pretrained(folder)
    file = old / "vae" / "diffusion_pytorch_model.safetensors"
    names = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    renamed = {}
    for name, tensor in load_file(file).items():
        for new, former in names.items():
            name = name.replace(new, former)
        renamed[name] = tensor
    save_file(renamed, file, metadata={"format": "pt"})
    weights = random_adapter(pipeline.unet)
    for folder in (base, old):
        write_fused_file(folder, weights, tmp_path / f"{folder.name}.safetensors", {})
    assert (tmp_path / "base.safetensors").read_bytes() == (tmp_path / "old.safetensors").read_bytes()
