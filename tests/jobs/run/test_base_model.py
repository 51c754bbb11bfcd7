"""A run's base model as the driver knows it: artifacts are named by its content, and its class is looked at before Ray."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from cluster.store.artifacts import ArtifactStore
from jobs.generate import stage as generate
from jobs.run.artifacts import ArtifactRef, StageContext, artifact_ref
from jobs.run.base_model import describe_model, require_known_family
from jobs.run.config import RunConfig, load_run
from jobs.train.task import plan
from safety.errors import SafetyError
from safety.families.identity import model_identity
from safety.families.model_config import ModelConfig
from tests.support.small_world import TAXONOMY

ROOT = Path(__file__).parents[3]


@pytest.fixture
def make_context(tmp_path: Path, store: ArtifactStore) -> Callable[..., StageContext]:
    taxonomy = tmp_path / "small.yaml"
    taxonomy.write_text(yaml.safe_dump(TAXONOMY.model_dump(mode="json")), encoding="utf-8")

    def make(**model: Any) -> StageContext:
        document = {
            "run": {"name": "names", "output": str(tmp_path / "out")},
            "model": model,
            "taxonomy": str(taxonomy),
            "generate": {"writer": "small", "judge": {"name": "tests.support.pixel_judge:load_pixel_judge"}},
        }
        return StageContext(RunConfig.model_validate(document), store, tmp_path / "work", Console(quiet=True))

    return make


def names(context: StageContext) -> tuple[str, ...]:
    taxonomy = context.run.load_taxonomy()
    settings = generate.dataset_settings(context, taxonomy, generate.describe(context, taxonomy))
    dataset = artifact_ref(context, "dataset", settings)
    tasks = plan(context, ArtifactRef("dataset", "d"))
    return dataset.id, *(task.ref.id for task in tasks), tasks[0].moments.ref.id


def test_artifacts_are_named_by_what_a_model_is_and_not_by_where_it_lies_or_who_draws(
    make_context: Callable[..., StageContext], tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Where it is placed is another test's (test_placement.py); a session's Ray here has no GPU.
    monkeypatch.setattr("jobs.run.base_model.placed_unless_cheap", lambda _, work, *arguments: work(*arguments))
    moved = Path(shutil.copytree(tiny_model_dir, tmp_path / "moved"))
    expected = names(make_context(path=str(tiny_model_dir)))
    assert len(set(expected)) == len(expected)
    for same in (
        {"path": str(moved)},
        {"path": str(moved), "cache": str(tmp_path / "cache"), "family": "stable-diffusion"},
    ):
        assert names(make_context(**same)) == expected, same
    on_gpu = ModelConfig(path=str(moved), device="cuda", dtype="float32")
    assert model_identity(on_gpu) == model_identity(ModelConfig(path=str(tiny_model_dir))), "of the device"
    assert not set(names(make_context(path=str(moved), dtype="float16"))) & set(expected)
    scheduler = moved / "scheduler" / "scheduler_config.json"
    scheduler.write_text(json.dumps({**json.loads(scheduler.read_text()), "beta_end": 0.013}))
    assert not set(names(make_context(path=str(moved)))) & set(expected)


def test_no_stage_puts_a_model_s_settings_into_an_artifact_s_name() -> None:
    users = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "jobs").rglob("*.py")
        if "run.model.model_dump" in path.read_text(encoding="utf-8")
    }
    assert users == {"jobs/pipeline.py"}, "its endpoint is told the whole model; stages name it by context.model"


def test_a_release_says_of_its_base_what_the_identity_does(
    make_context: Callable[..., StageContext], tiny_model_dir: Path, tmp_path: Path
) -> None:
    moved = Path(shutil.copytree(tiny_model_dir, tmp_path / "moved"))
    (moved / "ATTRIBUTION.md").write_text("by somebody")
    context = make_context(path=str(moved))
    described = describe_model(context.run)
    assert (described.identity, described.attribution) == (context.model, b"by somebody")
    assert describe_model(make_context(path=str(tiny_model_dir)).run).attribution is None


@pytest.mark.slow
def test_a_class_that_no_family_knows_is_refused_before_ray_starts(tiny_model_dir: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))
    index = folder / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "_class_name": "PixArtAlphaPipeline"}))
    config = tmp_path / "run.yaml"
    document = {"run": {"name": "x", "output": str(tmp_path / "out")}, "model": {"path": str(folder)}}
    config.write_text(yaml.safe_dump(document))
    code = """
import sys, ray
ray.init = lambda *_, **__: sys.exit("Ray was started")
sys.argv = ["jobs.generate", "--config", sys.argv[1]]
import typer
from jobs.generate.__main__ import main
typer.run(main)
"""
    ended = subprocess.run([sys.executable, "-c", code, config], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert ended.returncode == 2, ended.stderr
    assert "which no family takes" in " ".join(ended.stdout.split())


def test_what_lies_elsewhere_is_left_to_the_workers(tmp_path: Path) -> None:
    document = {"run": {"name": "x", "output": str(tmp_path / "out")}}
    for path in ("s3://bucket/model", "/on/workers/alone", "org/not-in-this-cache"):
        require_known_family(RunConfig.model_validate({**document, "model": {"path": path}}))
    (tmp_path / "lora.safetensors").write_bytes(b"x")
    with pytest.raises(SafetyError):
        require_known_family(
            RunConfig.model_validate({**document, "model": {"path": str(tmp_path / "lora.safetensors")}})
        )


def test_an_s3_model_lies_where_the_store_is_unless_it_says_otherwise(tmp_path: Path) -> None:
    def model(**settings: Any) -> Any:
        config = tmp_path / "run.yaml"
        document = {
            "run": {"name": "x", "output": "out"},
            "store": {"endpoint": "http://127.0.0.1:9", "region": "eu-1"},
            "model": settings,
        }
        config.write_text(yaml.safe_dump(document))
        found = load_run(config).model
        return found.endpoint, found.region

    assert model(path="s3://bucket/model") == ("http://127.0.0.1:9", "eu-1")
    assert model(vae="s3://bucket/vae") == ("http://127.0.0.1:9", "eu-1")
    assert model(path="s3://bucket/model", endpoint="http://127.0.0.1:8") == ("http://127.0.0.1:8", "eu-1")
    assert model(path="org/name") == (None, None)
