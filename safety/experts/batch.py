"""The batch of one forward pass of training: noised winners, losers and benign latents, drawn by row and visit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from safety.dataset.preferences import BenignRow, PreferenceRow, PreferenceSet
from safety.experts.config import ExpertConfig
from safety.families.family import Conditioning, ModelFamily
from safety.seeds import normal, uniform

Entry = TypeVar("Entry")
GOLDEN_RATIO_FRACTION = 0.6180339887498949


class Batch(NamedTuple):
    """B winners, then their B losers, then M benign rows, as one concatenated input of n = 2B + M."""

    rows: int
    """B."""
    noisy: Tensor
    """x_t, fp32 [n, C, h, w]; a winner and its loser share noise and timestep."""
    timesteps: Tensor
    """int64 [n]."""
    conditioning: Conditioning
    """[n, ...]; a winner and its loser share the prompt."""
    target: Tensor
    """The denoiser's target, fp32 [n, C, h, w]."""


class BatchMaker:
    """Makes batches of one split; every draw is a function of (seed, category, row, number of the visit)."""

    def __init__(self, model: ModelFamily, data: PreferenceSet, config: ExpertConfig, seed: int) -> None:
        """Draw from ``data``, which holds one split only."""
        self.model, self.data, self.config, self.seed = model, data, config, seed

    @property
    def positions(self) -> int:
        """Return the number of a latent's positions, h * w."""
        return int(self.data.winner.shape[-2] * self.data.winner.shape[-1])

    def step(self, step: int, part: int, parts: int, *, benign: bool) -> Batch:
        """Return one of the equal parts of a step's rows."""
        rows = self.data.schedule(self.seed, step, self.config.rows)
        others = self.data.benign_schedule(self.seed, step, self.config.benign_rows if benign else 0)
        return self.make(_part(rows, part, parts), _part(others, part, parts))

    def first(self, count: int) -> Batch:
        """Return the first rows, up to ``count``, of the split's own order, under its first draws."""
        return self.make(self.data.schedule(self.seed, 0, min(count, 2 * len(self.data))), [])

    def make(self, rows: Sequence[PreferenceRow], benign: Sequence[BenignRow]) -> Batch:
        """Return the batch of these rows, on the model's device."""
        pairs, places = [row.pair for row in rows], [row.place for row in benign]
        draws = [(self.data.row_id(row), row.draw) for row in rows]
        benign_draws = [(self.data.benign_ids[row.place], row.draw) for row in benign]
        all_draws = [*draws, *draws, *benign_draws]
        clean = torch.cat([self.data.winner[pairs], self.data.loser[pairs], self.data.benign[places]])
        noise = self._noise(all_draws, tuple(clean.shape[1:]))
        timesteps = torch.tensor([self._timestep(*draw) for draw in all_draws])
        device = self.model.device
        clean, noise, timesteps = clean.to(device), noise.to(device), timesteps.to(device)
        return Batch(
            rows=len(rows),
            noisy=self.model.add_noise(clean, noise, timesteps),
            timesteps=timesteps,
            conditioning=self._conditioning(rows, draws, places, benign_draws),
            target=self.model.target(clean, noise, timesteps),
        )

    def _noise(self, draws: Sequence[tuple[str, int]], shape: tuple[int, ...]) -> Tensor:
        found = {
            draw: normal(shape, self.seed, self._name(draw[0]), f"noise-{draw[1]}") for draw in dict.fromkeys(draws)
        }
        return torch.stack([found[draw] for draw in draws])

    def _timestep(self, row_id: str, draw: int) -> int:
        """Return a timestep; a row's successive draws are spread evenly, in steps of the golden ratio."""
        start, end = self.config.timesteps
        share = (uniform(self.seed, self._name(row_id), "timestep") + draw * GOLDEN_RATIO_FRACTION) % 1.0
        count = self.model.train_timesteps
        return min(int((start + (end - start) * share) * count), count - 1)

    def _conditioning(
        self,
        rows: Sequence[PreferenceRow],
        draws: Sequence[tuple[str, int]],
        places: list[int],
        benign_draws: Sequence[tuple[str, int]],
    ) -> Conditioning:
        dropped = self._dropped(draws, self.config.caption_dropout)
        benign_dropped = self._dropped(benign_draws, self.config.benign_dropout)
        found = {}
        for key, prompts in self.data.conditioning(rows).items():
            pairs = _emptied(prompts, dropped, self.data.empty[key])
            benign = _emptied(self.data.benign_prompts[key][places], benign_dropped, self.data.empty[key])
            found[key] = torch.cat([pairs, pairs, benign]).to(self.model.device)
        return found

    def _dropped(self, draws: Sequence[tuple[str, int]], share: float) -> Tensor:
        """Return which draws have their prompt replaced by the empty one, bool [n]."""
        return torch.tensor(
            [uniform(self.seed, self._name(row_id), f"dropout-{draw}") < share for row_id, draw in draws],
            dtype=torch.bool,
        )

    def _name(self, row_id: str) -> str:
        return f"{self.data.category}/{row_id}"


def _emptied(prompts: Tensor, dropped: Tensor, empty: Tensor) -> Tensor:
    """Return the prompts' states [n, ...], with the empty prompt's where ``dropped`` [n] is True."""
    return torch.where(dropped.view(-1, *[1] * (prompts.ndim - 1)), empty, prompts)


def _part(entries: Sequence[Entry], part: int, parts: int) -> Sequence[Entry]:
    size = len(entries) // parts
    return entries[part * size : (part + 1) * size]
