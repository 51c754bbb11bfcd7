"""A resumable training loop for the emoji zoo: AdamW, warm-up and cosine decay, EMA, safetensors checkpoints."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from safety.base import Config

logger = logging.getLogger(__name__)


class FitConfig(Config):
    """Length, rate and checkpoints of one model's training."""

    steps: int = Field(gt=0)
    batch: int = Field(64, gt=0)
    learning_rate: float = Field(1e-3, gt=0)
    warmup: int = Field(50, ge=0)
    weight_decay: float = Field(0.01, ge=0)
    ema_decay: float = Field(0.999, ge=0, lt=1)
    clip_norm: float = Field(1.0, gt=0)
    checkpoint_every: int = Field(200, gt=0)
    seed: int = 0


def warmup_cosine_rate(step: int, config: FitConfig) -> float:
    """Return the rate at ``step``: linear warm-up, then half a cosine down to 2% of the peak."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    progress = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.learning_rate * (0.02 + 0.98 * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress))))


class Fit:
    """Trains a module on ``loss(step)``; a killed run resumes from its last checkpoint."""

    def __init__(self, module: nn.Module, config: FitConfig, folder: Path) -> None:
        """Prepare training of ``module``'s parameters that need gradients, with checkpoints in ``folder``."""
        self.module, self.config, self.folder = module, config, folder
        self.parameters = {n: p for n, p in module.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.99)
        )
        self.ema = {n: p.detach().clone() for n, p in self.parameters.items()}
        self.step = 0

    def run(self, loss: Callable[[int], tuple[Tensor, dict[str, float]]]) -> None:
        """Train to ``config.steps``, resuming where an earlier run stopped; leaves the EMA in the module."""
        self._restore()
        config, started, first = self.config, time.monotonic(), self.step
        for step in range(self.step, config.steps):
            for group in self.optimizer.param_groups:
                group["lr"] = warmup_cosine_rate(step, config)
            value, metrics = loss(step)
            if not torch.isfinite(value):
                raise FloatingPointError(f"the loss is {value.item()} at step {step} in {self.folder.name}")
            self.optimizer.zero_grad(set_to_none=True)
            value.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(self.parameters.values(), config.clip_norm)
            self.optimizer.step()
            self.step = step + 1
            self._average()
            if self.step % 25 == 0:
                pace = (self.step - first) / (time.monotonic() - started)
                shown = " ".join(f"{k} {v:.4f}" for k, v in metrics.items())
                place = f"{self.folder.name} {self.step}/{config.steps}"
                logger.info("%s loss %.4f %s %.2f it/s", place, value.item(), shown, pace)
            if self.step % config.checkpoint_every == 0 or self.step == config.steps:
                self._save()
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(self.ema[name])

    @torch.no_grad()
    def _average(self) -> None:
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(list(self.ema.values()), [p.detach() for p in self.parameters.values()], 1.0 - decay)

    def _save(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        state = {f"param/{n}": p.detach().contiguous() for n, p in self.parameters.items()}
        state |= {f"ema/{n}": p.contiguous() for n, p in self.ema.items()}
        for name, parameter in self.parameters.items():
            for key in ("exp_avg", "exp_avg_sq"):
                state[f"{key}/{name}"] = self.optimizer.state[parameter][key].contiguous()
        partial = self.folder / "state.partial"
        save_file(state, partial, metadata={"step": json.dumps(self.step)})
        partial.replace(self.folder / "state.safetensors")

    def _restore(self) -> None:
        path = self.folder / "state.safetensors"
        if not path.exists():
            return
        from safetensors import safe_open

        with safe_open(path, "pt") as handle:
            self.step = int(handle.metadata()["step"])
        state = load_file(path)
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(state[f"param/{name}"])
                self.ema[name].copy_(state[f"ema/{name}"])
                self.optimizer.state[parameter] = {
                    "step": torch.tensor(float(self.step)),
                    "exp_avg": state[f"exp_avg/{name}"],
                    "exp_avg_sq": state[f"exp_avg_sq/{name}"],
                }
