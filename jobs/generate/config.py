"""The configuration of data generation."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from safety.base import Config
from safety.dataset.filter import PairFilterConfig
from safety.embedded import EMBEDDED_WRITER
from safety.judges.judge import JudgeConfig
from safety.prompts.writer import PromptCounts
from safety.rendering import RenderConfig

PLACEMENT = frozenset(
    {
        "actors",
        "min_actors",
        "cpus_per_actor",
        "gpus_per_actor",
        "judge_actors",
        "cpus_per_judge",
        "gpus_per_judge",
        "timeout_s",
    }
)
"""Fields of placement: they cannot change a row, so the dataset's id leaves them out."""


class GenerateConfig(Config):
    """Settings and placement of data generation: from prompts to a dataset of judged image pairs."""

    writer: str = Field(
        EMBEDDED_WRITER, description="a name in the prompt writers' registry, or 'module:class' for one's own"
    )
    counts: PromptCounts = PromptCounts()
    most: PromptCounts | None = Field(
        None,
        description="at most so many prompts of each split are used, spread over all that there are, whoever wrote them; a "
        "pilot's (run --pilot). None: all",
    )
    render: RenderConfig = RenderConfig()
    judge: JudgeConfig = JudgeConfig()
    filter: PairFilterConfig = PairFilterConfig()
    group_size: int = Field(
        16,
        gt=0,
        description="rows of one group, which are rendered, judged and stored together as a shard of the dataset",
    )
    threads: int = Field(1, gt=0, description="CPU threads of one diffusion actor; an image depends on it")
    actors: int = Field(2, gt=0, description="most diffusion actors at once")
    min_actors: int = Field(
        1, gt=0, description="actors that are waited for; more run as the cluster, or its autoscaler, has room"
    )
    cpus_per_actor: float = Field(1.0, ge=0)
    gpus_per_actor: float = Field(0.0, ge=0, description="may be a fraction of one GPU")
    judge_actors: int = Field(
        1, gt=0, description="one for each node that renders keeps images on the node that rendered them"
    )
    cpus_per_judge: float = Field(
        0.0, ge=0, description="0 lets a light judge run beside the diffusion actors, or on a head without CPUs"
    )
    gpus_per_judge: float = Field(0.0, ge=0)
    timeout_s: float = Field(3600.0, gt=0, description="longest wait for the next finished group")

    def resources(self) -> dict[str, float]:
        """Return the resources of one diffusion actor, as Ray counts them."""
        return {"CPU": self.cpus_per_actor, "GPU": self.gpus_per_actor}

    def judge_resources(self) -> dict[str, float]:
        """Return the resources of one judge."""
        return {"CPU": self.cpus_per_judge, "GPU": self.gpus_per_judge}

    def pair_resources(self) -> dict[str, float]:
        """Return the resources of a diffusion actor and a judge together, the least that can make progress."""
        judge = self.judge_resources()
        return {name: amount + judge[name] for name, amount in self.resources().items()}

    def recipe(self) -> dict[str, Any]:
        """Return the settings that the rows depend on."""
        # Without a limit as if there were no such setting.
        left_out = {"most"} if self.most is None else set()
        return self.model_dump(mode="json", exclude={*PLACEMENT, *left_out})
