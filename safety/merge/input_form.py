"""Co-Merge's granularity "input" for many candidates: what does not depend on the benign weight is computed once.

The gates of weight w are P_i = G_i T(w)^-1, with T(w) = S + w N G_0 and a ridge on its diagonal (``safety.gates``). The
ridge is a share of T's own mean, so T(w) = S' + w G' with each part carrying its share. Both parts are diagonal in one
basis U, where U^T (S' + G') U = 1 and U^T S' U = diag(s):

    T(w)^-1 = U diag(1 / (s + w (1 - s))) U^T,    A_i P_i = (A_i G_i U) diag(...) U^T

So a candidate costs one product of all experts' stacked A_i G_i U, [sum of ranks, K], with U^T: no decomposition, and no
matrix as large as the layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from safety.eigen import generalised_eigh
from safety.gates import PromptMoments
from safety.lora.weights import LoraWeights


class InputForm:
    """The experts' factors on the layers that read the prompt, ready to be gated at any benign weight."""

    def __init__(
        self,
        experts: Mapping[str, LoraWeights],
        text_layers: Sequence[str],
        moments: PromptMoments,
        ridge: float,
        device: torch.device | str = "cpu",
    ) -> None:
        """Decompose the moments and turn the factors into the common basis, on ``device``.

        Args:
            experts: The adapters, in the moments' order.
            text_layers: The names of the layers that read the prompt.
            moments: Second moments of the prompts' states.
            ridge: The gates' ridge.
            device: Where candidates are computed.
        """
        own, preserved = moments.unsafe.to(device), moments.preserved.to(device)
        unsafe = _with_ridge(own.sum(dim=0), ridge)
        shares, basis = generalised_eigh(unsafe, unsafe + _with_ridge(len(own) * preserved, ridge))
        self.shares, self.turned = shares.clamp(0.0, 1.0), basis.T.float().contiguous()
        self.activity = torch.stack([(basis * (moment @ basis)).sum(dim=0) for moment in own])
        ranks = [[expert[name].rank for expert in experts.values()] for name in text_layers]
        self.places = dict(zip(text_layers, _slices([sum(part) for part in ranks]), strict=True))
        factors: list[list[Tensor]] = []
        for moment, expert in zip(own, experts.values(), strict=True):
            turned = (moment @ basis).float()
            parts = [expert[name].down for name in text_layers]
            sizes = [len(part) for part in parts]
            factors.append(list((torch.cat(parts).to(device) @ turned).split(sizes)) if parts else [])
        ordered = [each for layer in zip(*factors, strict=True) for each in layer]
        self.factors = torch.cat(ordered) if ordered else torch.zeros(0, len(preserved), device=device)

    def downs(self, benign: float) -> dict[str, Tensor]:
        """Return each text layer's stacked gated A, fp32 [sum of the experts' ranks, K] on the CPU."""
        gated = ((self.factors * self._scales(benign).float()) @ self.turned).cpu()
        return {name: gated[place] for name, place in self.places.items()}

    def coefficients(self, benign: float) -> Tensor:
        """Return the experts' shares in the activation along each direction of the basis, fp32 [N, K], in [0, 1]."""
        return (self.activity * self._scales(benign)).float().cpu()

    def _scales(self, benign: float) -> Tensor:
        return 1.0 / (self.shares + benign * (1.0 - self.shares))


def _with_ridge(moment: Tensor, ridge: float) -> Tensor:
    return moment + ridge * moment.diagonal().mean() * torch.eye(len(moment), dtype=moment.dtype, device=moment.device)


def _slices(sizes: Sequence[int]) -> list[slice]:
    ends = torch.tensor(sizes).cumsum(0).tolist() if sizes else []
    return [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
