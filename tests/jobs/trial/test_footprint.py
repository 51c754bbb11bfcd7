"""What a model needs where it is loaded: rendering's estimate by stage, and the bytes of a fetched copy alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from jobs.trial import footprint
from jobs.trial.footprint import fetched_bytes, render_peaks
from safety.experts.cards import measure_render
from safety.families.family import ModelConfig
from safety.rendering import RenderConfig


def test_a_small_model_is_not_estimated(tiny_model_dir: Path) -> None:
    assert render_peaks(ModelConfig(path=str(tiny_model_dir)), {"generate": RenderConfig()}) == {"generate": None}


def test_each_stage_has_the_peak_of_its_own_batch_and_one_size_is_measured_once(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[RenderConfig] = []

    def counted(model: ModelConfig, render: RenderConfig, dtype: torch.dtype) -> object:
        calls.append(render)
        return measure_render(model, render, dtype)

    monkeypatch.setattr(footprint, "is_small", lambda *_: False)
    monkeypatch.setattr(footprint, "measure_render", counted)
    model = ModelConfig(path=str(tiny_model_dir))
    renders = {"generate": RenderConfig(batch=4), "merge": RenderConfig(batch=64), "evaluate": RenderConfig(height=32)}
    found = render_peaks(model, renders)
    alone = measure_render(model, RenderConfig(), torch.float32)
    assert (found["generate"], found["merge"]) == (alone.peak(4), alone.peak(64))
    assert len(calls) == 2


def test_a_copy_counts_where_it_was_fetched_and_not_where_the_model_lies(tiny_model_dir: Path, tmp_path: Path) -> None:
    assert fetched_bytes(ModelConfig(path=str(tiny_model_dir))) == 0
    assert fetched_bytes(ModelConfig()) == 0
    snapshot = tmp_path / "models--org--name" / "snapshots" / ("0" * 40)
    shutil.copytree(tiny_model_dir, snapshot)
    size = sum(path.stat().st_size for path in tiny_model_dir.rglob("*") if path.is_file())
    assert fetched_bytes(ModelConfig(path=str(snapshot))) == size
