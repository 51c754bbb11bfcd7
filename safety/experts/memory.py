"""The memory of training: what a step needs by its plan, and the fastest plan that fits."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from pydantic import Field
from torch import nn

from safety.base import Config
from safety.errors import ConfigError
from safety.experts.config import ExpertConfig
from safety.experts.passes import PassPlan, configured_plan
from safety.experts.sharding import sharded_bytes
from safety.experts.tracing import trace_step
from safety.families.family import Conditioning, ModelConfig, ModelFamily, Parts, load_model, model_folder
from safety.families.model_config import Quantize
from safety.families.network import without_weights
from safety.families.quantised import quantisable
from safety.families.weight_files import read_json
from safety.lora.attach import attach
from safety.precision import DtypeName, computes_bf16, resolve_dtype

GIB = 2**30
STATES = 5
"""fp32 copies of an adapter in training: itself, its gradient, AdamW's two moments, and one while it is updated."""
QUANTISED_BYTES: dict[Quantize, float | None] = {"none": None, "int8": 1.0, "nf4": 0.52}
"""Bytes of a quantised weight; nf4 has a scale for every 64 numbers, itself quantised."""
RESERVE = 0.06
"""Share of a card that its allocator loses to gaps between blocks."""
SMALL_BYTES, SMALL_POSITIONS = 2**27, 1024
"""Weights and latents of a network whose steps fit anywhere, so that nothing is estimated."""
PARTS = ("unet", "transformer")
PIXELS = 8
"""Pixels of an image's side to one of its latents, in most VAEs."""
CONTROL_GROUP = Path("/sys/fs/cgroup")
"""Where a container finds the limits of its memory."""
M_MMAP_THRESHOLD = -3
"""The number of a setting of glibc's allocator (malloc.h)."""
FEWEST = 4
"""Latents of one pass below which recomputation inside the denoiser is faster than more passes."""


class StepMemory(Config):
    """The bytes that training needs on one worker."""

    base: int = Field(description="the frozen denoiser's weights")
    adapter: int = Field(description="the adapter, its gradient and the optimizer's state")
    plain: int = Field(description="per latent of a pass, with all activations kept")
    checkpointed: int | None = Field(description="per latent of a pass, with gradient checkpointing; none: it has none")
    kept: int = Field(description="per latent of a step, between its passes")

    def peak(self, plan: PassPlan, latents: int) -> int:
        """Return the most bytes at once in a step of a number of latents."""
        each = self.checkpointed if plan.checkpointing else self.plain
        if each is None:
            raise ValueError("the denoiser has no gradient checkpointing")
        return self.base + self.adapter + each * min(plan.images or latents, latents) + self.kept * latents


def latents_of(config: ExpertConfig, workers: int = 1) -> int:
    """Return the number of latents of one worker's batch; a validation's, without gradients, need less each."""
    return (2 * config.rows + config.benign_rows) // (workers * config.accumulation)


def measure_step(
    model: ModelConfig,
    config: ExpertConfig,
    latent: tuple[int, int, int] | None = None,
    conditioning: Mapping[str, tuple[int, ...]] | None = None,
    shards: int = 1,
) -> StepMemory:
    """Return the memory of training on a model, from the settings in its folder alone.

    Args:
        model: The model; its weights are not read.
        config: The expert's settings.
        latent: (C, h, w) of the latents; None: of the model's own images.
        conditioning: Shapes of a prompt's tensors, without the batch; None: the text encoder's.
        shards: Workers that the base is divided among.

    Raises:
        ConfigError: There is no such family or folder.
        ArtifactFormatError: A file of the model is missing or damaged.
    """
    name: DtypeName = "bfloat16" if model.dtype == "auto" and not _usable(model.device) else model.dtype
    dtype = resolve_dtype(name, torch.device(model.device))

    def skeleton() -> ModelFamily:
        return load_skeleton(model, dtype, "denoiser")

    found = skeleton()
    side = found.default_size
    if conditioning is None:
        conditioning = shapes_of(load_skeleton(model, dtype, "text").unconditional())
    return measure_skeleton(
        skeleton,
        config,
        latent or found.latent_shape(side, side),
        conditioning,
        cpu=model.device == "cpu",
        quantize=model.quantize,
        shards=shards,
    )


def measure_skeleton(
    skeleton: Callable[[], ModelFamily],
    config: ExpertConfig,
    latent: tuple[int, int, int],
    conditioning: Mapping[str, tuple[int, ...]],
    *,
    cpu: bool,
    quantize: Quantize = "none",
    shards: int = 1,
) -> StepMemory:
    """Return the memory of training on a model whose denoiser ``skeleton`` makes without weights; see ``measure_step``."""
    model = skeleton()
    base = weight_bytes(model.denoiser, quantize) if shards == 1 else sharded_bytes(model.denoiser, shards)
    # Quantised weights are turned back one layer at a time, in both directions.
    turned = 0 if quantize == "none" else largest_linear(model.denoiser)
    attach(model, config.lora, 0)
    trained = sum(parameter.numel() for parameter in model.denoiser.parameters() if parameter.requires_grad)
    can = bool(getattr(model.denoiser, "_supports_gradient_checkpointing", False))
    if config.precision == "auto" and next(model.denoiser.parameters()).dtype == torch.float32:
        half = computes_bf16(torch.device("cpu")) if cpu else True
        config = config.model_copy(update={"precision": "bf16" if half else "fp32"})
    peaks = [
        trace_step(skeleton, config, latent, conditioning, PassPlan(checkpointing=on), pairs=1, cpu=cpu)
        for on in ((False, True) if can else (False,))
    ]
    numbers = math.prod(latent)
    return StepMemory(
        base=base + turned,
        adapter=STATES * 4 * trained,
        plain=-(-peaks[0] // 2),
        checkpointed=-(-peaks[1] // 2) if can else None,
        # Latents, noise, targets, and predictions with their gradients, in fp32.
        kept=8 * 4 * numbers + 4 * sum(math.prod(shape) for shape in conditioning.values()),
    )


def load_skeleton(model: ModelConfig, dtype: torch.dtype, parts: Parts) -> ModelFamily:
    """Return a model's parts without weights, on the device "meta"."""
    name = str(dtype).removeprefix("torch.")
    with without_weights():
        return load_model(model.model_copy(update={"device": "meta", "dtype": name, "quantize": "none"}), parts)


def shapes_of(conditioning: Conditioning) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a prompt's tensors, without the batch."""
    return {key: tuple(value.shape[1:]) for key, value in conditioning.items()}


def weight_bytes(network: nn.Module, quantize: Quantize = "none") -> int:
    """Return the bytes of a network's weights, whose linear layers may be quantised."""
    each = QUANTISED_BYTES[quantize]
    total = sum(parameter.numel() * parameter.element_size() for parameter in network.parameters())
    if each is not None:
        for module in quantisable(network).values():
            total += int(module.weight.numel() * (each - module.weight.element_size()))
    return total


def largest_linear(network: nn.Module) -> int:
    """Return the bytes of the largest linear layer's weight."""
    sizes = [m.weight.numel() * m.weight.element_size() for m in quantisable(network).values()]
    return max(sizes, default=0)


def choose_plan(memory: StepMemory | None, config: ExpertConfig, latents: int, free: int) -> PassPlan:
    """Return the fastest plan that fits: what the settings leave open is chosen by the free memory.

    All activations of the whole batch are kept where they fit. Else the denoiser computes them again, or the batch goes
    through in several passes, or both.

    Args:
        memory: What a step needs; None: it is known to be small.
        config: The expert's settings.
        latents: Those of a worker's batch.
        free: Bytes, those that the base takes included.

    Raises:
        ConfigError: No plan fits.
    """
    fastest = configured_plan(config)
    if memory is None or (config.micro_batch != "auto" and config.checkpointing != "auto"):
        return fastest
    room = int(free * (1 - RESERVE))
    whole, sizes = fastest.images, range(latents, 0, -1)
    plans: list[PassPlan] = []
    for on in (False, True):
        if config.checkpointing == ("off" if on else "on") or (on and memory.checkpointed is None):
            continue
        if config.micro_batch == "auto":
            plans += [PassPlan(images=None if size == latents else size, checkpointing=on) for size in sizes]
        else:
            plans.append(PassPlan(images=whole, checkpointing=on))
    if config.micro_batch == "auto":
        plans.sort(key=lambda plan: _slowness(plan, latents))
    if not plans:
        # Checkpointing is asked of a denoiser without: ``Passes`` says so.
        return fastest
    for plan in plans:
        if memory.peak(plan, latents) <= room:
            return plan
    least = min(memory.peak(plan, latents) for plan in plans)
    raise ConfigError(
        f"a training step needs {least / GIB:.1f} GiB at least, and {room / GIB:.1f} GiB are free",
        field="train.expert",
        fix="use a larger card (on a CPU raise train.cpus_per_worker, by which workers share the memory), set model.quantize to "
        "'nf4', set train.shard_base with several workers, or lower train.expert.lora.rank; "
        "python -m jobs.preflight --cards lists what fits where",
    )


def _slowness(plan: PassPlan, latents: int) -> tuple[int, int]:
    """Return a key by which plans ascend in time: recomputed passes, then smaller ones."""
    size = plan.images or latents
    several = size < latents
    if several and not plan.checkpointing:
        cost = 2 if size >= FEWEST else 4
    else:
        cost = 3 if several else int(plan.checkpointing)
    return cost, -size


def needed_memory(
    model: ModelConfig,
    config: ExpertConfig,
    height: int | None = None,
    width: int | None = None,
    shards: int = 1,
) -> StepMemory | None:
    """Return the memory of training on images of a size in pixels, the model's own where it is None; None: it is small.

    ``shards`` are the workers that the base is divided among. Raises as ``measure_step`` does.
    """
    if is_small(model, height, width):
        return None
    return measure_step(model, config, latent_of(model, height, width), shards=shards)


def latent_of(model: ModelConfig, height: int | None, width: int | None) -> tuple[int, int, int]:
    """Return (C, h, w) of a model's latents of images of a size in pixels, the model's own where it is None."""
    found = load_skeleton(model, torch.float32, "denoiser")
    side = found.default_size
    return found.latent_shape(height or side, width or side)


def is_small(model: ModelConfig, height: int | None = None, width: int | None = None) -> bool:
    """Return whether a model's files and images are so small that its steps fit anywhere, from the files' sizes alone."""
    folder = model_folder(model)
    size = sum(path.stat().st_size for part in PARTS for path in folder.glob(f"{part}/*.safetensors"))
    settings = [read_json(path) for part in PARTS for path in folder.glob(f"{part}/config.json")]
    latents = max((found.get("sample_size") or 0 for found in settings), default=0)
    sides = [latents if side is None else side / PIXELS for side in (height, width)]
    return 0 < size <= SMALL_BYTES and math.prod(sides) <= SMALL_POSITIONS


def free_bytes(device: torch.device, share: float = 1.0) -> int:
    """Return the bytes that a process may still take on a device.

    Args:
        device: A CUDA device or the CPU, whose memory is the machine's or, in a container, its limit's.
        share: The share of the device that is this process's own.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return int(min(free + torch.cuda.memory_reserved(device), share * total))
    total, available = _meminfo("MemTotal"), _meminfo("MemAvailable")
    limit = _container_limit()
    return int(min(available if limit is None else min(available, limit), share * total))


def return_memory_at_once() -> None:
    """Have glibc give memory of more than 64 KiB back when it is freed, as a CUDA allocator would use it again.

    By itself it keeps blocks of up to 32 MiB for later, in gaps that the next tensors do not fit into: a checkpointed step of
    Stable Diffusion 1.5 then takes 1.4 GiB more than it needs.
    """
    try:
        ctypes.CDLL("libc.so.6").mallopt(M_MMAP_THRESHOLD, 2**16)
    except (OSError, AttributeError):
        # Another libc, which has no such setting.
        return


def _meminfo(name: str) -> int:
    """Return a figure of Linux's memory in bytes."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def _container_limit() -> int | None:
    """Return the bytes left of a container's limit (control groups, version 2).

    Pages of files that were read, such as a model's weights, count as used there, and are given up when memory is needed.
    """
    try:
        limit, used = (int((CONTROL_GROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        lines = (CONTROL_GROUP / "memory.stat").read_text().splitlines()
        cached = sum(int(line.split()[1]) for line in lines if line.startswith(("inactive_file ", "active_file ")))
    except (OSError, ValueError):
        return None
    return limit - used + cached


def _usable(device: str) -> bool:
    """Return whether this process has the device; a driver without it plans for workers that have it."""
    return device == "cpu" or torch.cuda.is_available()
