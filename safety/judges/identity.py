"""The identity of a judge, for every figure that rests on its scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

from safety.base import Config

if TYPE_CHECKING:
    from safety.judges.judge import Judge


class JudgeIdentity(Config):
    """Name, version and threshold: two figures compare only if these are equal."""

    name: str
    version: str
    threshold: float


def identity_of(judge: Judge) -> JudgeIdentity:
    """Return a loaded judge's identity."""
    return JudgeIdentity(name=judge.name, version=judge.version, threshold=judge.threshold)
