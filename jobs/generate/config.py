"""The configuration of data generation."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from safety.base import Config
from safety.dataset.filter import PairFilterConfig
from safety.embedded import EMBEDDED_WRITER
from safety.judges.config import JudgeConfig
from safety.prompts.writer import PromptCounts
from safety.rendering import RenderConfig

PLACEMENT = frozenset(
    {"actors", "cpus_per_actor", "gpus_per_actor", "judge_actors", "cpus_per_judge", "gpus_per_judge", "timeout_s"}
)
"""Fields that say where the work runs: they cannot change a row, so the dataset's id leaves them out."""


class GenerateConfig(Config):
    """How prompts become a dataset of judged image pairs."""

    writer: str = Field(EMBEDDED_WRITER, description="a name in the prompt writers' registry")
    counts: PromptCounts = PromptCounts()
    render: RenderConfig = RenderConfig()
    judge: JudgeConfig = JudgeConfig()
    filter: PairFilterConfig = PairFilterConfig()
    group_size: int = Field(16, gt=0, description="rows of one unit of work: rendered, judged and stored at once")
    shard_rows: int = Field(1000, gt=0, description="rows of one published parquet file")
    threads: int = Field(1, gt=0, description="CPU threads of one diffusion actor; part of what a picture depends on")
    actors: int = Field(2, gt=0, description="most diffusion actors at once")
    cpus_per_actor: float = Field(1.0, ge=0)
    gpus_per_actor: float = Field(0.0, ge=0, description="may be a share of one GPU")
    judge_actors: int = Field(
        1, gt=0, description="one for each node that renders keeps the pictures on the node that rendered them"
    )
    cpus_per_judge: float = Field(
        0.0, ge=0, description="0 lets a light judge run beside the diffusion actors, or on a head without CPUs"
    )
    gpus_per_judge: float = Field(0.0, ge=0)
    timeout_s: float = Field(3600.0, gt=0, description="longest wait for the next finished group")

    def recipe(self) -> dict[str, Any]:
        """Return the settings that the rows depend on."""
        return self.model_dump(mode="json", exclude=set(PLACEMENT))
