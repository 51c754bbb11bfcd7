"""DeepSpeed as the engine of an expert's training: gradients over workers, ZeRO, clipping, updates."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from jobs.train.config import TrainConfig
from safety.experts.engine import MOMENTS, make_optimizer, read_moments, write_moments
from safety.experts.expert import Expert
from safety.objectives import ObjectiveValue


class DeepSpeedEngine:
    """DeepSpeed on one worker (see ``safety.experts.engine.Engine``); Ray Train has set up the process group."""

    def __init__(self, expert: Expert, config: TrainConfig) -> None:
        """Wrap ``expert``; all workers call it together."""
        deepspeed = _import_deepspeed()
        self.expert, self.config = expert, config
        self.parameters = expert.parameters_by_name()
        self.optimizer = make_optimizer(expert)
        self.sharded = config.deepspeed.stage > 0
        self.engine: Any = deepspeed.initialize(
            model=_Trained(expert),
            optimizer=self.optimizer,
            model_parameters=list(self.parameters.values()),
            config=_settings(config, torch.distributed.get_world_size()),
        )[0]
        self.rank = torch.distributed.get_rank()
        self.workers = torch.distributed.get_world_size()

    def forward(self, step: int, part: int) -> ObjectiveValue:
        """Return the loss of one part of a step's batch."""
        value: ObjectiveValue = self.engine(step, part)
        return value

    def backward(self, loss: Tensor) -> None:
        """Add a part's gradient; with a step's last part, the workers' gradients are averaged."""
        self.engine.backward(loss)
        if not self.engine.is_gradient_accumulation_boundary():
            self.engine.step()

    def update(self, learning_rate: float) -> float:
        """Clip, update and clear; return the gradient's norm before clipping."""
        for group in self.engine.optimizer.param_groups:
            group["lr"] = learning_rate
        norm = 0.0
        if not self.sharded:
            norm = float(nn.utils.clip_grad_norm_(self.parameters.values(), self.config.expert.clip_norm))
        self.engine.step()
        return float(self.engine.get_global_grad_norm()) if self.sharded else norm

    def average(self, values: Tensor) -> Tensor:
        """Return the mean of a vector over all workers."""
        if self.workers > 1:
            values = values.detach().clone()
            torch.distributed.all_reduce(values)
            values /= self.workers
        return values

    def moments(self) -> dict[str, Tensor]:
        """Return the optimizer's whole state; ZeRO's shards are gathered, so that any number of workers can go on."""
        if not self.sharded:
            return read_moments(self.parameters, self.optimizer)
        from deepspeed.utils import safe_get_full_optimizer_state

        return {
            f"{moment}/{name}": safe_get_full_optimizer_state(parameter, moment).detach().float().cpu().clone()
            for name, parameter in self.parameters.items()
            for moment in MOMENTS
        }

    def restore(self, moments: Mapping[str, Tensor], step: int) -> None:
        """Take the optimizer's state back as it was after ``step`` updates."""
        if not self.sharded:
            write_moments(self.parameters, self.optimizer, moments, step)
            return
        from deepspeed.utils import lazy_init_hp_params_optimizer_state, safe_set_full_optimizer_state

        # ZeRO links parameters to optimizer states that exist, and torch makes them at the first update only.
        zero = self.engine.optimizer
        for group, flat in zip(zero.bit16_groups, zero.single_partition_of_fp32_groups, strict=True):
            empty = {moment: torch.zeros_like(flat) for moment in MOMENTS}
            self.optimizer.state[flat] = {"step": torch.tensor(float(step)), **empty}
            lazy_init_hp_params_optimizer_state(group, flat, self.optimizer.state)
        for name, parameter in self.parameters.items():
            for moment in MOMENTS:
                value = moments[f"{moment}/{name}"].to(parameter.device)
                safe_set_full_optimizer_state(parameter, value, moment)


class _Trained(nn.Module):
    """An expert's loss, and its trained parameters alone: DeepSpeed would send every worker the frozen base too."""

    def __init__(self, expert: Expert) -> None:
        super().__init__()
        self.trained = nn.ParameterList(expert.parameters_by_name().values())
        # A function, so that the expert is no submodule.
        self._loss = expert.__call__

    def forward(self, step: int, part: int) -> ObjectiveValue:
        """Return the loss of one part of a step's batch."""
        value: ObjectiveValue = self._loss(step, part)
        return value


def _import_deepspeed() -> Any:
    """Import DeepSpeed without its compiled operators, which a CPU would build for minutes at the first use."""
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    import deepspeed

    if not torch.cuda.is_available():
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def _settings(config: TrainConfig, workers: int) -> dict[str, Any]:
    """Return DeepSpeed's own settings; the expert itself sets its precision, and its errors stay in fp32."""
    expert = config.expert
    return {
        "train_micro_batch_size_per_gpu": expert.rows // (workers * expert.accumulation),
        "gradient_accumulation_steps": expert.accumulation,
        "gradient_clipping": expert.clip_norm if config.deepspeed.stage > 0 else 0.0,
        "zero_optimization": {"stage": config.deepspeed.stage},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }
