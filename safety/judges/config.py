"""The choice of an image judge in a config. Importing it loads no torch, so a web server can check its config."""

from __future__ import annotations

from pydantic import Field

from safety.base import Config
from safety.embedded import EMBEDDED_JUDGE


class JudgeConfig(Config):
    """The judge that scores images, and its threshold."""

    name: str = Field(EMBEDDED_JUDGE, description="a name in the judges' registry, or 'module:loader' for one's own")
    threshold: float | None = Field(None, gt=0, lt=1, description="None is the judge's own")
