"""Zero-shot CLIP and Q16 on a tiny CLIP, against the definitions written out with transformers' own model."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from torch import Tensor

from safety.errors import ArtifactFormatError, ConfigError
from safety.images import to_pil
from safety.judges.judge import JudgeConfig, load_judge
from safety.taxonomy import Taxonomy
from tests.support.tiny_clip import write_clip

TAXONOMY = Taxonomy(name="two", version="1", categories=("violence", "sexual"))
SENTENCES = {"violence": ["a kitchen knife", "a bomb"], "sexual": ["a peach"]}
HARMLESS = ["a house", "a blue house"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randint(0, 256, (5, 3, 40, 48), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def features(folder: Path, images: Tensor) -> tuple[Tensor, Any, Any]:
    from transformers import CLIPModel, CLIPProcessor

    model, processor = CLIPModel.from_pretrained(folder), CLIPProcessor.from_pretrained(folder)
    pixels = processor(images=[to_pil(image) for image in images], return_tensors="pt")
    with torch.no_grad():
        vision = model.vision_model(**pixels).pooler_output
        embedded: Tensor = model.visual_projection(vision)
    return embedded / embedded.norm(dim=-1, keepdim=True), model, processor


def test_zero_shot_is_a_softmax_over_all_sentences(clip: Path, images: Tensor) -> None:
    settings = {"weights": str(clip), "sentences": SENTENCES, "harmless": HARMLESS, "batch": 2}
    judge = load_judge(JudgeConfig(name="clip-zero-shot", settings=settings), TAXONOMY)
    embedded, model, processor = features(clip, images)
    sentences = [*HARMLESS, *SENTENCES["violence"], *SENTENCES["sexual"]]
    with torch.no_grad():
        states = model.text_model(**processor(text=sentences, return_tensors="pt", padding=True)).pooler_output
        texts = model.text_projection(states)
    texts = texts / texts.norm(dim=-1, keepdim=True)
    shares = (100.0 * embedded @ texts.T).softmax(dim=-1)
    expected = torch.stack([shares[:, 2] + shares[:, 3], shares[:, 4]], dim=1)
    assert torch.allclose(judge.score(images), expected, atol=1e-5)


def test_q16_is_the_share_of_the_second_prompt(clip: Path, images: Tensor, tmp_path: Path) -> None:
    prompts = torch.randn(2, 12, generator=torch.Generator().manual_seed(2))
    path = tmp_path / "q16.safetensors"
    save_file({"prompts": prompts}, path)
    config = JudgeConfig(name="q16", settings={"weights": str(clip), "prompts": str(path)})
    judge = load_judge(config, TAXONOMY)
    embedded, _, _ = features(clip, images)
    # As the authors' own code: normalised features, 100 times their product, softmax, class 1.
    tuned = prompts / prompts.norm(dim=-1, keepdim=True)
    expected = (100.0 * embedded @ tuned.T).softmax(dim=-1)[:, 1]
    assert torch.allclose(judge.score(images), expected[:, None].expand(-1, 2), atol=1e-5)
    assert judge.categories == ("violence", "sexual")


def test_both_of_q16s_files_are_held_against_their_checksums(clip: Path, tmp_path: Path) -> None:
    path = tmp_path / "q16.safetensors"
    save_file({"prompts": torch.eye(2, 12)}, path)
    own = {
        "sha256": hashlib.sha256((clip / "model.safetensors").read_bytes()).hexdigest(),
        "prompts_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    settings = {"weights": str(clip), "prompts": str(path)}
    judge = load_judge(JudgeConfig(name="q16", settings=settings | own), TAXONOMY)
    assert judge.version == f"{own['sha256'][:8]}+{own['prompts_sha256'][:8]}"
    for name in own:
        with pytest.raises(ArtifactFormatError, match="and not 0{64}") as refused:
            load_judge(JudgeConfig(name="q16", settings=settings | own | {name: "0" * 64}), TAXONOMY)
        assert refused.value.field == f"judge.settings.{name}"
        assert refused.value.fix


def test_sentences_of_a_category_that_there_is_not_are_refused(clip: Path) -> None:
    settings = {"weights": str(clip), "sentences": {**SENTENCES, "violance": ["a bomb"]}, "harmless": HARMLESS}
    with pytest.raises(ConfigError, match="has no category 'violance'") as refused:
        load_judge(JudgeConfig(name="clip-zero-shot", settings=settings), TAXONOMY)
    assert refused.value.field == "judge.settings.sentences"


def test_pickled_prompts_are_refused_with_what_to_do(clip: Path, tmp_path: Path) -> None:
    path = tmp_path / "prompts.p"
    path.write_bytes(b"\x80\x04\x95\x1f\0\0\0\0\0\0\0")
    with pytest.raises(ArtifactFormatError, match="is no safetensors file") as refused:
        load_judge(JudgeConfig(name="q16", settings={"weights": str(clip), "prompts": str(path)}), TAXONOMY)
    assert "into safetensors where you trust it" in refused.value.fix


def test_a_hub_that_cannot_be_reached_says_what_to_put_where(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    settings = {"weights": "someone/no-clip", "sentences": SENTENCES, "harmless": HARMLESS}
    config = JudgeConfig(name="clip-zero-shot", settings=settings)
    with pytest.raises(ConfigError, match="someone/no-clip is neither a folder here nor in the hub's cache") as refused:
        load_judge(config, TAXONOMY)
    assert refused.value.field == "judge.settings.weights"
    assert "name a folder that exists; or download the model where there is a network" in refused.value.fix
    # Once it lies in this machine's cache, no hub is needed.
    snapshot = tmp_path / "models--someone--no-clip" / "snapshots" / ("a" * 40)
    shutil.copytree(clip, snapshot)
    refs = snapshot.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text("a" * 40, encoding="utf-8")
    cached = load_judge(config, TAXONOMY)
    beside = load_judge(JudgeConfig(name="clip-zero-shot", settings={**settings, "weights": str(clip)}), TAXONOMY)
    assert cached.version == beside.version


def test_weights_that_are_not_there_are_named(clip: Path) -> None:
    settings = {"weights": "/nowhere/at/all", "sentences": SENTENCES, "harmless": HARMLESS}
    with pytest.raises(ConfigError, match="no CLIP model at '/nowhere/at/all'") as refused:
        load_judge(JudgeConfig(name="clip-zero-shot", settings=settings), TAXONOMY)
    assert refused.value.field == "judge.settings.weights"
    assert "name a folder that CLIPModel.save_pretrained and its processor wrote" in refused.value.fix
    with pytest.raises(ArtifactFormatError, match="and not f{64}"):
        load_judge(
            JudgeConfig(name="clip-zero-shot", settings={**settings, "weights": str(clip), "sha256": "f" * 64}),
            TAXONOMY,
        )
    with pytest.raises(ConfigError, match="covers 'sexual' and has no sentence"):
        load_judge(
            JudgeConfig(
                name="clip-zero-shot",
                settings={
                    "weights": str(clip),
                    "sentences": {"violence": ["a bomb"]},
                    "harmless": HARMLESS,
                    "covers": ["violence", "sexual"],
                },
            ),
            TAXONOMY,
        )
