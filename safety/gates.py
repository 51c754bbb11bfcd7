"""Gates: projections that divide the space of prompt states among experts and benign prompts.

A cross-attention's keys and values are linear in the text encoder's states, so an expert's dW_i acts on x = a token's
state, and its mean effect on any set of prompts depends on their second moments alone. With G_i = mean x x^T over the
prompts of expert i, G_0 over benign prompts, and T = sum_j G_j + w N G_0 + ridge, the gates

    P_i = G_i T^-1 = sum_k h_k (T v_k) v_k^T,    G_i v_k = h_k T v_k,    v_k^T T v_k = 1

divide the input space: h_k, in [0, 1], is the share of expert i in the activation along v_k; benign prompts take a
share as well. For experts trained without a gate, sum_i dW_i P_i is the least-squares linear map that is nearest to
every expert on its own prompts and to no change on benign ones: the merge of RegMean (Jin et al., arXiv:2212.09849),
with benign prompts held fixed as in closed-form concept erasure (MACE, Lu et al., arXiv:2403.06135).

An expert that is trained behind its gate (``safety.lora.gate``) hardly affects other experts' prompts and benign ones,
so experts can be added up. A steep gate suits that best: directions that all prompts share (h about 1 / 2N) would pass
a little through each gate, and the experts' effects there are similar and add up. With ``directions`` = k, a gate
passes the k directions with its largest shares whole (h = 1) and nothing else: the prompts of a category name few
concepts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from safety.base import Config
from safety.eigen import generalised_eigh
from safety.errors import EmptyDatasetError
from safety.families.family import ModelFamily
from safety.prompts.rows import PromptSet
from safety.tensor_format import Head, TensorFormat, Tensors

BATCH, BATCH_BYTES = 64, 2**27
"""Most prompts that are encoded at once, and most bytes of their states in fp64: a T5's are 16 MiB a prompt."""
FORMAT = TensorFormat(
    name="safetydpo-prompt-moments-1",
    key="prompt_moments",
    misfit="holds no prompt moments",
    field="prompt moments",
    fix="gather them again",
)


class GateConfig(Config):
    """Division of the directions of the prompt states among experts."""

    benign: float = Field(3.0, ge=0, description="weight of benign prompts beside all experts' own")
    ridge: float = Field(1e-4, gt=0, description="share of the mean activation that is added in all directions")
    directions: int | None = Field(
        8,
        gt=0,
        description="how many of its own directions a gate passes, whole; None: all, each by the share it has in it",
    )


class GatePrompts(NamedTuple):
    """Prompts that gates are computed from, by their text embeddings alone."""

    unsafe: Mapping[str, tuple[str, ...]]
    """Unsafe prompts by expert."""
    preserved: tuple[str, ...]
    """Prompts that the experts must not affect."""


def gate_prompts(prompts: PromptSet, experts: Iterable[str]) -> GatePrompts:
    """Return the training split's unsafe prompts by expert (a category), and its safe and benign ones as preserved.

    Raises:
        EmptyDatasetError: A category has no training prompt.
    """
    pairs = {name: prompts.in_split("train", name) for name in experts}
    own = {name: tuple(pair.unsafe_prompt for pair in found) for name, found in pairs.items()}
    preserved = [row.prompt for split in ("train", "text_only") for row in prompts.benign_in(split)]
    # Safe counterparts name the unsafe prompts' objects and backgrounds, so what a pair shares is preserved.
    preserved += [pair.safe_prompt for found in pairs.values() for pair in found if pair.safe_prompt is not None]
    for name, found in own.items():
        if not found:
            raise EmptyDatasetError(
                f"the dataset has no training prompt of {name!r}",
                field="dataset",
                fix="raise generate.counts.train, and generate again",
            )
    return GatePrompts(own, tuple(preserved))


class PromptMoments(NamedTuple):
    """Second moments of the token states, fp64."""

    unsafe: Tensor
    """G_i of each expert's unsafe prompts, [N, K, K]."""
    preserved: Tensor
    """G_0 of the preserved prompts, [K, K]."""

    def save(self, path: Path) -> None:
        """Write the moments as one safetensors file."""
        FORMAT.write(path, self._asdict(), {})

    def gates(
        self, config: GateConfig, experts: Sequence[int] | None = None, device: torch.device | str = "cpu"
    ) -> Tensor:
        """Return P_i, fp32 [N, K, K] on the CPU; their sum is the gate of one expert for all unsafe prompts.

        Args:
            config: How the directions are divided.
            experts: The positions of the experts that are wanted; None: all. Each costs a decomposition of [K, K].
            device: Where they are computed.
        """
        own, preserved = self.unsafe.to(device), self.preserved.to(device)
        total = own.sum(dim=0) + config.benign * len(own) * preserved
        total = total + config.ridge * total.diagonal().mean() * torch.eye(len(total), dtype=total.dtype, device=device)
        wanted = own if experts is None else own[list(experts)]
        return torch.stack([_gate(each, total, config.directions) for each in wanted]).float().cpu()


def no_moments(experts: int) -> PromptMoments:
    """Return moments without a width, for experts that cannot be gated: none adapts a layer that reads the prompt alone."""
    return PromptMoments(torch.zeros(experts, 0, 0, dtype=torch.float64), torch.zeros(0, 0, dtype=torch.float64))


def load_prompt_moments(path: Path) -> PromptMoments:
    """Read what ``PromptMoments.save`` wrote; raise ArtifactFormatError when the file is something else."""
    return FORMAT.read(path, _build)


def _build(_head: Head, tensors: Tensors) -> PromptMoments:
    return PromptMoments(unsafe=tensors["unsafe"], preserved=tensors["preserved"])


def _gate(own: Tensor, total: Tensor, directions: int | None) -> Tensor:
    """Return sum_k h_k (T v_k) v_k^T over the directions of the largest shares, fp64 [K, K].

    ``own`` is G_i and ``total`` is T. Over all directions the sum is G_i T^-1, which needs no decomposition.
    """
    if directions is None:
        solved: Tensor = torch.cholesky_solve(own, torch.linalg.cholesky(total))
        return solved.transpose(0, 1)
    _, vectors = generalised_eigh(own, total, min(directions, len(total)))
    return total @ vectors @ vectors.T


@torch.no_grad()
def gather_prompt_moments(model: ModelFamily, texts: GatePrompts) -> PromptMoments:
    """Encode the prompts and compute their second moments.

    No prompt counts as preserved, with the weight of all the others together: guidance reads it as often as the prompt
    itself, so a change to it changes every image. (Where it is zeros, no linear layer without a bias can change it.)

    Only ``states`` are divided: a pooled prompt, which some families read too, passes every gate.

    Args:
        model: The model whose text encoder is used.
        texts: At least one unsafe prompt per expert, and the preserved ones.
    """
    nothing = model.unconditional()["states"]
    size = prompts_at_once(nothing)
    return PromptMoments(
        unsafe=torch.stack([_second_moment(model, prompts, size) for prompts in texts.unsafe.values()]),
        preserved=_second_moment(model, texts.preserved, size) + _moment([nothing]),
    )


def prompts_at_once(states: Tensor) -> int:
    """Return how many prompts are encoded at once, by the size of one's states [1, T, K]."""
    return min(BATCH, max(1, BATCH_BYTES // (states.numel() * 8)))


def _second_moment(model: ModelFamily, prompts: Sequence[str], size: int) -> Tensor:
    """Return the mean of x x^T over all tokens of the prompts, fp64 [K, K]; ``size`` prompts are encoded at once."""
    starts = range(0, len(prompts), size)
    return _moment(model.encode_text(prompts[start : start + size])["states"] for start in starts)


def _moment(batches: Iterable[Tensor]) -> Tensor:
    """Return the mean of x x^T over all tokens of states [B, T, K], fp64 [K, K] on the CPU; summed on their own device."""
    total: Tensor | None = None
    count = 0
    for batch in batches:
        states = batch.double().flatten(0, 1)
        found = states.T @ states
        total = found if total is None else total + found
        count += len(states)
    if total is None:
        raise ValueError("there are no states")
    return (total / count).cpu()
