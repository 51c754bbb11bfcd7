"""Fixtures of the fault tests: full or reduced counts, and their figures, kept in ``docs/faults``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import folder_store
from tests.faults import small_run
from tests.faults.figures import Figures
from tests.faults.small_run import Made

FOLDER = Path(__file__).parents[2] / "docs" / "faults"


@pytest.fixture(scope="session")
def full(request: pytest.FixtureRequest) -> bool:
    """Say whether ``--faults-full`` was given."""
    return bool(request.config.getoption("--faults-full"))


@pytest.fixture(scope="session")
def times(full: bool) -> Callable[[int, int], int]:
    """Return a function that picks the full or the reduced count."""
    return lambda all_of_them, some: all_of_them if full else some


@pytest.fixture(scope="session")
def figures(full: bool) -> Iterator[Figures]:
    """Collect figures; a full run writes them, beside those of the tests that it leaves out."""
    found = Figures()
    yield found
    if full:
        found.write(FOLDER)


@pytest.fixture(scope="session")
def undisturbed(ray_cluster: None, tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Return what the small run makes when nobody disturbs it."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return small_run.run(small_run.context_of(tiny_model_dir, folder_store(folder / "store"), folder))
