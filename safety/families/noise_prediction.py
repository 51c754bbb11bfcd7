"""Diffusion with a variance-preserving noise schedule: the denoiser predicts noise or velocity, and DDIM samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from safety.errors import ConfigError
from safety.families.family import Conditioning
from safety.families.latent_model import LatentModel, PromptReader
from safety.precision import compute_dtype
from safety.samplers import SamplerName, make_sampler


class NoisePrediction(LatentModel):
    """What Stable Diffusion 1.x, 2.x and XL share: the schedule of noise, and a UNet."""

    def __init__(self, pipeline: Any, readers: Sequence[PromptReader], size_multiple: int) -> None:
        """Take a pipeline's UNet; sampling uses DDIM, which is deterministic, on the model's own schedule."""
        super().__init__(pipeline, pipeline.unet, readers, size_multiple)
        self._settings = pipeline.scheduler.config
        pipeline.scheduler = self.schedule = make_sampler("ddim", self._settings)
        self.train_timesteps = int(self.schedule.config.num_train_timesteps)

    @contextmanager
    def sampling(self, sampler: SamplerName | None) -> Iterator[None]:
        """Sample by another sampler than DDIM inside the context; training's noise is not touched. None: by DDIM."""
        before = self.pipeline.scheduler
        self.pipeline.scheduler = before if sampler is None else make_sampler(sampler, self._settings)
        try:
            yield
        finally:
            self.pipeline.scheduler = before

    def inputs(self, conditioning: Conditioning, rows: int | None = None) -> Conditioning:
        """Return the conditioning as the UNet takes it: in its type, and of as many rows, where it is of one prompt.

        Stored states are fp32, whatever the model's own type.
        """
        device, dtype = self.denoiser.device, compute_dtype(self.denoiser)
        found = {name: value.to(device, dtype) for name, value in conditioning.items()}
        return found if rows is None else {name: value.expand(rows, *value.shape[1:]) for name, value in found.items()}

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return the noised latents at ``timesteps``."""
        noised: Tensor = self.schedule.add_noise(latents, noise, timesteps)
        return noised

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return the noise, or the velocity for a v-prediction model."""
        kind = self.schedule.config.prediction_type
        if kind == "epsilon":
            return noise
        if kind == "v_prediction":
            velocity: Tensor = self.schedule.get_velocity(latents, noise, timesteps)
            return velocity
        raise ConfigError(
            f"the scheduler predicts {kind!r}", field="model.path", fix="use a model with epsilon or v_prediction"
        )
