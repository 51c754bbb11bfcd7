"""A driver that cannot load a base model, as on a head node without the model's device; workers are other processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from safety.families import families


def refuse(path: Path, **_: Any) -> Any:
    """Stand in for every family's loader."""
    raise AssertionError(f"the driver loads {path}")


@contextmanager
def no_model_here() -> Iterator[None]:
    """Have this process fail when it loads a base model."""
    with pytest.MonkeyPatch.context() as patch:
        for family in families.values():
            patch.setattr(family, "load", refuse)
        yield
