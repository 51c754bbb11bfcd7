"""Samplers of noise-predicting models: deterministic ones of diffusers, on the model's own schedule.

DPM-Solver++ (Lu et al. 2022, https://arxiv.org/abs/2211.01095) and UniPC (Zhao et al. 2023, https://arxiv.org/abs/2302.04867) reach
in some 20 steps what DDIM needs 50 for.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

SamplerName = Literal["ddim", "dpm++", "euler", "unipc"]


class Sampler(NamedTuple):
    """A scheduler's class in diffusers, and what is set beside the model's schedule."""

    kind: str
    settings: dict[str, Any]


SAMPLERS: dict[SamplerName, Sampler] = {
    "ddim": Sampler("DDIMScheduler", {}),
    "dpm++": Sampler("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "euler": Sampler("EulerDiscreteScheduler", {}),
    "unipc": Sampler("UniPCMultistepScheduler", {}),
}


def make_sampler(name: SamplerName, schedule: Any) -> Any:
    """Return a sampler on a model's schedule, the config of its own scheduler."""
    # Slow to import, and not for processes that load no model.
    import diffusers

    found = SAMPLERS[name]
    # DDIM clips to [-1, 1] unless told not to, which is for pixels and not for latents.
    settings = (
        {**found.settings, "clip_sample": schedule.get("clip_sample", False)} if name == "ddim" else found.settings
    )
    return getattr(diffusers, found.kind).from_config(schedule, **settings)
