"""A merge method as a file of its own: what a new one needs, and nothing else."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import pytest

from safety.merge import merge_methods, methods

NAME = "first-alone"
LABEL = "First expert alone"
SOURCE = '''
"""The first expert alone, scaled."""

from typing import Literal

from safety.merge.method import MergeResult, MethodConfig, base_report, merge_methods


class FirstAloneConfig(MethodConfig):
    name: Literal["first-alone"] = "first-alone"
    scale: float = 1.0


class FirstAlone:
    label = "First expert alone"
    config_type = FirstAloneConfig
    needs = frozenset()

    def __call__(self, experts, statistics, config, /):
        weights = next(iter(experts.values())).scaled(config.scale)
        return MergeResult(weights, base_report(experts, weights, config))


merge_methods.register("first-alone")(FirstAlone())
'''


def write_method(folder: Path) -> None:
    (folder / "first_alone.py").write_text(SOURCE, encoding="utf-8")


def add_method(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Add the file to the package of merge methods until the test ends."""
    write_method(folder)
    known = dict(merge_methods)
    monkeypatch.setattr(merge_methods, "_entries", known)
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(folder)])
    module = f"{methods.__name__}.first_alone"
    monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, module, import_module(module))
