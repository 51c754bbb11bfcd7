"""Choice of arithmetic by device: bf16 where it is native, fp32 where bf16 would be emulated.

Errors, losses, adapters and optimizer states are fp32 whatever the networks compute in.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Literal

import torch
from torch import nn

HALF = (torch.bfloat16, torch.float16)
DtypeName = Literal["auto", "float32", "bfloat16", "float16"]


def computes_bf16(device: torch.device) -> bool:
    """Return whether a device computes bf16 at least as fast as fp32.

    A CPU without AVX-512 emulates it: a training step of the embedded UNet then takes 14 s instead of 0.8 s.
    """
    if device.type == "cpu":
        return torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


def resolve_dtype(name: DtypeName, device: torch.device) -> torch.dtype:
    """Return the type that a model's weights are loaded in.

    ``auto`` is fp32 on a CPU, and on other devices bf16 where they compute it. A card without bf16 gets fp32: fp16 has
    too small a range for some decoders and text encoders, so it is used only where it is asked for.
    """
    if name != "auto":
        found: torch.dtype = getattr(torch, name)
        return found
    return torch.bfloat16 if device.type != "cpu" and computes_bf16(device) else torch.float32


def compute_dtype(network: nn.Module) -> torch.dtype:
    """Return the type that a network computes in: that of its own weights which are neither quantised nor an adapter's."""
    for name, parameter in network.named_parameters():
        if parameter.is_floating_point() and "lora_" not in name:
            return parameter.dtype
    return torch.float32


def autocast(device: torch.device, *, half: bool) -> AbstractContextManager[object]:
    """Return a context in which the device's matrix products are bf16 if ``half``."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=half)


def native_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Return a context of bf16 where the device computes it natively, and of fp32 where it does not."""
    return autocast(device, half=computes_bf16(device))
