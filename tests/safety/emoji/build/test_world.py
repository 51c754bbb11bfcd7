"""The zoo as the builder writes it: loaded by a stock pipeline as it comes."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file
from transformers import CLIPConfig, CLIPModel

from safety.emoji.build.world import save_zoo

ZOO_MIB = 36
PARTS = {"text_encoder": torch.float32, "unet": torch.float16, "vae": torch.float16, "clip": torch.float16}


def test_a_written_zoo_draws_in_a_stock_pipeline_without_a_dtype(tiny_model_dir: Path, tmp_path: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_model_dir, safety_checker=None)
    text = pipeline.text_encoder.config.to_dict()
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config={**vision, "image_size": 16, "patch_size": 8}))
    states = clip.text_model.state_dict()
    save_zoo(tmp_path, pipeline.tokenizer, clip, pipeline.vae, pipeline.unet)

    for part, dtype in PARTS.items():
        (path,) = (tmp_path / part).glob("*.safetensors")
        assert {tensor.dtype for tensor in load_file(path).values() if tensor.is_floating_point()} == {dtype}, part
    written = load_file(tmp_path / "text_encoder" / "model.safetensors")
    # Rounded to half precision as the CLIP beside it is, so that a part that is built again finds the same states.
    for name, value in states.items():
        found = [tensor for key, tensor in written.items() if key.endswith(name)]
        assert len(found) == 1, name
        assert torch.equal(found[0], value.half().float()), name
    loaded = StableDiffusionPipeline.from_pretrained(tmp_path, safety_checker=None)
    loaded.set_progress_bar_config(disable=True)
    assert loaded("a house", num_inference_steps=1, output_type="np").images.shape == (1, 16, 16, 3)


def test_the_embedded_zoo_is_small() -> None:
    """It is in the repository, and goes with every submitted job."""
    zoo = Path(__file__).parents[4] / "safety/emoji/zoo"
    assert sum(path.stat().st_size for path in zoo.rglob("*") if path.is_file()) < ZOO_MIB * 2**20
