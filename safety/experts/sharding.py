"""A frozen base that is divided among an expert's workers, for one that does not fit into each worker's memory.

Each worker holds an equal share of every weight. A block's weights are gathered from all workers while it computes,
forward and backward, and freed again (ZeRO stage 3; torch's FSDP2). The adapter is attached beside the divided weights and is
no part of them: it is whole on every worker, as are its gradient and its checkpoints.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from safety.errors import ConfigError
from safety.families.family import ModelConfig, ModelFamily, load_model
from safety.precision import resolve_dtype

GATHERED = 2
"""Blocks whose weights are whole at once: one computes while the next one arrives."""


def load_sharded(config: ModelConfig) -> ModelFamily:
    """Load the denoiser alone, divided among the process group's workers; all of them call it together.

    Its weights are read into each worker's main memory, and reach the device block by block, as this worker's share.

    Raises:
        ConfigError: The model is quantised; or as ``load_model`` does.
        ArtifactFormatError: A file of the model is missing or damaged.
    """
    if config.quantize != "none":
        raise ConfigError(
            f"weights of {config.quantize} cannot be divided among workers",
            field="train.shard_base",
            fix="set it to false, or model.quantize to 'none'",
        )
    # An unusable device is refused, and a usable one ready, before the weights are read.
    device = torch.device(config.device)
    torch.empty(0, device=device)
    dtype = str(resolve_dtype(config.dtype, device)).removeprefix("torch.")
    model = load_model(config.model_copy(update={"device": "cpu", "dtype": dtype}), "denoiser")
    shard(model.denoiser, device.type)
    return model


def shard(network: nn.Module, device: str) -> None:
    """Divide a frozen network's weights among the process group's workers, in place; attach an adapter afterwards only.

    Args:
        network: The same on all workers, of contiguous weights.
        device: The type of the device that computes, "cpu" or "cuda".
    """
    # Slow to import, and for divided bases alone.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device, (torch.distributed.get_world_size(),))
    for module in [*blocks(network), network]:
        fully_shard(module, mesh=mesh, reshard_after_forward=True)


def is_sharded(network: nn.Module) -> bool:
    """Return whether a network is divided among workers."""
    # Slow to import, and for training alone.
    from torch.distributed.fsdp import FSDPModule

    return isinstance(network, FSDPModule)


def blocks(network: nn.Module) -> list[nn.Module]:
    """Return the blocks that are gathered one by one: the smallest of those that diffusers keeps on one device."""
    names = set(getattr(network, "_no_split_modules", None) or ())
    found = [module for module in network.modules() if module is not network and _names(module) & names]
    return [module for module in found if not any(inner in found for inner in module.modules() if inner is not module)]


def _names(module: nn.Module) -> set[str]:
    return {kind.__name__ for kind in type(module).__mro__}


def sharded_bytes(network: nn.Module, workers: int) -> int:
    """Return the most bytes of a network's weights that one of several workers holds at once.

    They are its share of all, what belongs to no block, which is gathered for the whole of a pass, and the largest block
    as often as it may be whole.
    """
    whole = _bytes(network)
    if workers == 1:
        return whole
    parts = [_bytes(block) for block in blocks(network)]
    return min(whole, -(-whole // workers) + whole - sum(parts) + GATHERED * max(parts, default=0))


def _bytes(network: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in network.parameters())


@contextmanager
def recomputing(network: nn.Module) -> Iterator[None]:
    """Have each block's weights freed after its forward pass inside the context, which a backward pass is interrupted by.

    FSDP2 takes a forward pass in the midst of a backward one for that of a checkpointed block, whose backward pass comes
    next, and leaves its weights whole. Where a whole pass is computed again, that would gather the whole base.
    """
    if not is_sharded(network):
        yield
        return

    def free(module: Any, _inputs: Any, _outputs: Any) -> None:
        module.reshard()

    handles = [block.register_forward_hook(free) for block in blocks(network)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
