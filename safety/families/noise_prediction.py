"""Diffusion with a variance-preserving noise schedule: the denoiser predicts noise or velocity, and DDIM samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from safety.errors import ConfigError
from safety.families.family import Conditioning
from safety.families.latent_model import LatentModel, PromptReader
from safety.precision import compute_dtype


class NoisePrediction(LatentModel):
    """What Stable Diffusion 1.x, 2.x and XL share: the schedule of noise, and a UNet."""

    def __init__(self, pipeline: Any, readers: Sequence[PromptReader], size_multiple: int) -> None:
        """Take a pipeline's UNet; sampling uses DDIM, which is deterministic, on the model's own schedule."""
        # Slow to import, and not for processes that load no model.
        from diffusers import DDIMScheduler

        super().__init__(pipeline, pipeline.unet, readers, size_multiple)
        schedule = pipeline.scheduler.config
        # DDIM clips to [-1, 1] unless told not to, which is for pixels and not for latents.
        pipeline.scheduler = DDIMScheduler.from_config(schedule, clip_sample=schedule.get("clip_sample", False))
        self.train_timesteps = int(pipeline.scheduler.config.num_train_timesteps)

    def inputs(self, conditioning: Conditioning, rows: int | None = None) -> Conditioning:
        """Return the conditioning as the UNet takes it: in its type, and of as many rows, where it is of one prompt.

        Stored states are fp32, whatever the model's own type.
        """
        device, dtype = self.denoiser.device, compute_dtype(self.denoiser)
        found = {name: value.to(device, dtype) for name, value in conditioning.items()}
        return found if rows is None else {name: value.expand(rows, *value.shape[1:]) for name, value in found.items()}

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return the noised latents at ``timesteps``."""
        noised: Tensor = self.pipeline.scheduler.add_noise(latents, noise, timesteps)
        return noised

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return the noise, or the velocity for a v-prediction model."""
        kind = self.pipeline.scheduler.config.prediction_type
        if kind == "epsilon":
            return noise
        if kind == "v_prediction":
            velocity: Tensor = self.pipeline.scheduler.get_velocity(latents, noise, timesteps)
            return velocity
        raise ConfigError(
            f"the scheduler predicts {kind!r}", field="model.path", fix="use a model with epsilon or v_prediction"
        )
