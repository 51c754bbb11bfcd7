"""Attaching a trainable LoRA to a denoiser, switching it off for the reference, and extracting it as a value.

The reference of preference training is the base model, which is the policy with its LoRA switched off: no second copy
of the denoiser is needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from safety.errors import ArtifactFormatError, ConfigError
from safety.families import ModelFamily
from safety.lora.config import LoraConfig
from safety.lora.weights import LoraLayer, LoraWeights
from safety.seeds import normal

EXPERT = "expert"


def attach(model: ModelFamily, config: LoraConfig, seed: int, name: str = EXPERT) -> None:
    """Attach a LoRA to the denoiser: A is drawn from (seed, layer), B is zero, both in fp32.

    Raises:
        ConfigError: No layer ends with a target, or one that does is not linear.
    """
    # Slow to import, and not for processes that load no model.
    import peft

    denoiser: Any = model.denoiser
    layers = target_layers(model, config.targets_on(model))
    settings = peft.LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=layers, init_lora_weights=True)
    denoiser.add_adapter(settings, adapter_name=name)
    with torch.no_grad():
        for layer, (down, up) in _parameters(model, name).items():
            # Standard deviation 1 / rank, as peft's own Gaussian start.
            start = normal(tuple(down.shape), seed, f"lora/{layer}") / config.rank
            down.data = start.to(down.device)
            up.data = torch.zeros(up.shape, device=up.device)


def detach(model: ModelFamily) -> None:
    """Take all attached LoRAs off: the denoiser is the base's again, and the next expert starts as from a fresh one."""
    denoiser: Any = model.denoiser
    denoiser.unload_lora()


def set_weights(model: ModelFamily, weights: LoraWeights, name: str = EXPERT) -> None:
    """Set the attached LoRA to ``weights``, balanced. Components beyond a layer's rank become zero and stay zero.

    Raises:
        ArtifactFormatError: The weights are of other layers, or of a higher rank than the attached LoRA.
    """
    attached = _parameters(model, name)
    if set(weights) != set(attached):
        odd = sorted(set(weights) ^ set(attached))[0]
        raise ArtifactFormatError(
            f"the layer {odd} is in only one of the adapter and the LoRA that is trained",
            field="adapter",
            fix="train the adapter's own layers",
        )
    with torch.no_grad():
        for layer, (down, up) in attached.items():
            found = weights[layer].balanced()
            if found.rank > len(down):
                raise ArtifactFormatError(
                    f"{layer} has rank {found.rank} and {len(down)} is trained",
                    field="adapter",
                    fix="train at the adapter's rank",
                )
            scaling = float(_wrapped(model.denoiser, layer).scaling[name])
            down.zero_()[: found.rank] = found.down.to(down.device)
            up.zero_()[:, : found.rank] = (found.up / scaling).to(up.device)


def target_layers(model: ModelFamily, targets: tuple[str, ...]) -> list[str]:
    """Return the names of the denoiser's layers that end with a target, sorted.

    Raises:
        ConfigError: No layer ends with a target, or one that does is not linear.
    """
    found: list[str] = []
    for target in targets:
        ending = [n for n, _ in model.denoiser.named_modules() if n == target or n.endswith(f".{target}")]
        if not ending:
            raise ConfigError(
                f"no layer ends with {target!r}",
                field="lora.targets",
                fix="name layers of the denoiser, or null for those of the model's family",
            )
        odd = [n for n in ending if not isinstance(model.denoiser.get_submodule(n), nn.Linear)]
        if odd:
            raise ConfigError(f"{odd[0]} is not a linear layer", field="lora.targets", fix="name linear layers only")
        found += ending
    return sorted(set(found))


@contextmanager
def reference(model: ModelFamily) -> Iterator[None]:
    """Switch the LoRA off inside the context: the denoiser predicts as the base model does."""
    from peft.tuners.lora import LoraLayer as PeftLayer

    # Not the denoiser's own disable_lora: it also changes requires_grad, which a training engine that has hooked the
    # parameters does not expect.
    layers: list[Any] = [m for m in model.denoiser.modules() if isinstance(m, PeftLayer)]
    before = [layer._disable_adapters for layer in layers]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer, state in zip(layers, before, strict=True):
            layer._disable_adapters = state


def extract(model: ModelFamily, name: str = EXPERT) -> LoraWeights:
    """Return a copy of the attached LoRA, in fp32 on the CPU, with alpha / rank folded into ``up``."""
    layers = {}
    for layer, (down, up) in _parameters(model, name).items():
        scaling = float(_wrapped(model.denoiser, layer).scaling[name])
        layers[layer] = LoraLayer(
            down.detach().float().cpu().clone(), (up.detach().float() * scaling).cpu().contiguous()
        )
    return LoraWeights(layers)


def trainable(model: ModelFamily, name: str = EXPERT) -> dict[str, nn.Parameter]:
    """Return the LoRA's parameters by ``<layer>.down`` and ``<layer>.up``, in sorted order."""
    pairs = _parameters(model, name)
    return {f"{layer}.{part}": p for layer, pair in pairs.items() for part, p in zip(("down", "up"), pair, strict=True)}


def _wrapped(denoiser: nn.Module, layer: str) -> Any:
    return denoiser.get_submodule(layer)


def _parameters(model: ModelFamily, name: str) -> dict[str, tuple[nn.Parameter, nn.Parameter]]:
    """Return each adapted layer's A [rank, inputs] and B [outputs, rank], in sorted order."""
    from peft.tuners.lora import LoraLayer as PeftLayer

    found = {}
    for layer, module in sorted(model.denoiser.named_modules()):
        if isinstance(module, PeftLayer) and name in module.lora_A:
            found[layer] = (module.lora_A[name].weight, module.lora_B[name].weight)
    return found
