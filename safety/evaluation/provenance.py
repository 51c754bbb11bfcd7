"""The provenance of an evaluation's figures, so that they can be reproduced."""

from __future__ import annotations

from safety.base import Config
from safety.evaluation.bootstrap import BootstrapConfig
from safety.judges.identity import JudgeIdentity


class Provenance(Config):
    """Everything that a figure depends on."""

    run: str
    config_hash: str
    """SHA-256 of the whole run's canonical config."""
    commit: str
    model: str
    taxonomy: str
    notice: str | None
    """The taxonomy's own, shown above the figures."""
    judge: JudgeIdentity
    features: str
    seeds: dict[str, int]
    render: dict[str, int | float | None]
    bootstrap: BootstrapConfig
    artifacts: dict[str, str]
    """Ids of the dataset and of each model's adapter, by name."""
    machine: str
