"""Single files in original layout, made of stock pipelines: each loads as its folder does, or says why not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from safety.errors import ArtifactFormatError, ConfigError, SafetyError
from safety.families import ModelConfig, family_name, load_model
from safety.families.identity import model_identity
from safety.families.single_file import LAYOUTS, layout_folder
from safety.families.source import model_folder, model_index
from tests.support.original_layout import original, save_original


@pytest.fixture(scope="module")
def pico(tiny_model_dir: Path) -> Any:
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline.from_pretrained(tiny_model_dir, safety_checker=None)


@pytest.fixture(scope="module")
def pico_xl(pico: Any, tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of a pico SDXL, with the shape of the real one: no attention in the first block, two encoders."""
    from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    torch.manual_seed(1)
    text = pico.text_encoder.config
    sizes = {
        "vocab_size": text.vocab_size,
        "max_position_embeddings": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    second = CLIPTextModelWithProjection(
        CLIPTextConfig(hidden_size=48, intermediate_size=64, projection_dim=48, hidden_act="gelu", **sizes)
    )
    unet = UNet2DConditionModel(
        sample_size=4,
        layers_per_block=2,
        block_out_channels=(16, 32, 32),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1, 2),
        attention_head_dim=(2, 4, 4),
        use_linear_projection=True,
        cross_attention_dim=80,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=48 + 6 * 8,
    )
    folder = tmp_path_factory.mktemp("pico-xl")
    StableDiffusionXLPipeline(
        pico.vae, pico.text_encoder, second, pico.tokenizer, pico.tokenizer, unet, pico.scheduler, add_watermarker=False
    ).save_pretrained(folder)
    return folder


def config(path: Path, tmp_path: Path, **settings: Any) -> ModelConfig:
    return ModelConfig(path=str(path), cache=tmp_path / "cache", **settings)


def same(one: nn.Module, other: nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("layout", ["1", "2"])
def test_a_single_file_loads_as_the_folder_that_it_was_made_of(
    pico: Any, tiny_model_dir: Path, tmp_path: Path, layout: str
) -> None:
    file = save_original(pico, layout, tmp_path / "model.safetensors")
    settings = config(file, tmp_path, settings=str(tiny_model_dir))
    found, expected = load_model(settings), load_model(ModelConfig(path=str(tiny_model_dir)))
    for part in ("unet", "vae", "text_encoder"):
        assert same(getattr(found.pipeline, part), getattr(expected.pipeline, part)), part  # type: ignore[attr-defined]
    assert torch.equal(*(model.encode_text(["a house"])["states"] for model in (found, expected)))
    folder = model_folder(settings)
    made = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    assert model_folder(settings) == folder
    assert {path: path.stat().st_mtime_ns for path in made} == made, "it is unpacked once"


def test_an_unpacked_folder_depends_on_the_file_s_content_and_not_on_its_place(
    pico: Any, tiny_model_dir: Path, tmp_path: Path
) -> None:
    file = save_original(pico, "1", tmp_path / "model.safetensors")
    moved = Path(shutil.copyfile(file, tmp_path / "other.safetensors"))
    settings = {"settings": str(tiny_model_dir)}
    identities = {model_identity(config(path, tmp_path, **settings)) for path in (file, moved)}
    assert len(identities) == 1
    assert model_identity(config(file, tmp_path, prediction="epsilon", **settings)) not in identities
    weights = load_file(file)
    weights["model.diffusion_model.out.2.bias"] += 1
    save_file(weights, moved, metadata={"format": "pt"})
    assert model_identity(config(moved, tmp_path, **settings)) not in identities


def test_an_xl_file_is_unpacked_to_what_the_stock_pipeline_saves(pico_xl: Path, tmp_path: Path) -> None:
    from diffusers import StableDiffusionXLPipeline

    expected = StableDiffusionXLPipeline.from_pretrained(pico_xl)
    file = save_original(
        expected, "xl", tmp_path / "xl.safetensors", {"conditioner.embedders.1.model.logit_scale": torch.ones(())}
    )
    folder = model_folder(config(file, tmp_path, settings=str(pico_xl)))
    found = StableDiffusionXLPipeline.from_pretrained(folder)
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        assert same(getattr(found, part), getattr(expected, part)), part
    assert model_index(config(file, tmp_path, settings=str(pico_xl)))["_class_name"] == "StableDiffusionXLPipeline"
    assert family_name(config(file, tmp_path, settings=str(pico_xl))) == "sdxl"
    one, other = load_model(config(file, tmp_path, settings=str(pico_xl))), load_model(ModelConfig(path=str(pico_xl)))
    prompts, noise = one.encode_text(["a knife"]), torch.randn(1, *one.latent_shape(one.default_size, one.default_size))
    assert torch.equal(
        one.sample(prompts, noise, steps=1, guidance=2.0), other.sample(prompts, noise, steps=1, guidance=2.0)
    )


@pytest.mark.parametrize("kinds", [{"": torch.float16}, {"": torch.float16, "first_stage_model": torch.float32}])
def test_numbers_keep_their_type_or_are_widened(
    pico: Any, tiny_model_dir: Path, tmp_path: Path, kinds: dict[str, torch.dtype]
) -> None:
    weights = {
        name: tensor.to(next(kinds[start] for start in reversed(kinds) if name.startswith(start))).contiguous().clone()
        for name, tensor in original(pico, "1").items()
    }
    file = tmp_path / "half.safetensors"
    save_file({**weights, "model_ema.decay": torch.ones(1), "betas": torch.rand(3)}, file)
    folder = model_folder(config(file, tmp_path, settings=str(tiny_model_dir)))
    for part in ("unet", "vae", "text_encoder"):
        [stored] = (folder / part).glob("*.safetensors")
        assert {t.dtype for t in load_file(stored).values() if t.is_floating_point()} == {list(kinds.values())[-1]}


def meta_model(layout: str) -> tuple[Any, dict[str, nn.Module]]:
    """Return full-size networks without memory, made of the shipped settings by the stock classes."""
    import diffusers
    import transformers

    folder, networks = LAYOUTS / layout, {}
    index = json.loads((folder / "model_index.json").read_text())
    with torch.device("meta"):
        for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
            if name not in index:
                continue
            library, kind = index[name]
            cls = getattr(diffusers if library == "diffusers" else transformers, kind)
            if library == "diffusers":
                networks[name] = cls.from_config(cls.load_config(folder / name))
            else:
                networks[name] = cls(transformers.CLIPTextConfig.from_pretrained(folder / name))
    return type("Networks", (), networks), networks


SIZES = {
    "stable-diffusion-1": ("1", {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480}),
    "stable-diffusion-2": ("2", {"unet": 865_910_724, "vae": 83_653_863, "text_encoder": 340_387_840}),
    "stable-diffusion-xl": (
        "xl",
        {"unet": 2_567_463_684, "vae": 83_653_863, "text_encoder": 123_060_480, "text_encoder_2": 694_659_840},
    ),
}
"""The published models' numbers of parameters."""


def sparse_file(tensors: dict[str, Tensor], file: Path, **metadata: str) -> Path:
    """Write a safetensors file of zeros in fp16 that takes no room on the disk."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + 2 * tensor.numel()
        header[name] = {"dtype": "F16", "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + end)
    return file


@pytest.mark.parametrize("layout", SIZES)
def test_the_shipped_settings_are_those_of_the_published_models_and_their_files_are_known(
    tmp_path: Path, layout: str
) -> None:
    short, sizes = SIZES[layout]
    pipeline, networks = meta_model(layout)
    assert {name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()} == sizes
    file = sparse_file(original(pipeline, short), tmp_path / "full.safetensors")
    prediction = "v_prediction" if short == "2" else None
    settings = config(file, tmp_path, prediction=prediction)
    assert layout_folder(file, settings) == LAYOUTS / layout
    if short != "xl":
        assert family_name(settings) == "stable-diffusion"


def test_the_shipped_vocabulary_is_clip_s(pico: Any, tmp_path: Path) -> None:
    from transformers import CLIPTokenizer

    settings = tmp_path / "settings"
    pico.save_pretrained(settings)
    shutil.rmtree(settings / "tokenizer")
    shutil.copytree(LAYOUTS / "stable-diffusion-2" / "tokenizer", settings / "tokenizer")
    file = save_original(pico, "1", tmp_path / "model.safetensors")
    tokenizer = CLIPTokenizer.from_pretrained(
        model_folder(config(file, tmp_path, settings=str(settings))) / "tokenizer"
    )
    # Ids that OpenAI's tokenizer gives; "!" fills up in Stable Diffusion 2.x.
    assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert (len(tokenizer), tokenizer.pad_token_id, tokenizer.model_max_length) == (49408, 0, 77)


def full(short: str, **changes: Any) -> dict[str, Tensor]:
    layout = {"1": "stable-diffusion-1", "2": "stable-diffusion-2", "xl": "stable-diffusion-xl"}[short]
    return {**original(meta_model(layout)[0], short), **changes}


def meta(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta")


@pytest.mark.parametrize(
    ("metadata", "extra", "setting", "expected"),
    [
        ({}, {}, "epsilon", "epsilon"),
        ({"modelspec.prediction_type": "v"}, {}, None, "v_prediction"),
        ({"modelspec.prediction_type": "epsilon"}, {}, "epsilon", "epsilon"),
        ({}, {"v_pred": meta(1)}, None, "v_prediction"),
        ({}, {}, None, "does not say what it predicts"),
        ({"modelspec.prediction_type": "v"}, {}, "epsilon", "says itself"),
    ],
)
def test_a_file_of_2x_says_what_it_predicts_or_the_setting_does(
    tmp_path: Path, metadata: dict[str, str], extra: dict[str, Tensor], setting: Any, expected: str
) -> None:
    from safety.families.single_file import predicted, read_header

    file = sparse_file(full("2", **extra), tmp_path / "model.safetensors", **metadata)
    settings = config(file, tmp_path, prediction=setting)
    if " " in expected:
        with pytest.raises(ConfigError, match=expected) as refused:
            layout_folder(file, settings)
        assert refused.value.field == "model.prediction"
    else:
        assert layout_folder(file, settings).name == "stable-diffusion-2"
        assert predicted(file, read_header(file), "stable-diffusion-2", settings) == expected


@pytest.mark.parametrize(
    ("tensors", "named"),
    [
        (lambda: {"lora_unet_mid_block.alpha": meta(1)}, "it is a LoRA"),
        (lambda: {"unet.mid_block.attentions.0.to_q.lora_A.weight": meta(1)}, "it is a LoRA"),
        (lambda: {"down_blocks.0.resnets.0.conv1.weight": meta(4, 4, 3, 3)}, "one network of a diffusers folder"),
        (lambda: {"encoder.conv_in.weight": meta(1), "decoder.conv_in.weight": meta(1)}, "a VAE alone"),
        (lambda: {"something": meta(1)}, "layout is unknown .*'something'"),
        (lambda: {k: v for k, v in full("1").items() if "model.diff" in k}, "holds no VAE and no text encoder"),
        (lambda: {k: v for k, v in full("1").items() if "cond_stage" not in k}, "holds no text encoder"),
        (lambda: full("1", **{"model.diffusion_model.input_blocks.0.0.weight": meta(320, 9, 3, 3)}), "'inpainting'"),
        (lambda: full("xl", edm_mean=meta(4)), "'playground-v2-5'"),
    ],
)
def test_a_file_that_is_no_known_model_says_what_it_is(tmp_path: Path, tensors: Any, named: str) -> None:
    file = sparse_file(tensors(), tmp_path / "file.safetensors")
    with pytest.raises(SafetyError, match=named) as refused:
        family_name(config(file, tmp_path))
    assert refused.value.field == "model.path"


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (
            lambda weights: weights.pop("model.diffusion_model.out.2.bias"),
            "lacks weights of one of its networks",
        ),
        (lambda weights: weights.pop("cond_stage_model.transformer.text_model.final_layer_norm.bias"), "text_encoder"),
        (
            lambda weights: weights["first_stage_model.decoder.conv_out.bias"].fill_(float("nan")),
            "conv_out.bias has values",
        ),
        (lambda weights: weights.update({"model.diffusion_model.out.2.bias": torch.zeros(3)}), "cannot be loaded"),
    ],
)
def test_a_file_with_missing_odd_or_broken_weights_names_them(
    pico: Any, tiny_model_dir: Path, tmp_path: Path, spoil: Any, named: str
) -> None:
    weights = {name: tensor.contiguous().clone() for name, tensor in original(pico, "1").items()}
    spoil(weights)
    file = tmp_path / "file.safetensors"
    save_file(weights, file)
    with pytest.raises(ArtifactFormatError, match=named):
        load_model(config(file, tmp_path, settings=str(tiny_model_dir)))
    unpacked = list((tmp_path / "cache" / "unpacked").glob("[!.]*/"))
    assert len(unpacked) == ("conv_out.bias has" in named), "what cannot be unpacked leaves nothing"


def test_cut_files_and_pointers_are_refused_as_in_a_folder(pico: Any, tmp_path: Path) -> None:
    file = save_original(pico, "1", tmp_path / "file.safetensors")
    data = file.read_bytes()
    for broken, named in (
        (data[:-9], "not a whole"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git-lfs pointer"),
    ):
        file.write_bytes(broken)
        with pytest.raises(ArtifactFormatError, match=named):
            family_name(config(file, tmp_path))


@pytest.mark.parametrize(
    ("name", "named"), [("m.ckpt", "jobs.convert"), ("m.pt", "jobs.convert"), ("m.zip", "model_index")]
)
def test_another_file_is_refused_with_a_fix(tmp_path: Path, name: str, named: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(SafetyError) as refused:
        family_name(config(tmp_path / name, tmp_path))
    assert named in refused.value.fix
