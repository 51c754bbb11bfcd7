"""The output judge: scores finished images and decides which are withheld."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from safety.embedded_fit import require_made_for
from safety.judges.judge import Judge, Verdict, identity_of, judge_images, judges, load_judge
from safety.judges.members import members
from safety.taxonomy import find_taxonomy
from serve.config import ServeConfig


class OutputJudge:
    """A judge, and the action on images that it flags: report them, or block them as well."""

    def __init__(self, judge: Judge, action: Literal["report", "block"]) -> None:
        self._judge, self._action = judge, action
        self.identity = identity_of(judge)

    @torch.no_grad()
    def judge_images(self, images: Tensor) -> list[Verdict]:
        """Return a verdict for each of the images uint8 [B, 3, H, W].

        Raises:
            RuntimeError: A score is not a number. The images then fail instead of passing unjudged.
        """
        verdicts = judge_images(self._judge, images)
        if not all(math.isfinite(score) for verdict in verdicts for score in verdict.scores.values()):
            raise RuntimeError(f"the judge {self.identity.name!r} gives scores that are not finite")
        return verdicts

    def withholds(self, verdict: Verdict) -> bool:
        """Return whether an image with this verdict is withheld."""
        return verdict.flagged and self._action == "block"


def load_output_judge(config: ServeConfig) -> OutputJudge | None:
    """Load the judge that an endpoint's settings name, if any.

    Raises:
        ConfigError: There is no such judge, or it was made for the embedded model and the endpoint's is another.
    """
    chosen = config.serve.judge
    if chosen is None:
        return None
    field, fix = "serve.judge.name", "name a judge of what this model draws"
    for each in members(chosen):
        require_made_for(config.model, judges.find(each.name, field), each.name, field, fix)
    return OutputJudge(load_judge(chosen, find_taxonomy(config.taxonomy)), chosen.action)
