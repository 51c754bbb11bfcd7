"""A run: one YAML file that composes the components' own configs, validated before anything starts."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import Field, ValidationError, model_validator

from cluster.session import ClusterConfig
from cluster.store.config import StoreConfig
from jobs.evaluate.config import EvaluateConfig
from jobs.generate.config import GenerateConfig
from jobs.merge.config import ConsolidateConfig, MergeConfig
from jobs.release.config import ReleaseConfig
from jobs.run.gpu_settings import with_gpus
from jobs.run.judge_settings import with_judge
from jobs.train.config import CONSOLIDATED, TrainConfig
from safety.base import Config
from safety.dataset.summary import BENIGN
from safety.documents import explain
from safety.embedded import EMBEDDED_TAXONOMY
from safety.errors import ConfigError
from safety.evaluation.ip import OVERALL
from safety.evaluation.plan import ALL_SINGLE, BASE, MERGED
from safety.families.family import ModelConfig
from safety.judges.judge import JudgeConfig
from safety.prompts.config import PromptsConfig
from safety.prompts.rows import slug
from safety.taxonomy import Taxonomy, find_taxonomy
from serve.config import read_run
from serve.endpoint_config import EndpointConfig

RUN_FILE = "run.yaml"
"""The name of a run's filled-in config in its output folder."""

RENAMED = {
    "train.expert.distinct_steps": "train.expert.distinct_batches",
    "consolidate.distinct_steps": "consolidate.distinct_batches",
    "generate.shard_rows": "generate.group_size, since a shard is a group",
    "generate.counts.benign_text": "generate.counts.benign_text_only",
    "merge.co_merge.form": "merge.co_merge.max_rank, None for the exact merge",
    "merge.co_merge.svd_rank": "merge.co_merge.max_rank",
    "merge.concatenation": "merge.baselines, an entry {name: task-arithmetic, scale: ...}",
}
"""Former keys, with their names now."""
RESERVED = (BASE, MERGED, ALL_SINGLE, CONSOLIDATED, OVERALL, BENIGN)
"""Names of models and of rows in reports that stand beside the categories; a merge's name is one too."""


class RunSettings(Config):
    """A run's id, its seed, and the folder of its readable results."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$", description="unique id: lower case, digits and hyphens")
    seed: int = Field(0, ge=0)
    output: Path = Field(description="local folder for the report, metrics and the filled-in config")


class RunConfig(Config):
    """One run: the configs of its stages."""

    run: RunSettings
    cluster: ClusterConfig = ClusterConfig()
    store: StoreConfig = StoreConfig()
    model: ModelConfig = ModelConfig()
    placement: Literal["auto", "fixed"] = Field(
        "auto",
        description="auto: with the model on a GPU, a GPU for each process that holds it, as many processes as the cluster "
        "has GPUs, and more workers per expert where GPUs are left; what is set is kept. fixed: all as set. On a CPU both "
        "are the same",
    )
    taxonomy: str = Field(EMBEDDED_TAXONOMY, description=f"{EMBEDDED_TAXONOMY!r}, or a YAML file")
    prompts: PromptsConfig | None = Field(
        None, description="sources of the prompts; none: generate.writer writes them from the taxonomy's concepts"
    )
    judge: JudgeConfig | None = Field(
        None,
        description="the judge of every stage that names none of its own: generate.judge, merge.judge, evaluate.judge",
    )
    generate: GenerateConfig = GenerateConfig()
    train: TrainConfig = TrainConfig()
    merge: MergeConfig = MergeConfig()
    consolidate: ConsolidateConfig | None = Field(
        None, description="how the merge is trained on before it is released; none: it is released as it was merged"
    )
    evaluate: EvaluateConfig = EvaluateConfig()
    release: ReleaseConfig = ReleaseConfig()
    serve: EndpointConfig = EndpointConfig()

    @property
    def base_name(self) -> str:
        """Return the base model's name on cards: its id on a hub where the run gives it, else its path."""
        return self.release.base_model or self.model.path

    @model_validator(mode="before")
    @classmethod
    def _filled_in(cls, document: Any) -> Any:
        return with_judge(with_gpus(document))

    @model_validator(mode="after")
    def _base_can_be_divided(self) -> RunConfig:
        if self.train.shard_base and self.model.quantize != "none":
            raise ValueError(
                f"train.shard_base cannot divide weights of {self.model.quantize}; set it to false, or model.quantize to 'none'"
            )
        return self

    @model_validator(mode="after")
    def _consolidation_can_be_shared(self) -> RunConfig:
        for workers in range(self.train.min_workers or self.train.workers, self.train.workers + 1):
            self.check_parts(workers)
        return self

    def check_parts(self, workers: int) -> None:
        """Raise ValueError when the steps of an expert, or of the consolidation, cannot be spread evenly over workers."""
        self.train.expert.check_parts(workers)
        if self.consolidate is not None:
            try:
                self.consolidate.check_parts(self.train.expert, workers)
            except ValueError as error:
                raise ValueError(f"consolidate.{error}") from None

    def load_taxonomy(self) -> Taxonomy:
        """Return the run's taxonomy.

        Raises:
            ConfigError: Its file is missing or wrong, or a category is called as another model or row of the report.
        """
        taxonomy = find_taxonomy(self.taxonomy)
        reserved = {*RESERVED, *self.merge.merges()}
        # As in file names and ids, which leave out case and punctuation.
        taken = [name for name in taxonomy.categories if slug(name) in map(slug, reserved)]
        if taken:
            raise ConfigError(
                f"a category is called {taken[0]!r}, as are results of every run",
                field="taxonomy.concepts.category",
                fix=f"give it another name than: {', '.join(sorted(reserved))}",
            )
        return taxonomy

    def write(self, folder: Path) -> Path:
        """Write the config with every default filled in to ``folder/run.yaml``."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / RUN_FILE
        path.write_text(
            yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True), encoding="utf-8"
        )
        return path


def load_run(path: Path) -> RunConfig:
    """Read and validate a run; raise ConfigError that names each wrong field and, for an unknown key, the right one."""
    document = read_run(path)
    try:
        return RunConfig.model_validate(document)
    except ValidationError as error:
        problems = [_explain(problem) for problem in error.errors(include_url=False, include_input=False)]
        fields = ", ".join(name for name, _, _ in problems)
        messages = "; ".join(f"{name}: {message}" for name, message, _ in problems)
        fixes = "; ".join(dict.fromkeys(fix for _, _, fix in problems))
        raise ConfigError(f"{path}: {messages}", field=fields, fix=fixes) from None


def _explain(problem: Any) -> tuple[str, str, str]:
    """Return the dotted field, the message and the fix of one of pydantic's errors."""
    location = [str(part) for part in problem["loc"]]
    field = ".".join(location) or "the file"
    if problem["type"] != "extra_forbidden":
        return explain(problem)
    if field in RENAMED:
        return field, "unknown key", f"it is called {RENAMED[field]} now"
    known = _known_keys(location[:-1])
    near = difflib.get_close_matches(location[-1], known, n=1)
    others = f", or use one of: {', '.join(known)}" if known else ""
    fix = f"did you mean {near[0]!r}?" if near else f"remove it{others}"
    return field, "unknown key", fix


def _known_keys(location: list[str]) -> list[str]:
    """Return the keys of the config at a dotted location, which has numbers in lists and the tags of choices."""
    models: list[Any] = [RunConfig]
    for part in location:
        fields = [model.model_fields[part] for model in models if part in model.model_fields]
        tagged = [model for model in models if any(field.default == part for field in model.model_fields.values())]
        if fields:
            models = [model for field in fields for model in _models(field.annotation)]
        elif not part.isdigit():
            models = tagged
    return list(dict.fromkeys(name for model in models for name in model.model_fields))


def _models(annotation: Any) -> list[Any]:
    """Return the configs that a setting may hold: itself, or in a list, a union or an optional one."""
    if hasattr(annotation, "model_fields"):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]
