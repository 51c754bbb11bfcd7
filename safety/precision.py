"""Choice of arithmetic by device: bf16 where it is native, fp32 where bf16 would be emulated."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch


def computes_bf16(device: torch.device) -> bool:
    """Return whether a device computes bf16 at least as fast as fp32.

    A CPU without AVX-512 emulates it: a training step of the embedded UNet then takes 14 s instead of 0.8 s.
    """
    if device.type == "cpu":
        return torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


def autocast(device: torch.device, *, half: bool) -> AbstractContextManager[object]:
    """Return a context in which the device's matrix products are bf16 if ``half``."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=half)


def native_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Return a context of bf16 where the device computes it natively, and of fp32 where it does not."""
    return autocast(device, half=computes_bf16(device))
