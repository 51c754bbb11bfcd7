"""What a run names and cannot be loaded: each is told by its setting before any work, in the preflight and at a start."""

from __future__ import annotations

import json
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from cluster.preflight.check import Finding, passed
from jobs.run.config import RunConfig
from jobs.run.load_checks import LoadChecks
from jobs.run.needs import STAGES, load_problems, name_problems, require_needs, run_loads, stages_up_to
from jobs.stages import Stages
from safety.errors import ConfigError
from safety.families import family
from safety.families.weight_files import require_folder
from tests.jobs.conftest import ROOT
from tests.support.no_model_here import no_model_here

ODD = "tests.support.odd_judges"
FAULTS: dict[str, tuple[dict[str, Any], str, str]] = {
    "a family": ({"model": {"family": "stable-difusion"}}, "model.family", "stable-difusion"),
    "a model": ({"model": {"path": "no/such/folder"}}, "model.path", "no/such/folder"),
    "generate's judge": ({"generate": {"judge": {"name": "emojy"}}}, "generate.judge.name", "emojy"),
    "merge's judge": ({"merge": {"judge": {"name": "emojy"}}}, "merge.judge.name", "emojy"),
    "evaluate's judge": ({"evaluate": {"judge": {"name": "no_such:x"}}}, "evaluate.judge.name", "no_such"),
    "serve's judge": ({"serve": {"judge": {"name": f"{ODD}:nothing"}}}, "serve.judge.name", "nothing"),
    "a judge's weights": ({"merge": {"judge": {"name": f"{ODD}:without_weights"}}}, "merge.judge.name", "weights.onnx"),
    "a judge's categories": (
        {"evaluate": {"judge": {"name": f"{ODD}:of_other_categories"}}},
        "evaluate.judge.name",
        "scores no",
    ),
    "features": ({"evaluate": {"features": "clip-huge"}}, "evaluate.features", "clip-huge"),
    "a writer": ({"generate": {"writer": "grammer"}}, "generate.writer", "grammer"),
    "a category": ({"train": {"categories": ["hatred"]}}, "train.categories", "hatred"),
    "an expert": ({"merge": {"co_merge": {"lambdas": {"hatred": 2.0}}}}, "merge.co_merge.lambdas", "hatred"),
    "a baseline's expert": (
        {"merge": {"baselines": [{"name": "co-merge", "lambdas": {"hatred": 2.0}}]}},
        "merge.baselines.lambdas",
        "hatred",
    ),
    "a signing key": ({"release": {"signing_key": "no/such/key.pem"}}, "release.signing_key", "no/such/key.pem"),
    "a trusted key": ({"serve": {"trusted_keys": ["no/such/key.pem"]}}, "serve.trusted_keys", "no/such/key.pem"),
    "test prompts": ({"generate": {"counts": {"test": 0}}}, "generate.counts", "no test prompt"),
}


PIXEL_JUDGE = {"name": "tests.support.pixel_judge:load_pixel_judge"}


def run_of(folder: Path, changes: dict[str, Any]) -> RunConfig:
    document = yaml.safe_load((ROOT / "jobs" / "configs" / "pico.yaml").read_text(encoding="utf-8"))
    document["run"]["output"] = str(folder / "out")
    document["taxonomy"] = str(ROOT / document["taxonomy"])
    for section, part in changes.items():
        document[section] = part if isinstance(part, str) else {**document.get(section, {}), **part}
    return RunConfig.model_validate(document)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_start_tells_what_it_would_fail_on_without_loading_a_model(tmp_path: Path, fault: str) -> None:
    changes, field, named = FAULTS[fault]
    with no_model_here(), pytest.raises(ConfigError, match=named) as refused:
        require_needs(run_of(tmp_path, changes), STAGES)
    assert refused.value.field == field
    assert refused.value.fix


def test_an_arithmetic_that_weights_lack_is_told_where_they_are_loaded(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As on a GPU, where "auto" is bf16, and a driver without it knows no type.
    monkeypatch.setattr(family, "resolve_dtype", lambda *_: torch.bfloat16)
    for precision, fields in (("fp32", ["train.expert.precision"]), ("bf16", []), ("auto", [])):
        model, expert = {"path": str(tiny_model_dir)}, {"precision": precision}
        run = run_of(tmp_path, {"model": model, "train": {"expert": expert}})
        problems = load_problems(run_loads(run, ["train"]), run.load_taxonomy(), models=True)
        assert [problem.field for problem in problems] == fields


def test_a_run_without_a_fault_starts(tmp_path: Path) -> None:
    with no_model_here():
        require_needs(run_of(tmp_path, {}), STAGES)


def test_a_taxonomy_that_the_judge_does_not_know_is_told_at_the_start(tmp_path: Path) -> None:
    file = tmp_path / "taxonomy.yaml"
    known = yaml.safe_load((ROOT / "tests" / "data" / "pico-taxonomy.yaml").read_text(encoding="utf-8"))
    known["concepts"][0]["name"] = "mallet"
    file.write_text(yaml.safe_dump(known))
    with pytest.raises(ConfigError, match="does not know: mallet") as refused:
        require_needs(run_of(tmp_path, {"taxonomy": str(file)}), ["merge"])
    assert refused.value.field == "merge.judge.name"


def test_a_stage_is_held_to_its_own_needs_alone(tmp_path: Path) -> None:
    later = run_of(
        tmp_path,
        {
            "generate": {"counts": {"test": 0}},
            "merge": {"judge": {"name": "emojy"}, "co_merge": {"lambdas": {"hatred": 2.0}}},
            "evaluate": {"features": "clip-huge"},
        },
    )
    require_needs(later, stages_up_to("train"))
    assert stages_up_to("release") == ("generate", "train", "merge", "evaluate", "release")
    with pytest.raises(ConfigError):
        require_needs(later, stages_up_to("merge"))


@pytest.mark.parametrize("job", ["generate", "train", "merge", "evaluate", "release"])
def test_every_job_tries_its_loads_before_its_first_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: str
) -> None:
    class Context:
        run = run_of(tmp_path, {"model": {"path": "no/such/folder"}})

    monkeypatch.setattr(Stages, "dataset", lambda _: pytest.fail("work began"))
    with pytest.raises(ConfigError, match=r"model\.path"):
        Stages(Context()).up_to(job)  # type: ignore[arg-type]


def found_by(run: RunConfig) -> dict[str, tuple[str, str]]:
    """Return the status and text of the preflight's checks on a machine that would be the cluster."""
    checks = LoadChecks(run, run.load_taxonomy(), joined=False).checks()
    findings = {check.name: check.run() for check in checks}
    return {name: (str(finding.status), finding.found) for name, finding in findings.items()}


def test_the_preflight_tells_of_all_faults_at_once_each_by_its_setting(tmp_path: Path) -> None:
    run = run_of(
        tmp_path,
        {
            "generate": {"writer": "grammer", "judge": {"name": "emojy"}, "render": {"height": 33}},
            "train": {"expert": {"lora": {"targets": ["to_nothing"]}}},
            "merge": {"judge": {"name": f"{ODD}:flat"}},
            "evaluate": {"features": "clip-huge"},
            "release": {"smoke_prompts": ["knife " * 99]},
        },
    )
    found = found_by(run)
    assert {name: status for name, (status, _) in found.items()} == dict.fromkeys(found, "fail")
    assert set(found) == {"model", "judges", "features", "prompts"}
    for field in (
        "generate.render: 33",
        "train.expert.lora.targets: no layer",
        "release.smoke_prompts: the prompt has",
    ):
        assert field in found["model"][1]
    assert "generate.judge.name: there is no judge 'emojy'" in found["judges"][1]
    assert "merge.judge.name: the judge" in found["judges"][1]
    assert "evaluate.features: there is no feature extractor 'clip-huge'" in found["features"][1]
    assert "generate.writer: there is no prompt writer 'grammer'" in found["prompts"][1]


def test_the_preflight_loads_the_model_whole(tmp_path: Path, tiny_model_dir: Path) -> None:
    folder = Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))
    config = folder / "text_encoder" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "num_hidden_layers": 2}))
    found = found_by(run_of(tmp_path, {"model": {"path": str(folder)}}))
    assert found["model"][0] == "fail"
    assert "model.path" in found["model"][1]
    assert found["judges"][0] == "pass"


def test_names_are_held_against_the_categories_that_are_trained(tmp_path: Path) -> None:
    run = run_of(
        tmp_path, {"train": {"categories": ["violence"]}, "merge": {"co_merge": {"lambdas": {"shocking": 2.0}}}}
    )
    taxonomy = run.load_taxonomy()
    assert taxonomy.categories == ("violence", "shocking")
    [problem] = name_problems(run, taxonomy, STAGES)
    assert (problem.field, problem.fix) == ("merge.co_merge.lambdas", "use some of: violence")


def test_a_folder_of_any_family_is_looked_at_whole(tmp_path: Path, tiny_model_dir: Path) -> None:
    folder = Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))
    require_folder(folder)
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    run = run_of(tmp_path, {"model": {"path": str(folder)}})
    with pytest.raises(ConfigError, match="not a whole safetensors file") as refused:
        require_needs(run, ["train"])
    assert refused.value.field == "model.path"
    shutil.rmtree(folder / "vae")
    with pytest.raises(ConfigError, match="it is not there"):
        require_needs(run, ["train"])


def test_the_embedded_judge_and_features_are_refused_on_another_model_before_any_work(
    tmp_path: Path, tiny_model_dir: Path
) -> None:
    changes: dict[str, Any] = {"model": {"path": str(tiny_model_dir)}}
    for stage in ("generate", "merge", "evaluate"):
        with pytest.raises(ConfigError, match="'emoji' was made for the embedded model") as refused:
            require_needs(run_of(tmp_path, changes), STAGES)
        assert refused.value.field == f"{stage}.judge.name"
        changes[stage] = {"judge": PIXEL_JUDGE}
    with pytest.raises(ConfigError, match="'emoji-clip' was made for the embedded model") as refused:
        require_needs(run_of(tmp_path, changes), STAGES)
    assert refused.value.field == "evaluate.features"
    changes["evaluate"] = {"judge": PIXEL_JUDGE, "features": None}
    changes["serve"] = {"judge": {"name": "emoji"}}
    with pytest.raises(ConfigError) as refused:
        require_needs(run_of(tmp_path, changes), STAGES)
    assert refused.value.field == "serve.judge.name"
    changes["serve"] = {}
    require_needs(run_of(tmp_path, changes), STAGES)


def test_the_embedded_judge_is_refused_on_another_model_inside_a_combination_too(
    tmp_path: Path, tiny_model_dir: Path
) -> None:
    inner = {"name": "combination", "settings": {"judges": [{"name": "emoji"}]}}
    nested = {"name": "combination", "settings": {"judges": [PIXEL_JUDGE, inner]}}
    changes = {
        "model": {"path": str(tiny_model_dir)},
        "evaluate": {"judge": PIXEL_JUDGE, "second_judge": nested, "features": None},
    }
    with pytest.raises(ConfigError, match="'emoji' was made for the embedded model") as refused:
        require_needs(run_of(tmp_path, changes), ["evaluate"])
    assert refused.value.field == "evaluate.second_judge.name"
    require_needs(run_of(tmp_path, {"evaluate": {"second_judge": nested}}), ["evaluate"])


def test_a_second_judge_may_cover_some_categories_and_the_judge_may_not(tmp_path: Path) -> None:
    partly = {"name": f"{ODD}:of_other_categories"}
    require_needs(run_of(tmp_path, {"evaluate": {"second_judge": partly}}), ["evaluate"])
    with pytest.raises(ConfigError, match="scores no ") as refused:
        require_needs(run_of(tmp_path, {"evaluate": {"judge": partly}}), ["evaluate"])
    assert refused.value.field == "evaluate.judge.name"
    assert "several as a 'combination'" in refused.value.fix


def test_a_judges_own_setting_is_named_where_the_run_has_it(tmp_path: Path) -> None:
    wrong = {"name": "emoji", "settings": {"sha256": "0" * 64}}
    combined = {"name": "combination", "settings": {"judges": [PIXEL_JUDGE], "sha256": "0" * 64}}
    for section, judge, field in (
        ("generate", {"judge": wrong}, "generate.judge"),
        ("evaluate", {"second_judge": combined}, "evaluate.second_judge"),
    ):
        with pytest.raises(ConfigError) as refused:
            require_needs(run_of(tmp_path, {section: judge}), [section])
        assert refused.value.field == f"{field}.settings.sha256"


@pytest.mark.parametrize("joined", [False, True])
def test_checks_that_look_into_a_model_take_turns_in_one_process(joined: bool, tmp_path: Path) -> None:
    """Else the memory of a large model was "not known": diffusers' lazy import was found half done by another thread."""
    loads = LoadChecks(run_of(tmp_path, {}), run_of(tmp_path, {}).load_taxonomy(), joined=joined)
    inside, most = 0, []
    begun = threading.Barrier(3)

    def work() -> Finding:
        nonlocal inside
        inside += 1
        most.append(inside)
        if joined:
            begun.wait(timeout=20)
        time.sleep(0.02)
        inside -= 1
        return passed("done")

    threads = [threading.Thread(target=loads.alone, args=(work,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert max(most) == (3 if joined else 1)
