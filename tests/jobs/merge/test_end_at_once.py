"""The search ends at an error of every point, and goes on after an error of one point or of a lost process."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from jobs.merge.search import _EndAtOnce
from safety.errors import ConfigError

KNOWN = ConfigError("no model", field="model.path", fix="name one")
LOST = ray.exceptions.RayActorError()


@pytest.fixture
def staging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder in which Tune's driver keeps its files before the experiment's storage gets them."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def failed(error: Exception | None, name: str = "a") -> Any:
    """Return a trial as Tune has it right after a failure: its error is in the driver's folder alone."""
    path = Path(f"{name}.pkl").absolute()
    if error is not None:
        path.write_bytes(ray.cloudpickle.dumps(error))
    return SimpleNamespace(
        trial_id=name, get_pickled_error=lambda: None, pickled_error_file=None if error is None else str(path)
    )


pytestmark = pytest.mark.usefixtures("staging")


@pytest.mark.parametrize("hook", ["on_trial_recover", "on_trial_error"])
@pytest.mark.parametrize("scored", [True, False])
def test_a_known_error_ends_it_at_the_first_try(hook: str, scored: bool) -> None:
    ending = _EndAtOnce(scored=scored)
    with pytest.raises(ConfigError):
        getattr(ending, hook)(1, [], failed(KNOWN))
    assert str(ending.final) == str(KNOWN)


def test_a_lost_process_and_no_error_at_all_end_nothing() -> None:
    ending = _EndAtOnce(scored=False)
    for error in (LOST, LOST, LOST, None):
        ending.on_trial_recover(1, [], failed(error))
    assert ending.final is None


def test_an_unknown_error_that_comes_again_ends_it_before_anything_was_scored() -> None:
    ending = _EndAtOnce(scored=False)
    ending.on_trial_recover(1, [], failed(RuntimeError("odd")))
    ending.on_trial_recover(1, [], failed(RuntimeError("odd"), "b"))
    with pytest.raises(RuntimeError, match="odd"):
        ending.on_trial_recover(1, [], failed(RuntimeError("odd")))


def test_an_unknown_error_of_one_point_costs_that_point_alone() -> None:
    ending = _EndAtOnce(scored=False)
    ending.on_trial_complete(1, [], failed(None, "start"))
    for _ in range(3):
        ending.on_trial_recover(1, [], failed(RuntimeError("odd")))
    assert ending.final is None
