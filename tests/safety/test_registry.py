"""Registries: names, and implementations found by their files."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

import safety
from safety.embedded import EMBEDDED_PACKAGE
from safety.errors import ConfigError
from safety.experts.config import ExpertConfig
from safety.families import families
from safety.features.extractor import feature_extractors
from safety.judges.judge import judges
from safety.merge.method import merge_methods
from safety.objectives import objectives
from safety.prompts.writer import writers
from safety.registry import Registry

SAFETY = Path(safety.__file__).parent
EMBEDDED = EMBEDDED_PACKAGE.rpartition(".")[2]
IMPLEMENTATION = """
from house.protocol import things

things.register("{name}")({value})
"""
LOOKING_UP = """
from house.protocol import things

SEEN = sorted(things)
"""


def test_an_unknown_name_lists_the_known_ones() -> None:
    registry: Registry[int] = Registry("judge")
    registry.register("emoji")(1)
    registry.register("photo")(2)
    assert registry["emoji"] == 1
    assert list(registry) == ["emoji", "photo"]
    with pytest.raises(ConfigError, match=r"judge: there is no judge 'emojy'. Fix: use one of: emoji, photo"):
        registry["emojy"]


def test_a_name_is_taken_once() -> None:
    registry: Registry[int] = Registry("judge")
    registry.register("emoji")(1)
    with pytest.raises(ValueError, match="registered twice"):
        registry.register("emoji")(2)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Make an importable package with a registry and no implementation."""
    folder = tmp_path / "house"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "protocol.py").write_text(
        "from safety.registry import Registry\n\nthings = Registry('thing', __package__)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield folder
    for name in set(sys.modules) - before:
        if name.split(".")[0] == "house":
            del sys.modules[name]


def test_a_file_in_the_package_is_enough_for_an_implementation(package: Path) -> None:
    (package / "one.py").write_text(IMPLEMENTATION.format(name="one", value=1))
    from house.protocol import things

    assert dict(things) == {"one": 1}
    with pytest.raises(ConfigError, match="use one of: one"):
        things["two"]


def test_a_module_that_looks_up_while_it_is_imported_finds_those_after_it(package: Path) -> None:
    (package / "a_lookup.py").write_text(LOOKING_UP)
    (package / "one.py").write_text(IMPLEMENTATION.format(name="one", value=1))
    (package / "zone.py").write_text(IMPLEMENTATION.format(name="two", value=2))
    from house.protocol import things

    assert things["two"] == 2
    assert sys.modules["house.a_lookup"].SEEN == ["one", "two"]


@pytest.mark.parametrize(
    ("registry", "variable", "package"),
    [
        (objectives, "objectives", "objectives"),
        (families, "families", "families"),
        (judges, "judges", "judges"),
        (writers, "writers", "prompts"),
        (feature_extractors, "feature_extractors", "features"),
        (merge_methods, "merge_methods", "merge/methods"),
    ],
)
def test_a_registrys_entries_are_those_that_its_files_register(
    registry: Registry[Any], variable: str, package: str
) -> None:
    files = [path for folder in (package, EMBEDDED) for path in (SAFETY / folder).glob("*.py")]
    registering = {f.stem for f in files if f"{variable}.register(" in f.read_text(encoding="utf-8")}
    # Tests register further ones.
    found = {entry.__module__ for entry in registry.values() if entry.__module__.startswith("safety.")}
    assert registering
    assert {module.rpartition(".")[2] for module in found} == registering


def test_a_config_takes_any_registered_objective_and_names_the_wrong_field_of_the_chosen_one() -> None:
    for name, objective in objectives.items():
        parsed = ExpertConfig.model_validate({"objective": {"name": name}, "benign_rows": 4}).objective
        assert type(parsed) is objective.config_type
        assert parsed.name == name
    with pytest.raises(ValidationError) as raised:
        ExpertConfig.model_validate({"objective": {"name": "diffusion-dpo", "beta": -1}})
    assert [error["loc"] for error in raised.value.errors()] == [("objective", "diffusion-dpo", "beta")]
    with pytest.raises(ValidationError, match="expected tags: .*'anchored-dpo'"):
        ExpertConfig.model_validate({"objective": {"name": "dpo"}})
