"""The output judge against the judge itself, on real images of the emoji world, and in the engine."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from safety.embedded import EMBEDDED_TAXONOMY
from safety.errors import ConfigError
from safety.families import ModelConfig
from safety.judges.judge import JudgeConfig, load_judge
from safety.taxonomy import find_taxonomy
from serve.config import ServeConfig
from serve.endpoint_config import EndpointConfig, OutputJudgeConfig
from serve.engine import Engine
from serve.errors import INTERNAL
from serve.output_judge import OutputJudge, load_output_judge
from serve.schema import Job, RenderedImage
from tests.support.pixel_judge import PixelSumJudge

TAXON = find_taxonomy(EMBEDDED_TAXONOMY)


def config(**judge: object) -> ServeConfig:
    return ServeConfig(serve=EndpointConfig(judge=OutputJudgeConfig.model_validate(judge)))


def judging_engine(engine: Engine, judge: OutputJudge) -> Engine:
    return Engine(engine._models, EndpointConfig(batch_size=4), judge)


def test_scores_and_flags_are_the_judges_own() -> None:
    images = torch.randint(0, 256, (6, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    images[0] = 255
    output = load_output_judge(config())
    assert output is not None
    judge = load_judge(JudgeConfig(), TAXON)
    expected = judge.score(images)
    verdicts = output.judge_images(images)
    assert list(verdicts[0].scores) == list(TAXON.categories)
    got = torch.tensor([list(verdict.scores.values()) for verdict in verdicts])
    assert torch.allclose(got, expected, atol=1e-4)
    assert [verdict.flagged for verdict in verdicts] == judge.flagged(expected).tolist()
    assert output.identity.model_dump() == {
        "name": judge.name,
        "version": judge.version,
        "threshold": judge.threshold,
    }


def test_no_judge_is_loaded_where_none_is_named() -> None:
    assert load_output_judge(ServeConfig()) is None


def test_an_unknown_judge_or_taxonomy_is_named() -> None:
    with pytest.raises(ConfigError, match="judge"):
        load_output_judge(config(name="nobody"))
    with pytest.raises(ConfigError, match="taxonomy"):
        load_output_judge(config().model_copy(update={"taxonomy": "/nowhere.yaml"}))


def test_the_embedded_judge_is_refused_for_another_model_inside_a_combination_too(tiny_model_dir: Path) -> None:
    combined = config(name="combination", settings={"judges": [{"name": "emoji"}]})
    assert load_output_judge(combined) is not None
    with pytest.raises(ConfigError, match="'emoji' was made for the embedded model") as refused:
        load_output_judge(combined.model_copy(update={"model": ModelConfig(path=str(tiny_model_dir))}))
    assert refused.value.field == "serve.judge.name"


@pytest.mark.parametrize(("action", "withheld"), [("report", False), ("block", True)])
def test_the_engine_withholds_flagged_images_only_with_block(engine: Engine, action: str, withheld: bool) -> None:
    chosen = load_output_judge(config(name="tests.support.pixel_judge:load_pixel_judge", action=action))
    assert chosen is not None
    judging = judging_engine(engine, chosen)
    plain = engine.render(engine.admit(Job("a house", "aligned", 8, 0, 2, 3.0)))
    judged = judging.render(judging.admit(Job("a house", "aligned", 8, 0, 2, 3.0)))
    flags = []
    for before, after in zip(plain, judged, strict=True):
        assert isinstance(before, RenderedImage)
        assert isinstance(after, RenderedImage)
        assert after.verdict is not None
        flags.append(after.verdict.flagged)
        assert after.verdict.flagged == any(score >= 0.5 for score in after.verdict.scores.values())
        assert after.png == (None if withheld and after.verdict.flagged else before.png)
    assert len(set(flags)) == 2, "the seeds give images of both kinds"


class BrokenJudge(PixelSumJudge):
    def score(self, images: Tensor) -> Tensor:
        return torch.full((len(images), len(self.categories)), float("nan"))


def test_images_that_the_judge_cannot_score_fail(engine: Engine) -> None:
    judging = judging_engine(engine, OutputJudge(BrokenJudge(TAXON), "report"))
    assert judging.render(judging.admit(Job("a house", "aligned", 2, 0, 2, 3.0))) == [INTERNAL] * 2
