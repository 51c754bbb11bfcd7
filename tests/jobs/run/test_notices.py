"""Settings that have no effect on a run's model are named before any work, with what is done instead."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.preflight.check import Status
from jobs.run import base_model
from jobs.run.config import RunConfig
from jobs.run.needs import STAGES, fit_problems
from jobs.run.notices import check_notices, notices
from jobs.train.config import TrainConfig
from safety.families import load_model, source
from safety.families.family import configured_family, family_name


def make_run(model: Path | str, targets: list[str] | None, **sections: Any) -> RunConfig:
    return RunConfig.model_validate(
        {
            "run": {"name": "x", "seed": 0, "output": "out"},
            "model": {"path": str(model)},
            "train": {"expert": {"lora": {"targets": targets}}},
            **sections,
        }
    )


@pytest.mark.parametrize("name", ["stable-diffusion", "sdxl"])
def test_a_unet_can_be_gated(name: str, pico_model_dir: Callable[[str], Path]) -> None:
    run = make_run(pico_model_dir(name), None, merge={"co_merge": {"granularity": "input"}})
    assert notices(run) == []
    assert check_notices(run).status is Status.PASS
    assert run.train.gate_on(configured_family(run.model).model_class) == run.train.gate


@pytest.mark.parametrize("name", ["sd3", "flux-dev"])
def test_a_gate_that_has_no_layer_to_close_is_named_and_left_out(
    name: str, pico_model_dir: Callable[[str], Path]
) -> None:
    run = make_run(pico_model_dir(name), None, merge={"co_merge": {"granularity": "input"}})
    assert [notice.field for notice in notices(run)] == ["train.gate", "merge.co_merge.granularity"]
    found = check_notices(run)
    assert found.status is Status.WARN
    assert "experts are trained without gates" in found.found
    assert run.train.gate_on(configured_family(run.model).model_class) is None
    assert run.train.gate_on(load_model(run.model)) is None


def test_it_can_be_agreed_to_and_layers_be_chosen_that_read_the_prompt(pico_model_dir: Callable[[str], Path]) -> None:
    folder = pico_model_dir("sd3")
    agreed = make_run(folder, None, train={"gate": None, "expert": {"lora": {"targets": None}}})
    assert notices(agreed) == []
    [reader] = configured_family(agreed.model).model_class.text_targets
    assert notices(make_run(folder, [reader])) == []


def test_a_layer_of_a_unet_that_reads_the_image_alone_cannot_be_gated(tiny_model_dir: Path) -> None:
    assert [notice.field for notice in notices(make_run(tiny_model_dir, ["attn1.to_k"]))] == ["train.gate"]
    for targets in (["to_k"], ["attn2.to_k"], ["down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v"]):
        assert notices(make_run(tiny_model_dir, targets)) == []


def test_a_model_that_is_not_there_is_not_this_checks_to_report(tmp_path: Path) -> None:
    run = make_run(tmp_path / "absent", None)
    assert notices(run) == []
    assert "not checked" in check_notices(run).found


def test_a_model_that_lies_elsewhere_is_looked_at_by_a_worker_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run("s3://bucket/one.safetensors", None)
    asked = []
    monkeypatch.setattr(base_model, "placed_unless_cheap", lambda _, work, *__: asked.append(work) or "sd3")
    monkeypatch.setattr(source, "fetch", lambda *_: pytest.fail("the driver fetches the model"))
    assert [notice.field for notice in notices(run)] == ["train.gate"]
    assert check_notices(run).status is Status.WARN
    assert asked == [family_name, family_name]
    # What was made for the embedded model is refused without a look at this one.
    assert {problem.field for problem in fit_problems(run, STAGES)} >= {"generate.judge.name", "evaluate.features"}


def test_no_gate_stays_no_gate(tiny_model_dir: Path) -> None:
    model_class = configured_family(make_run(tiny_model_dir, None).model).model_class
    assert TrainConfig(gate=None).gate_on(model_class) is None
