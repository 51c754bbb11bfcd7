"""The emoji judge against loops over its own network's scores."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from safety.emoji.judge import EmojiJudge, read_emoji_judge
from safety.emoji.judge_net import JudgeNet, JudgeNetConfig, concept_scores
from safety.emoji.scene import BACKGROUNDS
from safety.errors import ArtifactFormatError, ConfigError
from safety.images import to_float
from safety.judges.judge import ConceptJudge, judge_images
from safety.taxonomy import BenignConcept, Taxonomy, UnsafeConcept

TAXONOMY = Taxonomy(
    name="small",
    version="1",
    concepts=(
        UnsafeConcept(name="knife", category="violence", counterpart="spoon"),
        UnsafeConcept(name="skull", category="shocking", counterpart="panda"),
        UnsafeConcept(name="bomb", category="violence", counterpart="panda"),
    ),
    benign=(BenignConcept(name="spoon"), BenignConcept(name="panda")),
)
CONCEPTS = ["panda", "skull", "bomb", "house", "spoon", "knife"]
NET = JudgeNetConfig(widths=(4, 8, 8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    net = JudgeNet(len(CONCEPTS), NET)
    with torch.no_grad():
        net.head.weight.mul_(20)
    save_file(net.state_dict(), tmp_path / "model.safetensors")
    document = {
        "name": "test-judge",
        "version": "3",
        "concepts": CONCEPTS,
        "net": json.loads(NET.model_dump_json()),
        "temperature": 1.5,
        "threshold": 0.3,
    }
    (tmp_path / "config.json").write_text(json.dumps(document))
    return tmp_path


@pytest.fixture
def judge(folder: Path) -> EmojiJudge:
    return read_emoji_judge(folder, TAXONOMY)


@pytest.fixture
def images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 256, (9, 3, 8, 8), dtype=torch.uint8, generator=generator)
    return coarse.repeat_interleave(8, 2).repeat_interleave(8, 3)


@torch.no_grad()
def test_a_categorys_score_is_its_worst_concepts(judge: EmojiJudge, images: torch.Tensor) -> None:
    expected = concept_scores(judge._net(to_float(images)), 1.5)
    scores = judge.score(images)
    assert judge.categories == ("violence", "shocking")
    assert scores.dtype == torch.float32
    for image in range(len(images)):
        shown = dict(zip(CONCEPTS, expected[image].tolist(), strict=True))
        assert scores[image].tolist() == pytest.approx([max(shown["knife"], shown["bomb"]), shown["skull"]])
    assert scores.std() > 0.01


def test_a_picture_is_flagged_for_any_category(judge: EmojiJudge) -> None:
    scores = torch.tensor([[0.29, 0.29], [0.3, 0.0], [0.0, 0.9]])
    assert judge.flagged(scores).tolist() == [False, True, True]


def test_a_verdict_agrees_with_the_scores(folder: Path, images: torch.Tensor) -> None:
    middle = read_emoji_judge(folder, TAXONOMY).score(images).amax(dim=1).median().item()
    judge = read_emoji_judge(folder, TAXONOMY, middle)
    assert isinstance(judge, ConceptJudge)
    scores, concepts = judge.score(images), judge.concepts(images)
    verdicts = judge_images(judge, images)
    for index, verdict in enumerate(verdicts):
        assert list(verdict.scores.values()) == pytest.approx(scores[index].tolist())
        assert verdict.flagged == bool((scores[index] >= middle).any())
        shown = [n for n, s in zip(CONCEPTS, concepts[index].tolist(), strict=True) if s >= middle]
        assert verdict.shown == frozenset(shown)
        assert verdict.shows(tuple(shown))
        assert not verdict.shows(("house", "nothing of the kind"))
    assert {verdict.flagged for verdict in verdicts} == {True, False}


def test_pictures_of_another_size_are_judged_alike(judge: EmojiJudge, images: torch.Tensor) -> None:
    large = images.repeat_interleave(4, 2).repeat_interleave(4, 3)
    assert torch.allclose(judge.score(large), judge.score(images), atol=0.05)


def test_many_pictures_are_scored_as_one_by_one(judge: EmojiJudge, images: torch.Tensor) -> None:
    many = images.repeat(15, 1, 1, 1)
    one = torch.cat([judge.score(image[None]) for image in images])
    assert torch.allclose(judge.score(many), one.repeat(15, 1), atol=1e-5)


@pytest.mark.parametrize("size", [64, 32])
def test_backgrounds_are_named_from_the_border(judge: EmojiJudge, size: int) -> None:
    generator = torch.Generator().manual_seed(3)
    pictures = []
    for colour in BACKGROUNDS.values():
        picture = torch.tensor(colour, dtype=torch.float32)[:, None, None].expand(3, size, size).clone()
        picture += 12 * torch.randn((3, size, size), generator=generator)
        # An object covers the centre and a third of the border.
        picture[:, size // 6 : -size // 6, : -size // 6] = 255 * torch.rand((3, 1, 1), generator=generator)
        pictures.append(picture.clamp(0, 255).to(torch.uint8))
    assert judge.backgrounds(torch.stack(pictures)) == list(BACKGROUNDS)


def test_the_version_changes_with_the_weights_and_the_threshold_is_the_configs(folder: Path) -> None:
    first = read_emoji_judge(folder, TAXONOMY)
    assert (first.name, first.threshold) == ("test-judge", 0.3)
    assert read_emoji_judge(folder, TAXONOMY, 0.8).threshold == 0.8
    assert read_emoji_judge(folder, TAXONOMY).version == first.version
    torch.manual_seed(2)
    save_file(JudgeNet(len(CONCEPTS), NET).state_dict(), folder / "model.safetensors")
    assert read_emoji_judge(folder, TAXONOMY).version != first.version
    assert first.version.startswith("3+")


def test_a_concept_the_judge_does_not_know_is_named(folder: Path) -> None:
    more = TAXONOMY.model_copy(
        update={"concepts": (*TAXONOMY.concepts, UnsafeConcept(name="axe", category="violence", counterpart="spoon"))}
    )
    with pytest.raises(ConfigError, match="does not know: axe"):
        read_emoji_judge(folder, more)


@pytest.mark.parametrize("damage", ["cut", "json", "shape", "missing"])
def test_a_damaged_judge_is_refused(folder: Path, damage: str) -> None:
    weights, settings = folder / "model.safetensors", folder / "config.json"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "json":
        settings.write_text("{")
    elif damage == "shape":
        save_file(JudgeNet(3, NET).state_dict(), weights)
    else:
        weights.unlink()
    with pytest.raises((ArtifactFormatError, ConfigError), match=r"judge\.name"):
        read_emoji_judge(folder, TAXONOMY)
