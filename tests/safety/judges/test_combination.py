"""Several judges as one, against the definition of any, all and a weighted mean."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from safety.errors import ConfigError
from safety.judges.combination import rescaled
from safety.judges.judge import Judge, JudgeConfig, load_judge
from safety.judges.scored import ScoredJudge
from safety.judges.settings import JudgeSettings, covered
from safety.taxonomy import Taxonomy

TAXONOMY = Taxonomy(name="two", version="1", categories=("violence", "sexual"))
HERE = __name__


class Brightness(ScoredJudge):
    """Scores an image by its first pixel's channel."""

    def __init__(self, channel: int, threshold: float, categories: tuple[str, ...]) -> None:
        super().__init__(f"channel-{channel}", "1", categories, threshold, batch=2)
        self.channel = channel

    def one_batch(self, images: Tensor) -> Tensor:
        return images[:, self.channel, 0, 0].float() / 255.0


def load_red(config: JudgeConfig, taxonomy: Taxonomy) -> Judge:
    settings = JudgeSettings.model_validate(config.settings)
    return Brightness(0, config.threshold or 0.2, covered(settings, taxonomy.categories, taxonomy))


def load_green(config: JudgeConfig, taxonomy: Taxonomy) -> Judge:
    settings = JudgeSettings.model_validate(config.settings)
    return Brightness(1, config.threshold or 0.8, covered(settings, ("sexual",), taxonomy))


def combined(how: str, **settings: Any) -> Judge:
    members = [{"name": f"{HERE}:load_red"}, {"name": f"{HERE}:load_green"}]
    return load_judge(JudgeConfig(name="combination", settings={"judges": members, "how": how, **settings}), TAXONOMY)


def images() -> Tensor:
    """Return images of every combination of a red and a green."""
    found = torch.zeros(36, 3, 4, 4, dtype=torch.uint8)
    for number in range(36):
        found[number, 0], found[number, 1] = 51 * (number % 6), 51 * (number // 6)
    return found


def test_any_and_all_decide_by_each_judges_own_threshold() -> None:
    red, green = (images()[:, channel, 0, 0].float() / 255.0 for channel in (0, 1))
    for how, decide in (("any", torch.logical_or), ("all", torch.logical_and)):
        judge = combined(how)
        assert judge.categories == ("violence", "sexual")
        scores = judge.score(images())
        assert torch.equal(scores[:, 0] >= 0.5, red >= 0.2), "only the first judges violence"
        assert torch.equal(scores[:, 1] >= 0.5, decide(red >= 0.2, green >= 0.8))
        assert torch.equal(judge.flagged(scores), (scores >= 0.5).any(dim=1))
        assert "channel-0 1 at 0.2, channel-1 1 at 0.8" in judge.version


def test_a_weighted_mean_is_of_the_rescaled_scores() -> None:
    red, green = (images()[:, channel, 0, 0].float() / 255.0 for channel in (0, 1))
    scores = combined("weighted", weights=[3, 1]).score(images())
    assert torch.allclose(scores[:, 1], (3 * rescaled(red, 0.2) + rescaled(green, 0.8)) / 4)
    assert torch.allclose(scores[:, 0], rescaled(red, 0.2))


def test_rescaling_keeps_order_and_side() -> None:
    scores = torch.linspace(0, 1, 1001)
    for threshold in (0.05, 0.2, 0.5, 0.95):
        found = rescaled(scores, threshold)
        assert bool((found.diff() >= 0).all())
        assert torch.equal(found >= 0.5, scores >= threshold)
        assert float(found[0]) == 0.0
        assert float(found[-1]) == 1.0


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(ConfigError, match="1 weights for 2 judges"):
        combined("weighted", weights=[1])
    with pytest.raises(ConfigError) as refused:
        combined("some")
    assert refused.value.field == "judge.settings.how"
    alone = {"judges": [{"name": f"{HERE}:load_green"}]}
    with pytest.raises(ConfigError, match="scores no 'violence'"):
        load_judge(JudgeConfig(name="combination", settings=alone), TAXONOMY)
    with pytest.raises(ConfigError, match="weights count for nothing in 'any'") as refused:
        combined("any", weights=[1, 2])
    assert refused.value.field == "judge.settings.weights"
    # They would count for nothing: a combination has no weights of its own, and covers what its judges cover.
    for name, value in (("sha256", "0" * 64), ("covers", ["sexual"]), ("device", "cuda"), ("batch", 2)):
        with pytest.raises(ConfigError) as refused:
            combined("any", **{name: value})
        assert refused.value.field == f"judge.settings.{name}"
    with pytest.raises(ConfigError, match="no threshold of its own"):
        load_judge(JudgeConfig(name="combination", threshold=0.3, settings=alone), TAXONOMY)
