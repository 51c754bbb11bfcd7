"""bf16 only where the device has it."""

from __future__ import annotations

import pytest
import torch

from safety.precision import autocast, computes_bf16, native_autocast

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("capability", "native"), [("AVX512", True), ("AVX2", False), ("DEFAULT", False), ("NO AVX", False)]
)
def test_a_cpu_without_avx512_computes_in_fp32(monkeypatch: pytest.MonkeyPatch, capability: str, native: bool) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert computes_bf16(CPU) is native
    with native_autocast(CPU):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype is (torch.bfloat16 if native else torch.float32)


@pytest.mark.parametrize(("half", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_what_is_asked_for_is_computed(half: bool, dtype: torch.dtype) -> None:
    with autocast(CPU, half=half):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is dtype
