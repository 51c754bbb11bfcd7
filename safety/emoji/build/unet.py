"""The emoji world's UNet: a stock ``UNet2DConditionModel`` trained by v-prediction on known latents."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from pydantic import Field
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from safety.base import Config
from safety.emoji.build.clip import MAX_TOKENS
from safety.emoji.build.fitting import Fit, FitConfig
from safety.emoji.build.pool import ScenePool
from safety.precision import native_autocast
from safety.seeds import normal, rng, torch_generator


class UnetConfig(Config):
    """Shape and training of the world's UNet."""

    channels: tuple[int, int] = (128, 192)
    layers: int = Field(1, gt=0)
    heads: int = Field(4, gt=0)
    caption_dropout: float = Field(0.1, ge=0, lt=1)
    timestep_power: float = Field(
        1.0,
        gt=0,
        le=1,
        description="timesteps are u^power of the schedule, u uniform: below 1, noisier ones are more frequent",
    )
    start: Path | None = Field(
        None, description="a folder with a UNet of this shape to start from; None: random weights"
    )
    fit: FitConfig = FitConfig(steps=6000, batch=64, learning_rate=1e-3, checkpoint_every=250)


def make_scheduler() -> DDIMScheduler:
    """Return the scheduler of the zoo: cosine betas and v-prediction, steps counted from the noisiest."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        clip_sample=False,
        timestep_spacing="trailing",
        steps_offset=1,
    )


def build_unet(config: UnetConfig, latent_channels: int, text_width: int) -> UNet2DConditionModel:
    """Return a stock UNet for 8x8 latents with random weights."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=latent_channels,
        out_channels=latent_channels,
        layers_per_block=config.layers,
        block_out_channels=config.channels,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=text_width,
        attention_head_dim=config.heads,
    )


@torch.no_grad()
def encode_pool(pool: ScenePool, autoencoder: AutoencoderKL, batch: int = 250) -> Tensor:
    """Return the latents of every scene in the pool, fp16 [N, C, 8, 8]."""
    parts = []
    for start in range(0, len(pool.scenes), batch):
        rows = range(start, min(start + batch, len(pool.scenes)))
        parts.append(autoencoder.encode(pool.images(rows)).latent_dist.mode().half())
    return torch.cat(parts)


class Phase(NamedTuple):
    """Training data up to a step: a pool and its latents [N, C, 8, 8]."""

    until: int
    pool: ScenePool
    latents: Tensor


def train_unet(
    phases: Sequence[Phase],
    tokenizer: CLIPTokenizer,
    text_encoder: CLIPTextModel,
    config: UnetConfig,
    folder: Path,
) -> UNet2DConditionModel:
    """Train the UNet on each phase's latents under their captions; resumes from ``folder``."""
    torch.manual_seed(config.fit.seed)
    unet = build_unet(config, phases[0].latents.shape[1], text_encoder.config.hidden_size)
    if config.start is not None:
        unet.load_state_dict(UNet2DConditionModel.from_pretrained(config.start, dtype=torch.float32).state_dict())
    unet.to(memory_format=torch.channels_last)
    # On a CPU the fused attention's backward pass takes longer than the plain one's at 64 tokens.
    unet.set_attn_processor(AttnProcessor())
    scheduler = make_scheduler()

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        draw = rng(config.fit.seed, "unet", step)
        pool, latents = next(((p.pool, p.latents) for p in phases if step < p.until), phases[-1][1:])
        rows = [draw.randrange(len(pool.scenes)) for _ in range(config.fit.batch)]
        captions = [
            "" if draw.random() < config.caption_dropout else pool.caption(row, config.fit.seed, step) for row in rows
        ]
        tokens = tokenizer(captions, padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
        clean = latents[rows].float()
        noise = normal(tuple(clean.shape), config.fit.seed, "unet-noise", step)
        generator = torch_generator(config.fit.seed, "unet-timestep", step)
        # Stratified timesteps: one in each of B equal slices, so that every batch sees every noise level.
        slices = (torch.arange(len(rows)) + torch.rand(len(rows), generator=generator)) / len(rows)
        timesteps = (slices**config.timestep_power * scheduler.config.num_train_timesteps).long()
        noisy = scheduler.add_noise(clean, noise, timesteps)
        target = scheduler.get_velocity(clean, noise, timesteps)
        with native_autocast(torch.device("cpu")):
            with torch.no_grad():
                states = text_encoder(tokens.input_ids).last_hidden_state
            predicted = unet(noisy.to(memory_format=torch.channels_last), timesteps, states).sample
        error = (predicted.float() - target).square().mean(dim=(1, 2, 3))
        half = len(rows) // 2
        return error.mean(), {"low_noise": error[:half].mean().item(), "high_noise": error[half:].mean().item()}

    Fit(unet, config.fit, folder).run(loss)
    return unet.eval()
