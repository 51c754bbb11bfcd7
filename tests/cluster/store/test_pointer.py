"""Pointers move by compare-and-swap: of several movers one wins."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from cluster.errors import CorruptArtifact, PointerMoved
from cluster.store.artifacts import ArtifactStore
from cluster.store.objects import LostRace
from cluster.store.pointer import read_pointer, swap_pointer


def test_a_pointer_moves_from_what_it_names(store: ArtifactStore) -> None:
    assert read_pointer(store, "aligned") is None
    swap_pointer(store, "aligned", None, "r-1")
    swap_pointer(store, "aligned", "r-1", "r-2")
    assert read_pointer(store, "aligned") == "r-2"
    for expected in (None, "r-1"):
        with pytest.raises(PointerMoved, match="it names 'r-2'"):
            swap_pointer(store, "aligned", expected, "r-3")
    with pytest.raises(PointerMoved, match="it names None, not 'r-1'"):
        swap_pointer(store, "other", "r-1", "r-2")
    assert read_pointer(store, "aligned") == "r-2"
    assert read_pointer(store, "other") is None


@pytest.mark.parametrize("same_target", [False, True])
def test_of_eight_movers_exactly_one_wins_each_round(store: ArtifactStore, same_target: bool) -> None:
    barrier, current = threading.Barrier(8), None

    for number in range(5):
        targets = [f"r-{number}" if same_target else f"r-{number}-{i}" for i in range(8)]

        def move(target: str, expected: str | None = current) -> bool:
            barrier.wait()
            try:
                swap_pointer(store, "aligned", expected, target)
            except PointerMoved:
                return False
            return True

        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(move, targets))
        assert won.count(True) == 1
        current = targets[won.index(True)]
        assert read_pointer(store, "aligned") == current


def test_a_move_whose_answer_was_lost_is_known_as_one_s_own(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = store.write

    def write(key: str, data: bytes, *, if_absent: bool = False, if_match: str | None = None) -> None:
        """Write, and answer as the second try of a write whose first answer was lost."""
        real(key, data, if_absent=if_absent, if_match=if_match)
        raise LostRace("412")

    monkeypatch.setattr(store, "write", write)
    swap_pointer(store, "aligned", None, "r-1")
    swap_pointer(store, "aligned", "r-1", "r-2")
    assert read_pointer(store, "aligned") == "r-2"


@pytest.mark.parametrize(
    "data", [b"", b"r-1", b"[]", b"{}", b"[" * 60_000], ids=["empty", "text", "list", "mapping", "deep"]
)
def test_a_damaged_pointer_is_named(store: ArtifactStore, data: bytes) -> None:
    store.write("pointers/aligned.json", data)
    with pytest.raises(CorruptArtifact, match="pointer aligned"):
        read_pointer(store, "aligned")
