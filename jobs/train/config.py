"""The configuration of training."""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from safety.base import Config
from safety.evaluation.plan import ALL_SINGLE
from safety.experts.config import ExpertConfig
from safety.families.family import ModelFamily
from safety.gates import GateConfig

CONSOLIDATED = "consolidated"
"""The merged adapter that is fine-tuned on all categories at once."""
JOINT = (ALL_SINGLE, CONSOLIDATED)
"""Names of the adapters that learn the pairs of several categories together."""


class DeepSpeedConfig(Config):
    """DeepSpeed's sharding of an adapter's training among its workers; the base is divided by ``shard_base``."""

    stage: int = Field(
        0, ge=0, le=2, description="ZeRO stage: 0 nothing, 1 optimizer states, 2 gradients too; a LoRA's are small"
    )


class TrainConfig(Config):
    """The experts that are trained, their settings and their placement on the cluster."""

    expert: ExpertConfig = ExpertConfig()
    categories: tuple[str, ...] | None = Field(
        None, min_length=1, description="categories to train; none: all of the taxonomy"
    )
    gate: GateConfig | None = Field(
        GateConfig(),
        description="an expert reads only those directions of the prompt's states that belong to its own prompts, so that "
        "experts add up; none: it reads all, as where no adapted layer reads the prompt alone",
    )
    all_single: bool = Field(True, description="train one expert on all categories too, for comparison")
    workers: int = Field(
        1, gt=0, description="data-parallel workers of one expert; part of what its adapter depends on"
    )
    min_workers: int | None = Field(
        None,
        gt=0,
        description="fewest workers with which an expert goes on after a loss of nodes; none: it waits for all of them. "
        "A step's rows are the same for any number, so that only the rounding of their sum differs",
    )
    cpus_per_worker: float = Field(1.0, ge=0)
    gpus_per_worker: float = Field(0.0, ge=0, description="may be a fraction of one GPU")
    experts_per_worker: Annotated[int, Field(gt=0)] | Literal["auto"] = Field(
        "auto",
        description="experts that one worker trains one after another over one loaded base, each as if it were alone; auto: "
        "on one machine as many as share each of its places, on a cluster of several 1",
    )
    deepspeed: DeepSpeedConfig = DeepSpeedConfig()
    shard_base: bool = Field(
        False,
        description="divide the frozen base among an expert's workers, for one that does not fit into each (ZeRO stage 3, by "
        "torch's FSDP2): a block's weights are gathered while it computes. The adapter differs by rounding alone",
    )
    max_failures: int = Field(
        5,
        ge=0,
        description="restarts of one expert from its last good checkpoint, after failures that may pass; others end the run at once",
    )
    timeout_s: float = Field(3600.0, gt=0, description="longest time for all experts together")

    @model_validator(mode="after")
    def _divisible(self) -> TrainConfig:
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(f"min_workers is {self.min_workers}, over workers {self.workers}; lower it")
        for workers in range(self.min_workers or self.workers, self.workers + 1):
            self.expert.check_parts(workers)
        if self.categories is not None and len(set(self.categories)) != len(self.categories):
            raise ValueError("categories names one twice")
        return self

    def gate_on(self, model: ModelFamily | type[ModelFamily]) -> GateConfig | None:
        """Return the gate that experts of a model, or of a family's class of models, are trained behind.

        None where none of the layers that they adapt reads the prompt alone: there is nothing to gate.
        """
        return self.gate if self.expert.lora.reads_prompt(model) else None

    @property
    def shards(self) -> int:
        """Return the number of shares that a worker's base is divided into, at the fewest workers."""
        return (self.min_workers or self.workers) if self.shard_base else 1

    def device_share(self, device: str) -> float:
        """Return the share of a device's memory that one worker may take: of its GPU, or of its machine by its CPUs."""
        if device != "cpu":
            return min(1.0, self.gpus_per_worker or 1.0)
        return min(1.0, (self.cpus_per_worker or 1.0) / (os.cpu_count() or 1))

    def resources(self) -> dict[str, float]:
        """Return the resources of one worker, as Ray counts them."""
        asked = {"CPU": self.cpus_per_worker, "GPU": self.gpus_per_worker}
        return {name: amount for name, amount in asked.items() if amount > 0}

    def recipe(self, name: str) -> dict[str, Any]:
        """Return the settings that the expert called ``name`` depends on."""
        return {
            "name": name,
            "expert": self.expert.model_dump(mode="json", exclude={"checkpoint_every", "checkpointing", "micro_batch"}),
            "gate": None if self.gate is None else self.gate.model_dump(mode="json"),
            "workers": self.workers,
            # A training whose number of workers may change is not the same, to the last bit, as one with a fixed number.
            **({} if self.min_workers is None else {"min_workers": self.min_workers}),
            "deepspeed": self.deepspeed.model_dump(mode="json"),
            # Its convolutions are laid out in another way, which changes their rounding.
            **({"shard_base": True} if self.shard_base else {}),
        }
