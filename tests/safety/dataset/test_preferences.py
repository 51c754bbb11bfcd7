"""Preference files and the batches that are drawn from them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from safety.dataset.latents import load_preferences
from safety.dataset.preferences import PreferenceSet, combine
from safety.dataset.stack import Stack
from safety.errors import ArtifactFormatError, EmptyDatasetError
from tests.support.small_sets import write_sets


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
        benign=torch.randn(benign, 2, 3, 3, generator=draw),
        benign_prompts=states(benign),
    )


def gathered(rows: Any) -> Any:
    """Return rows of memory or of files as one tensor, prompts' as a dict of them, and anything else as it is."""
    if isinstance(rows, dict):
        return {key: gathered(value) for key, value in rows.items()}
    return rows[list(range(len(rows)))] if isinstance(rows, Stack) else rows


def assert_same(one: PreferenceSet, other: PreferenceSet) -> None:
    for name in vars(one):
        value, found = gathered(getattr(one, name)), gathered(getattr(other, name))
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, found)
        elif isinstance(value, dict):
            assert value.keys() == found.keys()
            assert all(torch.equal(value[key], found[key]) for key in value)
        else:
            assert value == found


@pytest.mark.parametrize("benign", [0, 3])
def test_files_give_back_what_was_written(tmp_path: Path, benign: int) -> None:
    written = make_set(benign=benign)
    write_sets(tmp_path, written)
    found = load_preferences(tmp_path, "hate")
    assert_same(found, written)
    assert_same(found.rows("train"), written.rows("train"))


def test_several_files_are_one_set_and_nothing_of_them_is_copied(tmp_path: Path) -> None:
    whole = make_set(pairs=7, benign=2)
    write_sets(tmp_path, whole)
    for number, rows in enumerate(([0, 1, 2], [3], [4, 5, 6])):
        part = whole._take(rows, [])
        write_sets(tmp_path / "part", part)
        (tmp_path / "part" / "latents" / "hate" / "000000.safetensors").rename(
            tmp_path / "latents" / "hate" / f"{number:06d}.safetensors"
        )
    found = load_preferences(tmp_path, "hate")
    assert_same(found, whole)
    assert_same(combine([found, make_set("violence")], "all"), combine([whole, make_set("violence")], "all"))
    assert isinstance(found.winner, Stack)
    train = found.rows("train").winner
    assert isinstance(train, Stack)
    assert [part.data_ptr() for part in train.parts] == [part.data_ptr() for part in found.winner.parts]
    assert torch.equal(train[[3, 0, 3]], whole.winner[[3, 0, 3]])
    assert train[[]].shape == (0, *whole.winner.shape[1:])


def test_a_split_keeps_its_own_rows_and_their_prompts() -> None:
    preferences = make_set()
    train = preferences.rows("train")
    assert train.ids == preferences.ids[:4]
    assert torch.equal(train.loser, preferences.loser[:4])
    assert train.benign_ids == ("benign-1", "benign-2")
    assert torch.equal(train.benign_prompts["pooled"], preferences.benign_prompts["pooled"][1:])
    assert preferences.rows("validation").ids == ("hate-4",)


def test_two_rows_a_pair_and_the_prompt_of_each() -> None:
    preferences = make_set()
    rows = preferences.schedule(seed=0, step=0, size=10)
    assert Counter((row.pair, row.side) for row in rows) == {(i, s): 1 for i in range(5) for s in ("unsafe", "safe")}
    states = preferences.conditioning(rows)["states"]
    for place, row in enumerate(rows):
        source = preferences.safe if row.side == "safe" else preferences.unsafe
        assert torch.equal(states[place], source["states"][row.pair])
        assert preferences.row_id(row) == f"hate-{row.pair}/{row.side}"


def test_a_split_without_pairs_says_so() -> None:
    with pytest.raises(EmptyDatasetError, match=r"hate.*heldout"):
        make_set().rows("heldout")


@given(pairs=st.integers(1, 12), size=st.integers(1, 9), seed=st.integers(0, 3))
def test_every_epoch_visits_every_row_once(pairs: int, size: int, seed: int) -> None:
    preferences = make_set(pairs=pairs)
    steps = -(-3 * 2 * pairs // size)
    seen = [row for step in range(steps) for row in preferences.schedule(seed, step, size)]
    for epoch in range(3):
        once = Counter((row.pair, row.side) for row in seen if row.draw == epoch)
        assert once == {(i, s): 1 for i in range(pairs) for s in ("unsafe", "safe")}
    benign = [row for step in range(9) for row in preferences.benign_schedule(seed, step, 1)]
    assert Counter((row.place, row.draw) for row in benign) == {(i, e): 1 for i in range(3) for e in range(3)}


def test_schedules_differ_between_epochs_and_seeds_and_need_no_history() -> None:
    preferences = make_set(pairs=20)
    first, second, other = (
        [row[:2] for row in preferences.schedule(seed, step, 40)] for seed, step in ((0, 0), (0, 1), (1, 0))
    )
    assert first != second
    assert first != other
    assert second == [row[:2] for row in make_set(pairs=20).schedule(0, 1, 40)]


def test_no_benign_rows_give_an_empty_schedule() -> None:
    assert make_set(benign=0).benign_schedule(0, 0, 4) == []


def test_combine_keeps_all_pairs_and_each_benign_row_once() -> None:
    hate, violence = make_set("hate"), make_set("violence", pairs=2)
    joined = combine([hate, violence], "all")
    assert joined.ids == (*hate.ids, *violence.ids)
    assert torch.equal(joined.winner[5:], violence.winner)
    assert torch.equal(joined.unsafe["pooled"][:5], hate.unsafe["pooled"])
    assert joined.benign_ids == hate.benign_ids
    assert torch.equal(joined.benign, hate.benign)
    assert joined.splits == (*hate.splits, *violence.splits)
    for sets in ([hate, hate], []):
        with pytest.raises(ValueError, match="no set to combine, or a pair"):
            combine(sets, "all")


def test_parts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="loser has 4 entries instead of 5"):
        replace(make_set(), loser=torch.zeros(4, 2, 3, 3))
    with pytest.raises(ValueError, match="different keys"):
        replace(make_set(), empty={"states": torch.zeros(1, 4, 6)})


@pytest.mark.parametrize("damage", ["truncated", "foreign", "lacking", "infinite"])
def test_a_damaged_file_is_refused(tmp_path: Path, damage: str) -> None:
    write_sets(tmp_path, make_set())
    path = tmp_path / "latents" / "hate" / "000000.safetensors"
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-10])
    elif damage == "foreign":
        save_file({"winner": torch.zeros(1)}, path)
    else:
        with safe_open(path, "pt") as handle:
            metadata = handle.metadata()
        tensors = load_file(path)
        if damage == "lacking":
            del tensors["loser"]
        else:
            tensors["loser"][0, 0, 0, 0] = float("inf")
        save_file(tensors, path, metadata=metadata)
    with pytest.raises(ArtifactFormatError, match="holds no latents of rows"):
        load_preferences(tmp_path, "hate")
