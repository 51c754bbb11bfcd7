"""Preference files and the batches that are drawn from them."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from safety.errors import ArtifactFormatError, EmptyDatasetError
from safety.preferences import PreferenceSet, join, load_preferences, visits, write_preference_file


def make_set(category: str = "hate", pairs: int = 5, benign: int = 3) -> PreferenceSet:
    draw = torch.Generator().manual_seed(len(category))

    def states(count: int) -> dict[str, torch.Tensor]:
        return {"states": torch.randn(count, 4, 6, generator=draw), "pooled": torch.randn(count, 6, generator=draw)}

    return PreferenceSet(
        category=category,
        ids=tuple(f"{category}-{i}" for i in range(pairs)),
        splits=tuple("validation" if i == pairs - 1 else "train" for i in range(pairs)),
        winner=torch.randn(pairs, 2, 3, 3, generator=draw),
        loser=torch.randn(pairs, 2, 3, 3, generator=draw),
        unsafe=states(pairs),
        safe=states(pairs),
        empty=states(1),
        benign_ids=tuple(f"benign-{i}" for i in range(benign)),
        benign_splits=tuple("train" if i else "validation" for i in range(benign)),
        benign_latents=torch.randn(benign, 2, 3, 3, generator=draw),
        benign=states(benign),
    )


def assert_same(one: PreferenceSet, other: PreferenceSet) -> None:
    for name, value in vars(one).items():
        found = getattr(other, name)
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, found)
        elif isinstance(value, dict):
            assert value.keys() == found.keys()
            assert all(torch.equal(value[key], found[key]) for key in value)
        else:
            assert value == found


@pytest.mark.parametrize("benign", [0, 3])
def test_a_file_gives_back_what_was_written(tmp_path: Path, benign: int) -> None:
    written = make_set(benign=benign)
    assert_same(load_preferences(write_preference_file(tmp_path / "a" / "hate.safetensors", written)), written)


def test_equal_sets_give_equal_bytes(tmp_path: Path) -> None:
    paths = [write_preference_file(tmp_path / name, make_set()) for name in ("a.safetensors", "b.safetensors")]
    first, second = (hashlib.sha256(path.read_bytes()).hexdigest() for path in paths)
    assert first == second


def test_two_rows_a_pair_and_the_prompt_of_each() -> None:
    preferences = make_set()
    rows = preferences.rows("train")
    assert Counter(row.pair for row in rows) == {0: 2, 1: 2, 2: 2, 3: 2}
    states = preferences.conditioning(rows)["states"]
    for place, row in enumerate(rows):
        source = preferences.safe if row.row_id.endswith("/safe") else preferences.unsafe
        assert torch.equal(states[place], source["states"][row.pair])
    assert [row.pair for row in preferences.rows("validation")] == [4, 4]
    assert preferences.benign_rows("train") == [1, 2]


def test_a_split_without_pairs_says_so() -> None:
    with pytest.raises(EmptyDatasetError, match=r"hate.*heldout"):
        make_set().rows("heldout")


@given(count=st.integers(1, 30), size=st.integers(1, 20), seed=st.integers(0, 3))
def test_every_epoch_visits_every_entry_once(count: int, size: int, seed: int) -> None:
    steps = -(-3 * count // size)
    seen = [visit for step in range(steps) for visit in visits(count, size, step, seed, "test")]
    for epoch in range(3):
        assert sorted(v.entry for v in seen if v.epoch == epoch) == list(range(count))
    assert len(seen) == steps * size


def test_orders_differ_between_epochs_and_seeds() -> None:
    first, second, other = (
        [v.entry for v in visits(40, 40, step, seed, "p")] for step, seed in ((0, 0), (1, 0), (0, 1))
    )
    assert first != second
    assert first != other
    assert first == [v.entry for v in visits(40, 40, 0, 0, "p")]


def test_join_keeps_all_pairs_and_each_benign_row_once() -> None:
    hate, violence = make_set("hate"), make_set("violence", pairs=2)
    joined = join("all", [hate, violence])
    assert joined.ids == (*hate.ids, *violence.ids)
    assert torch.equal(joined.winner[5:], violence.winner)
    assert torch.equal(joined.unsafe["pooled"][:5], hate.unsafe["pooled"])
    assert joined.benign_ids == hate.benign_ids
    assert torch.equal(joined.benign_latents, hate.benign_latents)
    with pytest.raises(ValueError, match="share a pair"):
        join("all", [hate, hate])


def test_parts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="loser has 4 entries where 5"):
        replace(make_set(), loser=torch.zeros(4, 2, 3, 3))
    with pytest.raises(ValueError, match="different keys"):
        replace(make_set(), empty={"states": torch.zeros(1, 4, 6)})


@pytest.mark.parametrize("damage", ["truncated", "foreign", "lacking", "infinite"])
def test_a_damaged_file_is_refused(tmp_path: Path, damage: str) -> None:
    path = write_preference_file(tmp_path / "x.safetensors", make_set())
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-10])
    elif damage == "foreign":
        save_file({"winner": torch.zeros(1)}, path)
    else:
        from safetensors import safe_open

        with safe_open(path, "pt") as handle:
            metadata = handle.metadata()
        tensors = load_file(path)
        if damage == "lacking":
            del tensors["loser"]
        else:
            tensors["loser"][0, 0, 0, 0] = float("inf")
        save_file(tensors, path, metadata=metadata)
    with pytest.raises(ArtifactFormatError, match="no preferences"):
        load_preferences(path)
