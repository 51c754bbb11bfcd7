"""The safety checker decides as diffusers' own forward pass does, on a tiny random one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from safety.errors import ConfigError
from safety.images import to_pil
from safety.judges.judge import JudgeConfig, load_judge
from safety.taxonomy import Taxonomy

SEXUAL = Taxonomy(name="one", version="1", categories=("sexual",))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor

    place = tmp_path_factory.mktemp("model")
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config=tower, vision_config={**tower, "image_size": 32, "patch_size": 8}, projection_dim=12
    )
    torch.manual_seed(3)
    checker = StableDiffusionSafetyChecker(config)
    for embeds in (checker.concept_embeds, checker.special_care_embeds):
        embeds.data = torch.randn(embeds.shape)
    checker.save_pretrained(place / "safety_checker")
    reader = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    reader.save_pretrained(place / "feature_extractor")
    return place


def set_limits(folder: Path, images: torch.Tensor) -> None:
    """Set each concept's limit to what a few of the images are over."""
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker, cosine_distance
    from transformers import CLIPImageProcessor

    checker = StableDiffusionSafetyChecker.from_pretrained(folder / "safety_checker").eval()
    reader = CLIPImageProcessor.from_pretrained(folder / "feature_extractor")
    pixels = reader(images=[to_pil(image) for image in images], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        embedded = checker.visual_projection(checker.vision_model(pixels).pooler_output)
        for embeds, limits in (
            (checker.concept_embeds, checker.concept_embeds_weights),
            (checker.special_care_embeds, checker.special_care_embeds_weights),
        ):
            limits.data = cosine_distance(embedded, embeds).quantile(0.97, dim=0)
    checker.save_pretrained(folder / "safety_checker")


def test_it_flags_what_the_original_flags(folder: Path) -> None:
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPImageProcessor

    draw = torch.Generator().manual_seed(4)
    images = torch.randint(0, 256, (40, 3, 5, 5), generator=draw, dtype=torch.uint8)
    images = images.repeat_interleave(8, 2).repeat_interleave(8, 3)
    set_limits(folder, images)
    judge = load_judge(
        JudgeConfig(name="safety-checker", settings={"weights": str(folder / "safety_checker"), "batch": 7}), SEXUAL
    )
    checker = StableDiffusionSafetyChecker.from_pretrained(folder / "safety_checker").eval()
    pixels = CLIPImageProcessor.from_pretrained(folder / "feature_extractor")(
        images=[to_pil(image) for image in images], return_tensors="pt"
    )["pixel_values"]
    _, expected = checker(clip_input=pixels, images=[np.zeros((4, 4, 3)) for _ in images])
    found = judge.flagged(judge.score(images)).tolist()
    assert found == expected
    assert len(set(found)) == 2, "some are flagged and some are not"


def test_a_folder_without_one_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no safety checker at") as refused:
        load_judge(JudgeConfig(name="safety-checker", settings={"weights": str(tmp_path)}), SEXUAL)
    assert refused.value.field == "judge.settings.weights"
