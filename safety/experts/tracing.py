"""The memory of a training step, found by running the step itself on tensors that have shapes and no numbers.

torch's fake tensors run every operation for its output's shape alone. What is alive at once is then added up, so that the
estimate follows the code: the reference's pass, the loss over all predictions, checkpointing and recomputation included.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

from safety.dataset.preferences import PreferenceSet
from safety.experts.config import ExpertConfig
from safety.experts.expert import Expert, choose_attention
from safety.experts.passes import PassPlan
from safety.families.family import ModelFamily


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the bytes of the tensors that are made inside the context while they are alive."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = 0
        self.peak = 0
        self._sizes: dict[int, int] = {}

    def ignore(self, tensors: Any) -> None:
        """Leave out tensors that were there before, and all views of them."""
        for tensor in tensors:
            self._sizes[tensor.untyped_storage()._cdata] = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operation and count what it returns."""
        result = function(*args, **(kwargs or {}))
        _pytree.tree_map_only(Tensor, self._count, result)
        return result

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self.live += self._sizes[key]
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._release, key)

    def _release(self, key: int) -> None:
        self.live -= self._sizes.pop(key, 0)


def trace_step(
    skeleton: Callable[[], ModelFamily],
    config: ExpertConfig,
    latent: tuple[int, int, int],
    conditioning: Mapping[str, tuple[int, ...]],
    plan: PassPlan,
    *,
    pairs: int,
    cpu: bool,
) -> int:
    """Return the most bytes that a step needs at once beside the base's weights and the optimizer's state.

    Args:
        skeleton: Makes the model's denoiser without weights (``safety.families.network.without_weights``).
        config: The expert's settings; its ``precision`` must say which, not "auto".
        latent: (C, h, w) of a latent.
        conditioning: Shapes of a prompt's tensors, without the batch.
        plan: How the batch goes through the denoiser.
        pairs: Preference pairs of the step; each has two latents.
        cpu: Whether the step is to run on a CPU, which computes attention of small latents in its own way.
    """
    model = skeleton()
    settings = config.model_copy(
        update={"rows": pairs, "benign_rows": 0, "accumulation": 1, "distinct_batches": None, "validation_rows": 0}
    )
    expert = _Traced(model, _rows(pairs, latent, conditioning), settings, 0, plan=plan)
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        _make_fake(model.denoiser)
        if cpu:
            choose_attention(model, latent[1] * latent[2])
        live = LiveBytes()
        live.ignore(model.denoiser.parameters())
        with fake, live:
            expert(0, 0).loss.backward()
    return live.peak


def trace_call(networks: Sequence[nn.Module], call: Callable[[], Any]) -> int:
    """Return the most bytes that a call without gradient needs at once beside the networks' weights.

    Args:
        networks: What the call runs, without weights; they are turned into fake ones.
        call: Makes its own inputs, on the CPU.
    """
    with FakeTensorMode(allow_non_fake_inputs=True) as fake, torch.no_grad():
        live = LiveBytes()
        for network in networks:
            _make_fake(network)
            live.ignore(network.parameters())
        with fake, live:
            call()
    return live.peak


class _Traced(Expert):
    """An expert whose layout stays: fake weights cannot be laid out, and it changes no size."""

    def lay_out(self) -> None:
        """Leave the layout."""


def _make_fake(network: nn.Module) -> None:
    """Replace a network's weights on the device "meta" by fake ones on the CPU, in the present fake mode."""
    for module in network.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                made = torch.empty(parameter.shape, dtype=parameter.dtype)
                module._parameters[name] = nn.Parameter(made, requires_grad=parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                with suppress(RuntimeError):
                    module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


def _rows(pairs: int, latent: tuple[int, int, int], conditioning: Mapping[str, tuple[int, ...]]) -> PreferenceSet:
    """Return a training set of zeros."""
    latents = torch.zeros(pairs, *latent)
    prompts = {key: torch.zeros(pairs, *shape) for key, shape in conditioning.items()}
    names = tuple(f"row-{number}" for number in range(pairs))
    return PreferenceSet(
        category="traced",
        ids=names,
        splits=("train",) * pairs,
        winner=latents,
        loser=latents,
        unsafe=prompts,
        safe=prompts,
        benign_ids=("benign",),
        benign_splits=("train",),
        benign=latents[:1],
        benign_prompts={key: value[:1] for key, value in prompts.items()},
        empty={key: value[:1] for key, value in prompts.items()},
    )
