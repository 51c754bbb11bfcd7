"""Configuration of an endpoint: its settings, the base model and the store that holds the releases."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from cluster.session import ClusterConfig
from cluster.store.config import StoreConfig
from safety.base import Config
from safety.embedded import EMBEDDED_TAXONOMY
from safety.errors import ConfigError
from safety.families import ModelConfig
from safety.presets.preset import read_extended
from serve.endpoint_config import EndpointConfig


class ServeConfig(Config):
    """The arguments of ``serve.app:build``: the parts of a run's config that the endpoint needs."""

    serve: EndpointConfig = EndpointConfig()
    model: ModelConfig = ModelConfig()
    store: StoreConfig = StoreConfig()
    cluster: ClusterConfig = ClusterConfig()
    taxonomy: str = Field(EMBEDDED_TAXONOMY, description=f"of the output judge: {EMBEDDED_TAXONOMY!r}, or a YAML file")


def parse_config(document: Mapping[str, Any]) -> ServeConfig:
    """Validate the endpoint's part of a run's document; the other stages check their own keys.

    Raises:
        ConfigError: A key of the endpoint's part is wrong; the message names it.
    """
    own = {name: document[name] for name in ServeConfig.model_fields if name in document}
    try:
        return ServeConfig.model_validate(own)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False)
        fields = [".".join(str(part) for part in problem["loc"]) for problem in problems]
        message = "; ".join(f"{field}: {problem['msg']}" for field, problem in zip(fields, problems, strict=True))
        raise ConfigError(message, field=", ".join(fields), fix="correct these keys of the run's config") from None


def read_run(path: Path) -> dict[str, Any]:
    """Return the mapping in a run's YAML, with what it ``extends`` filled in; raises ConfigError as ``read_extended`` does.

    A model at an ``s3://`` address lies where the store is unless it says otherwise.
    """
    document = read_extended(path, field="--config", what="a run's YAML, such as one of jobs/configs")
    model, store = document.get("model"), document.get("store")
    if (
        isinstance(model, dict)
        and isinstance(store, dict)
        and any(str(model.get(key, "")).startswith("s3://") for key in ("path", "vae"))
    ):
        document["model"] = {**{key: store[key] for key in ("endpoint", "region") if key in store}, **model}
    return document


def load_config(path: Path) -> ServeConfig:
    """Read the endpoint's part of a run's YAML; raise ConfigError when it is missing or wrong."""
    return parse_config(read_run(path))
