"""Registries."""

from __future__ import annotations

import pytest

from safety.errors import ConfigError
from safety.registry import Registry


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
