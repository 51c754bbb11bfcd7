"""Experts that do not belong together are refused before anything is computed with them."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from cluster.store.artifacts import ArtifactStore
from jobs.merge.source import MergeSource
from jobs.run.artifacts import ArtifactRef, StageContext
from jobs.run.config import RunConfig
from safety.errors import ArtifactFormatError
from safety.families import ModelConfig, load_model
from safety.lora.files import save_lora
from tests.support.small_sets import random_lora
from tests.support.small_world import TAXONOMY


@pytest.mark.parametrize("other", [{"path": "a"}, {"path": "b"}])
def test_experts_of_different_bases_are_refused_by_their_own_manifests(
    store: ArtifactStore, tiny_model_dir: Path, tmp_path: Path, other: dict[str, str]
) -> None:
    """Their layers have the same shapes, so nothing else would tell."""
    run = RunConfig.model_validate({"run": {"name": "tiny", "output": str(tmp_path / "out")}})
    context = StageContext(run, store, tmp_path / "work", Console(file=io.StringIO()))
    save_lora(random_lora(load_model(ModelConfig(path=str(tiny_model_dir))), 0), tmp_path / "lora", metadata={})
    for name, model in (("first", {"path": "a"}), ("second", other)):
        store.put("expert", name, tmp_path / "lora", config={"model": model}, seed=0)
    experts = {name: ArtifactRef("expert", name) for name in ("first", "second")}
    source = MergeSource(context, TAXONOMY, ArtifactRef("dataset", "x"), experts)
    if other == {"path": "a"}:
        assert set(source.weights()) == {"first", "second"}
        return
    with pytest.raises(
        ArtifactFormatError, match=r"experts\.second: 'first' and 'second' were trained on different base"
    ):
        source.weights()
