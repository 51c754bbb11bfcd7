"""The configuration of prompts that a language model writes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

from pydantic import Field

from safety.base import Config
from safety.prompts.llm.checks import PairChecksConfig
from safety.prompts.llm.embedding import EmbeddingConfig
from safety.prompts.llm.engines.engine import EngineConfig, engines
from safety.prompts.llm.instructions import load_instructions

if TYPE_CHECKING:
    AnyEngine = EngineConfig
else:
    # Built from the registry, so that a new engine is one file.
    AnyEngine = Annotated[
        Union[tuple(kind.config_type for kind in engines.values())],  # noqa: UP007
        Field(discriminator="engine"),
    ]

PLACEMENT = frozenset({"actors", "cpus_per_actor", "gpus_per_actor", "timeout_s"})
"""Fields of placement: they cannot change a prompt."""


class LlmWriterConfig(Config):
    """Pairs of the taxonomy's concepts, written by a language model."""

    engine: AnyEngine = Field(description="the language model, and how it is asked")
    per_concept: int = Field(20, ge=1, description="pairs of each concept")
    rewrite: Literal["whole", "phrase"] = Field(
        "whole",
        description="whole: the model writes the safe prompt as a whole. phrase: it names what stands in the concept's place, "
        "and all other words stay; for small models, which copy or invent when they rewrite",
    )
    candidates: int = Field(
        3, ge=1, description="safe counterparts drawn of each unsafe prompt; the closest that passes is taken"
    )
    rounds: int = Field(
        4, ge=1, description="how often what a concept still lacks is drawn again, before it stays with fewer pairs"
    )
    checks: PairChecksConfig = PairChecksConfig()
    embedding: EmbeddingConfig | None = Field(
        None, description="sentence embeddings, to find prompts that say nearly the same; none: only exact repetitions"
    )
    instructions: Path | None = Field(None, description="a YAML file of what the model is told; none: the embedded one")
    threads: int = Field(1, gt=0, description="CPU threads of one actor; an answer may depend on it")
    actors: int = Field(1, gt=0, description="most language models at once")
    cpus_per_actor: float = Field(1.0, ge=0)
    gpus_per_actor: float = Field(0.0, ge=0, description="may be a fraction of one GPU")
    timeout_s: float = Field(3600.0, gt=0, description="longest wait for the next concept's drafts")

    def resources(self) -> dict[str, float]:
        """Return the resources of one actor, as Ray counts them."""
        return {"CPU": self.cpus_per_actor, "GPU": self.gpus_per_actor}

    def recipe(self) -> dict[str, Any]:
        """Return what the drafts depend on, contents of files by hash or in full.

        Raises:
            ConfigError: There is no such language model, or the instructions cannot be read.
        """
        left_out = {*PLACEMENT, "engine", "embedding", "instructions"}
        return {
            **self.model_dump(mode="json", exclude=left_out),
            "engine": self.engine.recipe(),
            "embedding": None if self.embedding is None else self.embedding.recipe(),
            "instructions": load_instructions(self.instructions).model_dump(mode="json"),
        }
