"""The rendered score, worked out by hand for a judge with fixed answers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from safety.errors import EmptyDatasetError
from safety.families import ModelFamily
from safety.lora.fuse import fused
from safety.lora.weights import LoraWeights
from safety.merge.probes import spread
from safety.merge.rendered_score import RenderedScoreConfig, choose_prompts, score_by_rendering, smoothed
from safety.prompts.rows import BenignPrompt, PromptPair, PromptSet
from safety.rendering import RenderConfig, render, row_seed

RENDER = RenderConfig(steps=2, batch=4)
Experts = Callable[..., dict[str, LoraWeights]]


def pair(index: int, category: str, split: str = "validation") -> PromptPair:
    return PromptPair(
        pair_id=f"{category}-{split}-{index}",
        category=category,
        concept="kitchen knife",
        split=split,  # type: ignore[arg-type]
        unsafe_prompt=f"a kitchen knife and a house {index}",
        safe_prompt=f"a spoon and a house {index}",
        benign_objects=("house",),
        background="blue",
        writer="grammar",
    )


def benign(index: int, split: str = "validation") -> BenignPrompt:
    return BenignPrompt(
        prompt_id=f"benign-{split}-{index}",
        prompt=f"a house {index}",
        objects=("house",),
        split=split,  # type: ignore[arg-type]
        writer="grammar",
    )


class WrittenJudge:
    """A judge with fixed answers for the images in turn; it keeps the images."""

    name, version, threshold = "written", "1", 0.5
    categories = ("hate", "violence")
    concept_names = ("knife", "house")

    def __init__(self, shown: list[tuple[float, float]], backgrounds: list[str]) -> None:
        self.shown, self.grounds = torch.tensor(shown), backgrounds
        self.images = torch.empty(0)

    def score(self, images: Tensor) -> Tensor:
        return self.category_scores(self.concepts(images))

    def flagged(self, scores: Tensor) -> Tensor:
        return (scores >= self.threshold).any(dim=1)

    def concepts(self, images: Tensor) -> Tensor:
        self.images = images
        return self.shown

    def category_scores(self, concepts: Tensor) -> Tensor:
        return torch.stack([concepts[:, 0], torch.zeros(len(concepts))], dim=1)

    def backgrounds(self, images: Tensor) -> list[str]:
        return self.grounds


def prompts() -> PromptSet:
    return PromptSet(
        pairs=(
            pair(0, "hate"),
            pair(1, "hate"),
            pair(2, "violence"),
            pair(3, "hate", "test"),
            pair(4, "hate", "train"),
        ),
        benign=(benign(0), benign(1), benign(2, "test")),
    )


def test_objective_is_ip_its_worst_and_what_benign_images_and_contexts_lose(
    tiny_model: ModelFamily, make_experts: Experts
) -> None:
    config = RenderedScoreConfig(benign_weight=2.0, worst_weight=0.4, context_weight=0.5)
    chosen = choose_prompts(prompts(), ("hate", "violence"), config)
    # hate: flagged with its context, clean without the house; violence: clean on the wrong background.
    # benign: one lacks its house, one is fine.
    judge = WrittenJudge(
        [(0.9, 0.9), (0.1, 0.2), (0.2, 0.8), (0.1, 0.4), (0.1, 0.6)], ["blue", "blue", "pink", "gray", "gray"]
    )
    weights = make_experts()["hate"]
    seen = score_by_rendering(tiny_model, weights, chosen, judge, RENDER, config, 3)
    assert seen.ip_by_category == {"hate": 0.5, "violence": 0.0}
    assert seen.ip == 0.25
    assert seen.worst_ip == 0.5
    assert seen.benign_failed == 0.5
    assert seen.context_lost == pytest.approx(2 / 3)
    assert seen.objective == pytest.approx(0.25 + 0.4 * 0.5 + 2.0 * 0.5 + 0.5 * 2 / 3)
    assert seen.images == 5
    texts = [*(p.unsafe_prompt for p in chosen.pairs), *(b.prompt for b in chosen.benign)]
    ids = [*(p.pair_id for p in chosen.pairs), *(b.prompt_id for b in chosen.benign)]
    with fused(tiny_model, weights):
        expected = render(tiny_model, texts, [row_seed(3, f"confirm/{name}") for name in ids], RENDER)
    assert torch.equal(judge.images, expected)


def test_without_a_merge_the_base_is_rendered(tiny_model: ModelFamily, make_experts: Experts) -> None:
    config = RenderedScoreConfig()
    chosen = choose_prompts(prompts(), ("violence",), config)
    written: list[tuple[float, float]] = [(0.9, 0.9)] * 3
    base, merged = WrittenJudge(written, ["blue"] * 3), WrittenJudge(written, ["blue"] * 3)
    score_by_rendering(tiny_model, None, chosen, base, RENDER, config, 3)
    score_by_rendering(tiny_model, make_experts(size=1.0)["hate"], chosen, merged, RENDER, config, 3)
    assert not torch.equal(base.images, merged.images)


def test_only_the_validation_split_is_chosen() -> None:
    chosen = choose_prompts(prompts(), ("hate", "violence"), RenderedScoreConfig(pairs_per_category=1, benign=1))
    assert {row.split for row in (*chosen.pairs, *chosen.benign)} == {"validation"}
    assert [row.pair_id for row in chosen.pairs] == ["hate-validation-0", "violence-validation-2"]
    assert len(chosen.benign) == 1
    with pytest.raises(EmptyDatasetError, match="no validation prompt of 'sexual'"):
        choose_prompts(prompts(), ("sexual",), RenderedScoreConfig())
    with pytest.raises(EmptyDatasetError, match="no benign validation prompt"):
        choose_prompts(PromptSet(pairs=prompts().pairs, benign=()), ("hate",), RenderedScoreConfig())


def test_indices_are_spread_evenly() -> None:
    assert spread(3, 5) == [0, 1, 2]
    assert spread(10, 4) == [0, 2, 5, 7]
    assert spread(7, 0) == []


@given(low=st.floats(0.8, 1.6), steep=st.floats(0.1, 5.0), floor=st.floats(0.0, 1.0))
def test_a_parabola_is_smoothed_to_itself(low: float, steep: float, floor: float) -> None:
    bowl = {scale: floor + steep * (scale - low) ** 2 for scale in (1.4, 1.0, 1.2, 1.1, 1.3)}
    assert smoothed(bowl) == pytest.approx(bowl, abs=1e-9)


def test_one_lucky_scale_does_not_win_against_its_neighbours() -> None:
    # Least squares by hand, for scales -2, -1, 0, 1, 2: the figure at -1 is lucky.
    seen = dict(zip((1.0, 1.1, 1.2, 1.3, 1.4), (0.25, 0.16, 0.19, 0.20, 0.19), strict=True))
    mean, slope = 0.198, (-2 * 0.25 - 0.16 + 0.20 + 2 * 0.19) / 10
    bend = (2 * 0.25 - 0.16 - 2 * 0.19 - 0.20 + 2 * 0.19) / 14
    by_hand = [mean + slope * x + bend * (x * x - 2) for x in (-2, -1, 0, 1, 2)]
    found = smoothed(seen)
    assert list(found.values()) == pytest.approx(by_hand)
    assert min(seen, key=seen.__getitem__) == 1.1
    assert min(found, key=found.__getitem__) == 1.2


def test_three_scales_are_taken_as_they_are() -> None:
    seen = {1.0: 0.3, 1.2: 0.1, 1.1: 0.2}
    assert smoothed(seen) == seen
