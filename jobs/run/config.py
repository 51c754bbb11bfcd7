"""A run: one YAML file that composes the components' own configs, validated before anything starts."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from cluster.session import ClusterConfig
from cluster.store.config import StoreConfig
from jobs.evaluate.config import EvaluateConfig
from jobs.generate.config import GenerateConfig
from jobs.merge.config import MergeConfig
from jobs.merge.consolidate_config import ConsolidateConfig
from jobs.release.config import ReleaseConfig
from jobs.train.config import TrainConfig
from safety.base import Config
from safety.embedded import EMBEDDED_TAXONOMY
from safety.errors import ConfigError
from safety.families.family import ModelConfig
from safety.taxonomy import Taxonomy, find_taxonomy
from serve.endpoint_config import EndpointConfig

RUN_FILE = "run.yaml"
"""The name that a run's config has beside its outputs."""


class RunSettings(Config):
    """Who the run is: its id, its seed, and where its readable results go."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$", description="unique id: lower case, digits and hyphens")
    seed: int = Field(0, ge=0)
    output: Path = Field(description="local folder for the report, metrics and the filled-in config")


class RunConfig(Config):
    """One run, composed of its stages' configs."""

    run: RunSettings
    cluster: ClusterConfig = ClusterConfig()
    store: StoreConfig = StoreConfig()
    model: ModelConfig = ModelConfig()
    taxonomy: str = Field(EMBEDDED_TAXONOMY, description=f"{EMBEDDED_TAXONOMY!r}, or a YAML file")
    generate: GenerateConfig = GenerateConfig()
    train: TrainConfig = TrainConfig()
    merge: MergeConfig = MergeConfig()
    consolidate: ConsolidateConfig | None = Field(
        None, description="how the merge is trained on before it is released; none: it is released as it was merged"
    )
    evaluate: EvaluateConfig = EvaluateConfig()
    release: ReleaseConfig = ReleaseConfig()
    serve: EndpointConfig = EndpointConfig()

    def load_taxonomy(self) -> Taxonomy:
        """Return the run's taxonomy; raise ConfigError when its file is not there."""
        return find_taxonomy(self.taxonomy)

    def write(self, folder: Path) -> Path:
        """Write the config with every default filled in to ``folder/run.yaml``."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / RUN_FILE
        path.write_text(
            yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True), encoding="utf-8"
        )
        return path


def load_run(path: Path) -> RunConfig:
    """Read and validate a run; raise ConfigError that names each wrong field and, for a misspelt key, the nearest."""
    if not path.is_file():
        raise ConfigError(f"no file {path}", field="--config", fix="name a run's YAML, such as one of jobs/configs")
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}", field="--config", fix="mend the file's syntax") from error
    try:
        return RunConfig.model_validate(document)
    except ValidationError as error:
        problems = [_explain(problem) for problem in error.errors(include_url=False, include_input=False)]
        fields = ", ".join(name for name, _, _ in problems)
        said = "; ".join(f"{name}: {message}" for name, message, _ in problems)
        fixes = "; ".join(dict.fromkeys(fix for _, _, fix in problems))
        raise ConfigError(f"{path}: {said}", field=fields, fix=fixes) from None


def _explain(problem: Any) -> tuple[str, str, str]:
    """Return (dotted field, what is wrong, fix) of one of pydantic's errors."""
    location = [str(part) for part in problem["loc"]]
    field = ".".join(location) or "the file"
    if problem["type"] != "extra_forbidden":
        return field, problem["msg"], f"correct {field}"
    known = _known_keys(location[:-1])
    near = difflib.get_close_matches(location[-1], known, n=1)
    fix = f"did you mean {near[0]!r}?" if near else f"remove it, or use one of: {', '.join(known)}"
    return field, "unknown key", fix


def _known_keys(location: list[str]) -> list[str]:
    """Return the keys that the config at a dotted location knows."""
    model: Any = RunConfig
    for part in location:
        field = getattr(model, "model_fields", {}).get(part)
        if field is None:
            return []
        model = field.annotation
    return list(getattr(model, "model_fields", {}))
