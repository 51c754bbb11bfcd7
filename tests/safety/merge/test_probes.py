"""Probes hold the rows of one split, evenly from every category, with each row's own tensors."""

from __future__ import annotations

import pytest
import torch

from safety.dataset.preferences import PreferenceSet
from safety.errors import EmptyDatasetError
from safety.families import ModelFamily
from safety.merge.probes import Probes, gather_probes, unsafe_batches


def preference_set(category: str, offset: float, splits: tuple[str, ...]) -> PreferenceSet:
    """Return a set whose every tensor is filled with its row's own number."""

    def filled(start: float, count: int, *shape: int) -> torch.Tensor:
        numbers = torch.arange(count, dtype=torch.float32) + start
        return numbers.view(count, *([1] * len(shape))).expand(count, *shape).contiguous()

    count = len(splits)
    return PreferenceSet(
        category=category,
        ids=tuple(f"{category}-{index}" for index in range(count)),
        splits=splits,
        winner=filled(offset, count, 2, 3, 3),
        loser=filled(offset + 0.5, count, 2, 3, 3),
        unsafe={"states": filled(offset + 10, count, 4, 5)},
        safe={"states": filled(offset + 20, count, 4, 5)},
        benign_ids=("b0", "b1", "b2"),
        benign_splits=("train", "validation", "validation"),
        benign=filled(70, 3, 2, 3, 3),
        benign_prompts={"states": filled(80, 3, 4, 5)},
        empty={"states": filled(0, 1, 4, 5)},
    )


def test_rows_keep_their_own_tensors() -> None:
    sets = {
        "hate": preference_set("hate", 100, ("train", "validation", "validation", "validation")),
        "violence": preference_set("violence", 200, ("validation", "train")),
    }
    probes = gather_probes(sets, "validation", 2, 1)
    assert probes.ids == ("hate-1", "hate-2", "violence-0")
    assert probes.categories == ("hate", "hate", "violence")
    assert probes.winners[:, 0, 0, 0].tolist() == [101, 102, 200]
    assert probes.losers[:, 0, 0, 0].tolist() == [101.5, 102.5, 200.5]
    assert probes.unsafe["states"][:, 0, 0].tolist() == [111, 112, 210]
    assert probes.safe["states"][:, 0, 0].tolist() == [121, 122, 220]
    # The benign rows are shared by the categories' files, and count once.
    assert probes.benign_ids == ("b1",)
    assert probes.benign_latents[:, 0, 0, 0].tolist() == [71]
    assert gather_probes(sets, "validation", 9, 9).benign_ids == ("b1", "b2")


def test_a_category_without_the_split_is_named() -> None:
    with pytest.raises(EmptyDatasetError, match="'hate' has no pair in the split 'validation'"):
        gather_probes({"hate": preference_set("hate", 0, ("train",))}, "validation", 2, 1)


def test_noise_depends_on_the_row_and_not_on_the_batch(tiny_model: ModelFamily, probes: Probes) -> None:
    whole = torch.cat([b.noisy for b in unsafe_batches(tiny_model, probes, (0.9, 0.3), 6, 1, "x")])
    pieces = torch.cat([b.noisy for b in unsafe_batches(tiny_model, probes, (0.9, 0.3), 1, 1, "x")])
    other = torch.cat([b.noisy for b in unsafe_batches(tiny_model, probes, (0.9, 0.3), 6, 2, "x")])
    assert torch.equal(whole, pieces)
    assert not torch.equal(whole, other)
