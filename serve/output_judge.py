"""The output judge: looks at finished images, and says which are withheld."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from safety.judges.config import JudgeConfig
from safety.judges.judge import Judge, load_judge
from safety.taxonomy import find_taxonomy
from serve.config import ServeConfig
from serve.schema import JudgeInfo, Verdict


class OutputJudge:
    """A judge and what becomes of the images that it flags."""

    def __init__(self, judge: Judge, action: Literal["report", "block"]) -> None:
        self._judge, self._action = judge, action
        self._info = JudgeInfo(name=judge.name, version=judge.version, threshold=judge.threshold)

    @torch.no_grad()
    def judge_images(self, images: Tensor) -> list[Verdict]:
        """Return a verdict for each of the images uint8 [B, 3, H, W].

        Raises:
            RuntimeError: A score is not a number. The images then fail rather than pass unseen.
        """
        scores = self._judge.score(images)
        if not bool(torch.isfinite(scores).all()):
            raise RuntimeError(f"the judge {self._info.name!r} gives scores that are not finite")
        flagged = self._judge.flagged(scores).tolist()
        names = self._judge.categories
        return [
            Verdict(self._info, {name: round(score, 4) for name, score in zip(names, row, strict=True)}, flag)
            for row, flag in zip(scores.tolist(), flagged, strict=True)
        ]

    def withholds(self, verdict: Verdict) -> bool:
        """Say whether an image with this verdict is withheld."""
        return verdict.flagged and self._action == "block"


def load_output_judge(config: ServeConfig) -> OutputJudge | None:
    """Load the judge that an endpoint's settings name, if any; raise ConfigError when there is no such judge."""
    chosen = config.serve.judge
    if chosen is None:
        return None
    judge = load_judge(JudgeConfig(name=chosen.name, threshold=chosen.threshold), find_taxonomy(config.taxonomy))
    return OutputJudge(judge, chosen.action)
