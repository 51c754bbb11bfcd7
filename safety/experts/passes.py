"""The denoiser's predictions for a batch, in passes that fit into memory.

A batch that goes through in several passes gives what it would in one, up to rounding: the loss is computed from all
predictions at once, whatever the objective, and each pass is computed again when its gradient is due, so that the
activations of one pass alone are in memory. This costs one more forward pass, as gradient checkpointing inside the
denoiser does, and both may be combined.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from safety.base import Config
from safety.errors import ConfigError
from safety.experts.batch import Batch
from safety.experts.config import ExpertConfig
from safety.experts.sharding import is_sharded, recomputing
from safety.families.family import ModelFamily
from safety.precision import autocast, compute_dtype, computes_bf16


class PassPlan(Config):
    """How a step's batch goes through the denoiser; it changes an adapter by rounding alone."""

    images: int | None = Field(None, gt=0, description="latents of one pass; none: all of a worker's batch")
    checkpointing: bool = Field(False, description="the denoiser's activations are computed again in the backward pass")


def configured_plan(config: ExpertConfig) -> PassPlan:
    """Return the plan of the settings; what they leave to the memory is the fastest."""
    return PassPlan(
        images=None if config.micro_batch == "auto" else config.micro_batch, checkpointing=config.checkpointing == "on"
    )


class Passes:
    """Predicts batches with a model's denoiser, by a plan and in the configured arithmetic."""

    def __init__(self, model: ModelFamily, config: ExpertConfig, plan: PassPlan) -> None:
        """Switch the denoiser's checkpointing as planned; attach the LoRA first.

        Raises:
            ConfigError: The arithmetic is not possible on the model's weights, or the denoiser has no checkpointing.
        """
        self.model, self.plan = model, plan
        self._dtype = compute_dtype(model.denoiser)
        self._half = _autocasts(config, self._dtype, model.device)
        self._factor = torch.ones(())
        denoiser: Any = model.denoiser
        if plan.checkpointing:
            if not getattr(denoiser, "_supports_gradient_checkpointing", False):
                raise ConfigError(
                    f"{type(denoiser).__name__} has no gradient checkpointing",
                    field="train.expert.checkpointing",
                    fix="set it to 'off', and micro_batch to a small number",
                )
            denoiser.enable_gradient_checkpointing()
        elif getattr(denoiser, "is_gradient_checkpointing", False):
            denoiser.disable_gradient_checkpointing()

    def scale_gradients(self, parameters: list[nn.Parameter]) -> None:
        """Prepare trained parameters for a denoiser in fp16, whose gradients would be smaller than fp16 can hold."""
        if self._dtype == torch.float16:
            for parameter in parameters:
                parameter.register_hook(self._unscaled)  # type: ignore[no-untyped-call]

    def __call__(self, batch: Batch) -> Tensor:
        """Return the predictions, fp32 [n, C, h, w]."""
        noisy = batch.noisy.contiguous(memory_format=torch.channels_last) if batch.noisy.ndim == 4 else batch.noisy
        size = self.plan.images or len(noisy)
        parts = [slice(start, start + size) for start in range(0, len(noisy), size)]
        found = [self._pass(batch._replace(noisy=noisy), part, again=len(parts) > 1) for part in parts]
        predicted = found[0] if len(found) == 1 else torch.cat(found)
        if self._dtype == torch.float16 and predicted.requires_grad:
            predicted.register_hook(self._scaled)  # type: ignore[no-untyped-call]
        return predicted

    def _pass(self, batch: Batch, part: slice, *, again: bool) -> Tensor:
        noisy, timesteps = batch.noisy[part], batch.timesteps[part]
        conditioning = {key: value[part] for key, value in batch.conditioning.items()}
        if again and torch.is_grad_enabled():
            if is_sharded(self.model.denoiser):
                # FSDP2 frees a block, for the next pass to gather anew, where a gradient leaves it by an input.
                noisy = noisy.detach().requires_grad_()
            found: Tensor = checkpoint(
                self._predict,
                noisy,
                timesteps,
                conditioning,
                use_reentrant=False,
                preserve_rng_state=False,
                context_fn=self._contexts,
            )
            return found
        return self._predict(noisy, timesteps, conditioning)

    def _predict(self, noisy: Tensor, timesteps: Tensor, conditioning: dict[str, Tensor]) -> Tensor:
        with autocast(noisy.device, half=self._half):
            return self.model.predict(noisy, timesteps, conditioning).float()

    def _contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Return the contexts of a pass's first computation and of its second one, for its gradient."""
        return nullcontext(), recomputing(self.model.denoiser)

    def _unscaled(self, gradient: Tensor) -> Tensor:
        return gradient / self._factor

    def _scaled(self, gradient: Tensor) -> Tensor:
        """Return the gradient of the predictions with its largest number near 1, by a power of two and so exactly.

        The denoiser's own gradients are then far from both ends of fp16. ``scale_gradients`` takes the factor away. It stays
        a tensor: a traced step (``safety.experts.tracing``) has no numbers, and a GPU would wait for one.
        """
        largest = gradient.abs().max()
        # largest = mantissa * 2^exponent, so that the quotient is the power alone; no number for 0 and what is not finite.
        factor = torch.frexp(largest).mantissa / largest
        self._factor = torch.where(factor.isfinite() & (factor > 0), factor, torch.ones_like(factor))
        return gradient * self._factor


def _autocasts(config: ExpertConfig, dtype: torch.dtype, device: torch.device) -> bool:
    """Return whether the weights, of fp32, are turned into bf16 for the arithmetic; weights of a half type compute in it."""
    require_arithmetic(config, dtype)
    if dtype != torch.float32:
        return False
    return config.precision == "bf16" or (config.precision == "auto" and computes_bf16(device))


def require_arithmetic(config: ExpertConfig, dtype: torch.dtype) -> None:
    """Raise ConfigError when weights of a type cannot be computed with as configured: those of a half type can in it alone."""
    wanted = {"bf16": torch.bfloat16, "fp32": torch.float32}.get(config.precision, dtype)
    if dtype not in (torch.float32, wanted):
        raise ConfigError(
            f"the model's weights are {str(dtype).removeprefix('torch.')}, which {config.precision!r} cannot compute in",
            field="train.expert.precision",
            fix="set it to 'auto', or model.dtype to float32",
        )
