"""Eight processes publish under one id at once, round after round: one of them wins, and its content is whole."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from cluster.store.artifacts import ArtifactStore
from cluster.store.pointer import read_pointer
from tests.faults.figures import Figures

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
PUBLISHERS = 8
PUBLISHER = """
import sys
from pathlib import Path
from cluster.errors import AlreadyPublished, PointerMoved
from cluster.store.artifacts import ArtifactStore
from cluster.store.config import StoreConfig
from cluster.store.pointer import swap_pointer

store, number, folder = ArtifactStore(StoreConfig.model_validate_json(sys.argv[1])), sys.argv[2], Path(sys.argv[3])
store.check()
print("ready", flush=True)
expected = None
for line in sys.stdin:
    round_, expected = line.split()
    (folder / "a.json").write_text(f"[{number}, {round_}]")
    (folder / "b.json").write_text(f"[{round_}, {number}]")
    try:
        store.put("release", f"release-{round_}", folder, config={}, seed=int(number))
        said = "won"
    except AlreadyPublished:
        said = "lost"
    try:
        swap_pointer(store, "aligned", None if expected == "None" else expected, f"target-{round_}-{number}")
        said += " moved"
    except PointerMoved:
        said += " refused"
    print(said, flush=True)
"""


@pytest.fixture
def store(any_store: ArtifactStore) -> ArtifactStore:
    """Publish to each kind of store."""
    return any_store


@pytest.fixture
def publishers(store: ArtifactStore, tmp_path: Path) -> Iterator[list[subprocess.Popen[str]]]:
    with ExitStack() as stack:
        found = []
        for number in range(PUBLISHERS):
            (tmp_path / str(number)).mkdir()
            command = [sys.executable, "-c", PUBLISHER, store.config.model_dump_json(), str(number)]
            process = subprocess.Popen(
                [*command, str(tmp_path / str(number))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=Path(__file__).parents[2],
            )
            found.append(stack.enter_context(process))
            stack.callback(process.kill)
        for process in found:
            assert heard(process) == "ready"
        yield found


def heard(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def tell(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{line}\n")
    process.stdin.flush()


def test_one_of_eight_publishers_wins_every_round(
    store: ArtifactStore,
    publishers: list[subprocess.Popen[str]],
    tmp_path: Path,
    times: Callable[[int, int], int],
    figures: Figures,
) -> None:
    rounds, target, winners = times(100, 10), "None", set[int]()
    for number in range(rounds):
        for process in publishers:
            tell(process, f"{number} {target}")
        said = [heard(process).split() for process in publishers]
        won = [place for place, words in enumerate(said) if words[0] == "won"]
        moved = [place for place, words in enumerate(said) if words[1] == "moved"]
        assert len(won) == 1, said
        assert len(moved) == 1, said
        folder = store.fetch("release", f"release-{number}", tmp_path / "copies" / str(number))
        assert (folder / "a.json").read_text() == f"[{won[0]}, {number}]"
        assert (folder / "b.json").read_text() == f"[{number}, {won[0]}]"
        target = f"target-{number}-{moved[0]}"
        assert read_pointer(store, "aligned") == target
        winners |= {won[0], moved[0]}
    assert len(winners) > 1, "the same one was first each time: they did not meet"
    where = ", in a folder" if store.config.endpoint is None else ""
    figures.note(
        f"publishers of one id at once{where}",
        f"{PUBLISHERS} processes x {rounds} rounds: 1 artifact and 1 pointer move a round",
        rounds=rounds,
        different_winners=len(winners),
    )
