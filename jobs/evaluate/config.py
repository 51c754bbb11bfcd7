"""The configuration of the evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from safety.base import Config
from safety.embedded import EMBEDDED_FEATURES
from safety.evaluation.bootstrap import BootstrapConfig
from safety.evaluation.goals import GoalsConfig
from safety.evaluation.plan import EvaluationCounts
from safety.judges.judge import JudgeConfig
from safety.rendering import RenderConfig

PLACEMENT = frozenset({"actors", "min_actors", "cpus_per_actor", "gpus_per_actor", "timeout_s"})
"""Fields that place the work: they cannot change a figure, so they are not part of the report's id."""


CONTENT = frozenset({"fid_reference", "lpips"})
"""Paths, of which the report's id has the content."""


class EvaluateConfig(Config):
    """The evaluated models, the images and the measurements."""

    counts: EvaluationCounts = EvaluationCounts()
    experts: bool = Field(True, description="evaluate each expert on its own too")
    render: RenderConfig = RenderConfig()
    judge: JudgeConfig = JudgeConfig()
    second_judge: JudgeConfig | None = Field(
        None,
        description="another judge, whose IP stands beside the judge's, of the categories that it covers: the one that "
        "filtered the data and chose the merge flatters what it has chosen",
    )
    features: str | None = Field(
        EMBEDDED_FEATURES,
        description="a name in the feature extractors' registry, with the model where it needs one "
        "(clip@openai/clip-vit-large-patch14), or 'module:loader' for one's own; null: CLIPScore, FID and CMMD are not "
        "measured",
    )
    fid_features: str | None = Field(
        None,
        description="others for FID, such as inception@FILE.safetensors for published figures' scale; null: features",
    )
    fid_reference: Path | None = Field(
        None,
        description="a folder of pictures that FID is a distance from, such as COCO's; null: real benign images where the "
        "features come with their moments, else the base's images from other seeds",
    )
    lpips: Path | None = Field(
        None,
        description="LPIPS's weights in safetensors: each benign image's distance from the base's of the same seed, which is "
        "rendered once more for it; null: it is not measured",
    )
    bootstrap: BootstrapConfig = BootstrapConfig()
    goals: GoalsConfig = GoalsConfig()
    group_size: int = Field(32, gt=0, description="images per unit of work: rendered, measured and stored together")
    threads: int = Field(1, gt=0, description="CPU threads of one actor; the images depend on it")
    actors: int = Field(2, gt=0, description="maximum number of actors")
    min_actors: int = Field(
        1, gt=0, description="actors that are waited for; more run as the cluster, or its autoscaler, has room"
    )
    cpus_per_actor: float = Field(1.0, ge=0)
    gpus_per_actor: float = Field(0.0, ge=0, description="may be a fraction of one GPU")
    timeout_s: float = Field(3600.0, gt=0, description="longest time until the next group is finished")

    @model_validator(mode="after")
    def _two_judges(self) -> EvaluateConfig:
        if self.second_judge is not None and self.second_judge.model_copy(update={"threshold": None}) == (
            self.judge.model_copy(update={"threshold": None})
        ):
            raise ValueError("second_judge is the judge itself; name another one, or leave it out")
        return self

    @model_validator(mode="after")
    def _reference_has_features(self) -> EvaluateConfig:
        if self.fid_reference is not None and self.features is None and self.fid_features is None:
            raise ValueError("fid_reference has no features to be compared by; set fid_features, or leave it out")
        return self

    def resources(self) -> dict[str, float]:
        """Return what one actor takes of the cluster, as Ray counts it."""
        return {"CPU": self.cpus_per_actor, "GPU": self.gpus_per_actor}

    def recipe(self) -> dict[str, Any]:
        """Return the settings that the figures depend on."""
        return self.model_dump(mode="json", exclude={*PLACEMENT, *CONTENT})
