"""What a YAML names and there is none of: each is refused with its setting and a fix, and what is there passes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import Field

from cluster.preflight.check import Status
from cluster.store.artifacts import ArtifactStore
from cluster.store.pointer import swap_pointer
from jobs.run import name_checks
from jobs.run.config import RunConfig
from jobs.run.name_checks import check_base_model, check_pointers, named_paths, named_problems, require_pointer
from safety.base import Config
from safety.errors import ConfigError
from safety.families import hub
from serve.keys import KeyFile, change_keys

LIES: dict[str, tuple[dict[str, Any], str]] = {
    "a revision of a folder": ({"model": {"revision": "v99"}}, "model.revision"),
    "an endpoint of no address": ({"model": {"endpoint": "http://127.0.0.1:9"}}, "model.endpoint"),
    "a region of no address": ({"model": {"region": "eu-north-9"}}, "model.region"),
    "a cache": ({"model": {"cache": "/proc/none"}}, "model.cache"),
    "an output": ({"run": {"output": "/proc/none/out"}}, "run.output"),
    "an output that is a file": ({"run": {"output": "/etc/hostname"}}, "run.output"),
    "keys": ({"serve": {"keys": "no/keys.yaml"}}, "serve.keys"),
    "keys that are none": ({"serve": {"keys": "/etc/hostname"}}, "serve.keys"),
    "a host": ({"serve": {"host": "no.such.host.invalid", "allow_open": True}}, "serve.host"),
    "another machine's address": ({"serve": {"host": "203.0.113.7", "allow_open": True}}, "serve.host"),
}


def run_of(folder: Path, **parts: dict[str, Any]) -> RunConfig:
    return RunConfig.model_validate(
        {**parts, "run": {"name": "x", "output": str(folder / "out"), **parts.get("run", {})}}
    )


@pytest.mark.parametrize("lie", LIES)
def test_what_is_not_there_is_told_by_its_setting(tmp_path: Path, lie: str) -> None:
    parts, field = LIES[lie]
    [problem] = named_problems(run_of(tmp_path, **parts))
    assert problem.field == field
    assert problem.message
    assert problem.fix


def test_what_is_there_passes(tmp_path: Path) -> None:
    keys = tmp_path / "keys.yaml"
    change_keys(keys, lambda _: KeyFile())
    found = run_of(
        tmp_path,
        serve={"keys": str(keys), "host": "127.0.0.1"},
        model={"cache": str(tmp_path / "cache")},
        run={"output": str(tmp_path / "deep" / "out")},
    )
    assert named_problems(found) == []
    assert not (tmp_path / "deep").exists(), "a check writes nothing that stays"


def test_a_revision_of_a_hubs_cache_folder_or_of_an_id_is_the_loads_to_try(tmp_path: Path) -> None:
    (tmp_path / "models--org--name" / "snapshots").mkdir(parents=True)
    for path in (str(tmp_path / "models--org--name"), "org/name"):
        assert named_problems(run_of(tmp_path, model={"path": path, "revision": "v1"})) == []


def test_every_path_of_a_config_is_found_wherever_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sources, judges and features may bring settings of their own: a path in any of them is looked for."""

    class Weights(Config):
        file: Path

    class Section(Config):
        weights: Weights
        several: tuple[Path, ...] = ()
        named: dict[str, Path] = Field(default_factory=dict)
        text: str = "no/path"

    section = Section(weights=Weights(file=Path("a")), several=(Path("b"), tmp_path), named={"x": Path("c")})
    found = dict(named_paths(section, "judge."))
    assert found == {
        "judge.weights.file": Path("a"),
        "judge.several.0": Path("b"),
        "judge.several.1": tmp_path,
        "judge.named.x": Path("c"),
    }
    monkeypatch.setattr(name_checks, "named_paths", lambda _: iter(found.items()))
    problems = named_problems(run_of(tmp_path))
    assert [problem.field for problem in problems] == ["judge.weights.file", "judge.several.0", "judge.named.x"]


def test_a_host_of_a_cluster_elsewhere_is_not_looked_for_here(tmp_path: Path) -> None:
    parts = {"cluster": {"address": "auto"}, "serve": {"host": "203.0.113.7", "allow_open": True}}
    assert named_problems(run_of(tmp_path, **parts)) == []


def test_pointers_are_those_of_the_store_or_the_runs_own(tmp_path: Path, store: ArtifactStore) -> None:
    assert check_pointers(run_of(tmp_path), store).status is Status.PASS
    lost = check_pointers(run_of(tmp_path, serve={"pointer": "strict", "models": ["mild"]}), store)
    assert lost.status is Status.FAIL
    assert "serve.pointer" in lost.found
    assert "serve.models.0" in lost.found
    assert "release.pointer" in lost.fix
    with pytest.raises(ConfigError, match="no release pointer 'strict'"):
        require_pointer(run_of(tmp_path, serve={"pointer": "strict"}), store)
    require_pointer(run_of(tmp_path, serve={"models": ["mild"]}), store)
    for name in ("strict", "mild"):
        swap_pointer(store, name, None, "0" * 16)
    assert (
        check_pointers(run_of(tmp_path, serve={"pointer": "strict", "models": ["mild"]}), store).status is Status.PASS
    )


def test_a_base_model_is_one_that_the_hub_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def check(name: str | None, path: str = "emoji") -> Any:
        return check_base_model(run_of(tmp_path, model={"path": path}, release={"base_model": name}))

    monkeypatch.setattr(hub, "cache_folder", lambda _: tmp_path / "nothing")
    monkeypatch.setattr(hub, "is_offline", lambda: False)
    assert check(None).status is Status.PASS
    assert check("org/name", "org/name").status is Status.PASS
    assert check("TODO: base model").status is Status.FAIL
    for known, status in ((True, Status.PASS), (False, Status.FAIL), (None, Status.FAIL)):
        monkeypatch.setattr(hub, "is_known", lambda _, known=known: known)
        found = check("org/name")
        assert found.status is status
        assert found.status is Status.PASS or ("release.base_model" in found.found and found.fix)
    monkeypatch.setattr(hub, "is_offline", lambda: True)
    assert check("org/name").status is Status.WARN, "who works without a hub on purpose is warned"
