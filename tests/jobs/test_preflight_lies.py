"""The whole preflight on runs that each name one thing there is none of: all are refused, with the setting and a fix.

No Ray is started: the checks of a local cluster look at this machine.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from jobs.preflight import report, run
from safety.families import hub
from tests.faults.endpoint_stub import free_port
from tests.jobs.conftest import ROOT

LIMIT_S = 60
JUDGE = {"name": "tests.support.pixel_judge:load_pixel_judge"}
OWN_JUDGES: dict[str, Any] = {
    "generate": {"judge": JUDGE},
    "merge": {"judge": JUDGE},
    "evaluate": {"judge": JUDGE, "features": None},
}
"""For a model that is not the embedded one, whose judge and features would be refused first."""
NOWHERE = "http://127.0.0.1:9"
CAPTIONS = {"source": "lines", "path": "no/captions.txt"}


def sources(**given: Any) -> dict[str, Any]:
    return {"prompts": {"pairs": [{"source": "coprov2", "path": "no/train.csv"}], "benign": [CAPTIONS], **given}}


def writer(**given: Any) -> dict[str, Any]:
    """Return a run whose prompts a language model writes; its captions are there."""
    engine = {"engine": "openai", "endpoint": {"url": f"{NOWHERE}/v1", "model": "chat-1", "attempts": 1}}
    captions = {"source": "lines", "path": str(ROOT / "LICENSE")}
    return {"prompts": {"writer": {"engine": engine, **given}, "benign": [captions]}}


LIES: dict[str, tuple[dict[str, Any], str]] = {
    "a model's folder": ({"model": {"path": "./models/mine"}, **OWN_JUDGES}, "model.path"),
    "a model's file": ({"model": {"path": "./models/mine.safetensors"}, **OWN_JUDGES}, "model.path"),
    "a model of a hub": ({"model": {"path": "my-org/my-model"}, **OWN_JUDGES}, "model.path"),
    "a model at an address": (
        {"model": {"path": "s3://none/none", "endpoint": NOWHERE}, **OWN_JUDGES},
        "model.endpoint",
    ),
    "a revision": ({"model": {"revision": "v99"}}, "model.revision"),
    "a variant": ({"model": {"variant": "fp99"}}, "model.variant"),
    "a VAE": ({"model": {"vae": "my-org/my-vae"}, **OWN_JUDGES}, "model.vae"),
    "settings": ({"model": {"settings": "no/settings"}}, "model.settings"),
    "a family": ({"model": {"family": "stable-confusion"}}, "model.family"),
    "a device": ({"model": {"device": "cuda:7"}}, "model.device"),
    "a cache": ({"model": {"cache": "/proc/none"}}, "model.cache"),
    "an S3 endpoint of the model": ({"model": {"endpoint": NOWHERE}}, "model.endpoint"),
    "a taxonomy": ({"taxonomy": "my/taxonomy.yaml"}, "my/taxonomy.yaml"),
    "a writer": ({"generate": {"writer": "my-writer"}}, "generate.writer"),
    "a writer's module": ({"generate": {"writer": "my_world:Prompts"}}, "generate.writer"),
    "generate's judge": ({"generate": {"judge": {"name": "my-judge"}}}, "generate.judge.name"),
    "merge's judge": ({"merge": {"judge": {"name": "my_world:load_judge"}}}, "merge.judge.name"),
    "evaluate's judge": ({"evaluate": {"judge": {"name": "my-judge"}}}, "evaluate.judge.name"),
    "serve's judge": ({"serve": {"judge": {"name": "my-judge"}}}, "serve.judge.name"),
    "a judge's weights": (
        {"generate": {"judge": {"name": "tests.support.odd_judges:without_weights"}}},
        "generate.judge.name",
    ),
    "features": ({"evaluate": {"features": "inceptionn"}}, "evaluate.features"),
    "a merge method": ({"merge": {"baselines": ["tiess"]}}, "merge.baselines"),
    "an objective": ({"train": {"expert": {"objective": {"name": "dpoo"}}}}, "train.expert.objective"),
    "adapted layers": ({"train": {"expert": {"lora": {"targets": ["to_nothing"]}}}}, "train.expert.lora.targets"),
    "a category": ({"train": {"categories": ["hatred"]}}, "train.categories"),
    "a preset": ({"extends": "sd99"}, "sd99"),
    "a store's endpoint": ({"store": {"endpoint": NOWHERE}}, "store"),
    "a store's folder": ({"store": {"data_dir": "/proc/none/store"}}, "store.data_dir"),
    "an output folder": ({"run": {"output": "/proc/none/out"}}, "run.output"),
    "an output that is a file": ({"run": {"output": "/etc/hostname"}}, "run.output"),
    "keys of the endpoint": ({"serve": {"keys": "no/keys.yaml"}}, "serve.keys"),
    "a trusted key": ({"serve": {"trusted_keys": ["no/key.pem"]}}, "serve.trusted_keys"),
    "a served pointer": ({"serve": {"pointer": "strict"}}, "serve.pointer"),
    "further served pointers": ({"serve": {"models": ["mild"]}}, "serve.models.0"),
    "a host": ({"serve": {"host": "no.such.host.invalid", "allow_open": True}}, "serve.host"),
    "a base model": ({"release": {"base_model": "my-org/my-model"}}, "release.base_model"),
    "a base model in words": ({"release": {"base_model": "TODO: the base"}}, "release.base_model"),
    "a signing key": ({"release": {"signing_key": "no/key.pem"}}, "release.signing_key"),
    "a source's file": (sources(), "prompts.path"),
    "a source's form": (sources(test=[{"source": "i2p", "path": "no/i2p.csv"}]), "prompts.test"),
    "a source's encoding": (sources(test=[{"source": "csv", "path": "a", "encoding": "cp99"}]), "encoding"),
    "a language model's folder": (
        writer(engine={"engine": "transformers", "model": "./models/chat"}),
        "prompts.writer.engine.model",
    ),
    "a language model of a hub": (
        writer(engine={"engine": "transformers", "model": "my-org/my-chat"}),
        "prompts.writer.engine.model",
    ),
    "a language model's endpoint": (writer(), "prompts.writer.engine.endpoint"),
    "a language model's engine": (writer(engine={"engine": "llama"}), "prompts.writer.engine"),
    "a language model's instructions": (writer(instructions="my/told.yaml"), "prompts.writer.instructions"),
    "a sentence encoder": (writer(embedding={"model": "my-org/encoder"}), "prompts.writer.embedding.model"),
    "a second judge": ({"evaluate": {"second_judge": {"name": "my-judge"}}}, "evaluate.second_judge.name"),
    "a run's judge": ({"judge": {"name": "my-judge"}}, "judge"),
    "a judge's CLIP": (
        {
            "evaluate": {
                "second_judge": {"name": "q16", "settings": {"weights": "no/clip", "prompts": "no/q16.safetensors"}}
            }
        },
        "second_judge",
    ),
    "FID's features": ({"evaluate": {"fid_features": "inception@no/inception.safetensors"}}, "evaluate.fid_features"),
    "FID's pictures": ({"evaluate": {"fid_reference": "no/coco"}}, "evaluate.fid_reference"),
    "LPIPS's weights": ({"evaluate": {"lpips": "no/lpips.safetensors"}}, "evaluate.lpips"),
    "a cluster": ({"cluster": {"address": "127.0.0.1:9"}}, "cluster.address"),
    "a cluster's name": ({"cluster": {"address": "no.such.host.invalid:6379"}}, "cluster.address"),
}


def merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    found = dict(below)
    for key, value in above.items():
        old = found.get(key)
        found[key] = merged(old, value) if isinstance(value, dict) and isinstance(old, dict) else value
    return found


def written(folder: Path, changes: dict[str, Any]) -> Path:
    document = yaml.safe_load((ROOT / "jobs" / "configs" / "pico.yaml").read_text(encoding="utf-8"))
    document["run"]["output"] = str(folder / "out")
    document["store"] = {"data_dir": str(folder / "store")}
    document["taxonomy"] = str(ROOT / document["taxonomy"])
    document["serve"] = {"port": free_port()}
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(merged(document, changes)), encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Answer for the hub, so that the tests are the same with and without a network; no credentials of the user are used."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", NOWHERE)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    # Where other tests of this session have started one: these look at this machine alone.
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "none")


@pytest.mark.slow
@pytest.mark.parametrize("lie", LIES)
def test_it_is_refused_with_its_setting_and_a_fix_within_a_minute(lie: str, tmp_path: Path) -> None:
    changes, field = LIES[lie]
    config = written(tmp_path, changes)
    started = time.monotonic()
    bad = [each for each in run(config) if str(each.finding.status) == "fail"]
    assert time.monotonic() - started < LIMIT_S
    assert any(field in each.finding.found for each in bad), [each.finding.found for each in bad]
    assert all(each.finding.fix for each in bad)


@pytest.mark.slow
def test_several_at_once_are_all_told_and_nothing_is_drawn(tmp_path: Path) -> None:
    changes = {
        "generate": {"judge": {"name": "my-judge"}},
        "train": {"categories": ["hatred"]},
        "serve": {"keys": "no/keys.yaml", "pointer": "strict"},
        "release": {"base_model": "TODO"},
    }
    console = Console(record=True, width=250, file=(tmp_path / "log").open("w", encoding="utf-8"))
    assert report(console, written(tmp_path, changes)) == 2
    said = console.export_text()
    for field in ("generate.judge.name", "train.categories", "serve.keys", "serve.pointer", "release.base_model"):
        assert field in said
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_run_without_a_lie_is_tried_out(tmp_path: Path) -> None:
    console = Console(record=True, width=250, file=(tmp_path / "log").open("w", encoding="utf-8"))
    config = written(tmp_path, {})
    assert report(console, config, quick=True) == 0
    assert not (tmp_path / "out").exists()
    assert report(console, config) == 0
    said = console.export_text()
    for text in (
        "predicts v_prediction",
        "covers 2 of 2 categories",
        "rows by category",
        "peak memory",
        "hours by stage",
    ):
        assert text in said
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"preflight.png", "preflight.json"}


def test_a_hub_that_does_not_answer_is_given_up_within_seconds() -> None:
    started = time.monotonic()
    assert hub.is_known("my-org/my-model") is None
    assert time.monotonic() - started < 15
