"""Probes: cached latents and text states of a few pairs per category, for calibrating and scoring merges."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from safety.dataset.preferences import PreferenceSet, combine
from safety.families.family import Conditioning, ModelFamily
from safety.seeds import normal


class Probes(NamedTuple):
    """N pairs of all categories and M benign rows, all of one split."""

    ids: tuple[str, ...]
    categories: tuple[str, ...]
    """The pairs' categories, N of them."""
    winners: Tensor
    """Latents of the safe images, fp32 [N, C, h, w]."""
    losers: Tensor
    """Latents of the unsafe images, fp32 [N, C, h, w]."""
    unsafe: Conditioning
    """The unsafe prompts, [N, ...]."""
    safe: Conditioning
    """The safe prompts, [N, ...]."""
    benign_ids: tuple[str, ...]
    benign_latents: Tensor
    """fp32 [M, C, h, w]."""
    benign: Conditioning
    """The benign prompts, [M, ...]."""


class NoisyBatch(NamedTuple):
    """One batch of noised latents at one timestep."""

    rows: range
    """The rows of the probes in this batch."""
    noisy: Tensor
    """x_t, [B, C, h, w]."""
    timesteps: Tensor
    """int64 [B], all equal."""
    conditioning: Conditioning

    def under(self, conditioning: Conditioning) -> NoisyBatch:
        """Return the same latents under other prompts, which are given for all probes."""
        return self._replace(conditioning=_rows(conditioning, self.rows, self.noisy.device))


def spread(count: int, wanted: int) -> list[int]:
    """Return ``wanted`` indices spread evenly over ``range(count)``, or all when there are fewer."""
    return [index * count // wanted for index in range(wanted)] if wanted < count else list(range(count))


def gather_probes(sets: Mapping[str, PreferenceSet], split: str, pairs: int, benign: int) -> Probes:
    """Choose up to ``pairs`` pairs per category and ``benign`` benign rows in all, spread evenly over one split.

    Raises EmptyDatasetError when a category has no pair in the split.
    """
    parts = {category: preferences.rows(split) for category, preferences in sets.items()}
    combined = combine(list(parts.values()), "all")
    chosen: list[int] = []
    categories: list[str] = []
    first = 0
    for category, part in parts.items():
        own = [first + index for index in spread(len(part), pairs)]
        chosen += own
        categories += [category] * len(own)
        first += len(part)
    benign_rows = spread(len(combined.benign_ids), benign)
    return Probes(
        ids=tuple(combined.ids[row] for row in chosen),
        categories=tuple(categories),
        winners=combined.winner[chosen],
        losers=combined.loser[chosen],
        unsafe={key: value[chosen] for key, value in combined.unsafe.items()},
        safe={key: value[chosen] for key, value in combined.safe.items()},
        benign_ids=tuple(combined.benign_ids[row] for row in benign_rows),
        benign_latents=combined.benign[benign_rows],
        benign={key: value[benign_rows] for key, value in combined.benign_prompts.items()},
    )


def timestep_of(model: ModelFamily, share: float) -> int:
    """Return the timestep at a fraction of the model's noise schedule, 1 being the noisiest."""
    return max(0, min(model.train_timesteps - 1, round(share * model.train_timesteps)))


def unsafe_batches(
    model: ModelFamily, probes: Probes, shares: Sequence[float], batch: int, seed: int, purpose: str
) -> Iterator[NoisyBatch]:
    """Yield the unsafe images' latents, noised at each fraction of the schedule, under their unsafe prompts.

    The noise is drawn by (seed, row id, purpose, timestep), so that it does not depend on the batch size.
    """
    rows = _Rows(probes.ids, probes.losers, probes.unsafe)
    return _noisy_batches(model, rows, shares, batch, seed, purpose)


def benign_batches(
    model: ModelFamily, probes: Probes, shares: Sequence[float], batch: int, seed: int, purpose: str
) -> Iterator[NoisyBatch]:
    """Yield the benign rows' latents, noised at each fraction of the schedule, under their own prompts."""
    rows = _Rows(probes.benign_ids, probes.benign_latents, probes.benign)
    return _noisy_batches(model, rows, shares, batch, seed, purpose)


class _Rows(NamedTuple):
    ids: tuple[str, ...]
    latents: Tensor
    conditioning: Conditioning


def _rows(conditioning: Conditioning, rows: range, device: torch.device) -> Conditioning:
    return {key: value[rows.start : rows.stop].to(device) for key, value in conditioning.items()}


def _noisy_batches(
    model: ModelFamily, source: _Rows, shares: Sequence[float], batch: int, seed: int, purpose: str
) -> Iterator[NoisyBatch]:
    shape = tuple(source.latents.shape[1:])
    for timestep in (timestep_of(model, share) for share in shares):
        for start in range(0, len(source.ids), batch):
            rows = range(start, min(start + batch, len(source.ids)))
            noise = torch.stack([normal(shape, seed, source.ids[row], f"{purpose}-{timestep}") for row in rows])
            steps = torch.full((len(rows),), timestep, device=model.device)
            clean = source.latents[rows.start : rows.stop].to(model.device)
            noisy = model.add_noise(clean, noise.to(model.device), steps)
            yield NoisyBatch(rows, noisy, steps, _rows(source.conditioning, rows, model.device))
