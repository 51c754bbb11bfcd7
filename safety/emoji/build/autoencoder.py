"""A stock ``AutoencoderKL`` whose encoder is set in closed form, so that only its decoder is trained.

The encoder is a whitened, hierarchical principal-component projection of 8x8 patches. Residual blocks are
made the identity (their last convolution is zero), each stride-2 convolution holds the principal components
of 2x2 cells, and the last group norm and SiLU are made linear: each feature x is paired with -x, because
silu(x) - silu(-x) = x, and with constants +K and -K that fix the group's mean at 0 and, to within a part in
a hundred, its variance. Latents are therefore known before any training, and decoder and UNet can be trained independently.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.models.resnet import ResnetBlock2D
from pydantic import Field
from torch import Tensor, nn

from safety.base import Config
from safety.emoji.build.fitting import Fit, FitConfig
from safety.emoji.build.pool import ScenePool
from safety.precision import native_autocast
from safety.seeds import normal, rng

NORM_GROUPS = 8
PIVOT = 100.0
LOG_VARIANCE = -20.0


class AutoencoderConfig(Config):
    """Shape of the autoencoder."""

    latent_channels: int = Field(32, gt=0, description="principal components kept of each 8x8 patch")
    whitening: float = Field(0.5, ge=0, le=1, description="0 keeps the components' variances, 1 makes them equal")
    block_channels: tuple[int, int, int, int] = (16, 32, 96, 96)
    decoder_layers: int = Field(1, gt=0, description="residual blocks per level, one fewer in the decoder")


def build_autoencoder(config: AutoencoderConfig) -> AutoencoderKL:
    """Return a stock ``AutoencoderKL`` of factor 8 with random weights."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=config.block_channels,
        layers_per_block=config.decoder_layers,
        latent_channels=config.latent_channels,
        norm_num_groups=NORM_GROUPS,
        sample_size=64,
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )


def principal_components(cells: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean [D], the leading directions [count, D] and their standard deviations [count] of [N, D]."""
    mean = cells.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov((cells - mean).T.double()))
    order = values.argsort(descending=True)[:count]
    return mean, vectors[:, order].T.float(), values[order].clamp_min(1e-12).sqrt().float()


def _cells(features: Tensor) -> Tensor:
    """Return 2x2 cells of [B, C, H, W] as [B*H/2*W/2, 4C] in ``F.unfold``'s order (channel, row, column)."""
    return F.unfold(features, kernel_size=2, stride=2).transpose(1, 2).reshape(-1, features.shape[1] * 4)


def _zero(module: nn.Module) -> None:
    for parameter in module.parameters():
        nn.init.zeros_(parameter)


def _pass_through(convolution: nn.Conv2d, channels: int) -> None:
    """Make a 1x1 or 3x3 convolution copy its first ``channels`` inputs."""
    _zero(convolution)
    centre = convolution.kernel_size[0] // 2
    for channel in range(channels):
        convolution.weight.data[channel, channel, centre, centre] = 1.0


@torch.no_grad()
def set_encoder(model: AutoencoderKL, images: Tensor, whitening: float = 0.5) -> Tensor:
    """Set the encoder (in place) to the principal components of ``images``, fp32 [N, 3, H, W] in [-1, 1].

    The latents have a mean variance of 1; ``whitening`` sets how equal the components' variances are.

    Returns:
        The share of the images' variance that the latents keep, a scalar in [0, 1].
    """
    encoder: Any = model.encoder
    widths = list(model.config["block_out_channels"])
    latent = int(model.config["latent_channels"])
    _pass_through(encoder.conv_in, 3)
    for module in encoder.modules():
        if isinstance(module, ResnetBlock2D):
            _zero(module.conv2)
            if module.conv_shortcut is not None:
                _pass_through(module.conv_shortcut, module.in_channels)
    features = images
    total = (images - images.mean(0, keepdim=True)).var(dim=0, unbiased=False).sum()
    kept = [min(widths[0], 8), min(widths[1], 24), latent]
    for level, count in enumerate(kept):
        cells = _cells(features)
        mean, directions, deviations = principal_components(cells, count)
        if level == len(kept) - 1:
            scaled = deviations.pow(1.0 - whitening)
            directions = directions * (scaled / deviations / scaled.square().mean().sqrt())[:, None]
        convolution = encoder.down_blocks[level].downsamplers[0].conv
        _zero(convolution)
        channels = features.shape[1]
        # The stock downsampler pads right and bottom, so a cell is the kernel's upper left 2x2 corner.
        convolution.weight[:count, :channels, :2, :2] = directions.reshape(count, channels, 2, 2)
        convolution.bias[:count] = -directions @ mean
        size = (features.shape[-2] // 2, features.shape[-1] // 2)
        projected = (cells - mean) @ directions.T
        features = projected.reshape(len(images), -1, count).transpose(1, 2).reshape(len(images), count, *size)
    _linear_head(model, latent)
    spread = deviations.square().sum() * features.shape[-1] * features.shape[-2]
    return spread / total.clamp_min(1e-12)


def _linear_head(model: AutoencoderKL, latent: int) -> None:
    """Make the last mid-block output, group norm, SiLU and convolutions copy the ``latent`` features."""
    encoder: Any = model.encoder
    width = int(model.config["block_out_channels"][-1])
    per_group = width // NORM_GROUPS
    pairs = (per_group - 2) // 2
    if pairs * NORM_GROUPS < latent:
        raise ValueError(f"{width} channels hold at most {pairs * NORM_GROUPS} latents; asked for {latent}")
    # The last level's resnet has no shortcut to spread features into pairs, so the last mid-block resnet's
    # output convolution does not either; the spreading happens in the downsampler before it.
    convolution = encoder.down_blocks[2].downsamplers[0].conv
    weight, bias = convolution.weight.clone(), convolution.bias.clone()
    _zero(convolution)
    _zero(encoder.conv_out)
    for index in range(latent):
        group, slot = index % NORM_GROUPS, index // NORM_GROUPS
        plus = group * per_group + 2 * slot
        convolution.weight[plus], convolution.bias[plus] = weight[index], bias[index]
        convolution.weight[plus + 1], convolution.bias[plus + 1] = -weight[index], -bias[index]
        encoder.conv_out.weight[index, plus, 1, 1] = 1.0
        encoder.conv_out.weight[index, plus + 1, 1, 1] = -1.0
    for group in range(NORM_GROUPS):
        pivot = group * per_group + 2 * pairs
        convolution.bias[pivot], convolution.bias[pivot + 1] = PIVOT, -PIVOT
    # With 2 pivots of +-K among per_group channels the deviation is K sqrt(2 / per_group): undo it.
    encoder.conv_norm_out.weight.fill_(PIVOT * (2.0 / per_group) ** 0.5)
    encoder.conv_norm_out.bias.zero_()
    encoder.conv_out.bias[latent:] = LOG_VARIANCE
    _pass_through(model.quant_conv, 2 * latent)
    _pass_through(model.post_quant_conv, latent)


class DecoderFit(Config):
    """Training of the decoder on known latents."""

    latent_noise: float = Field(0.05, ge=0, description="so that the decoder tolerates a sampler's small errors")
    fit: FitConfig = FitConfig(steps=1500, batch=24, learning_rate=2e-3)


def train_decoder(model: AutoencoderKL, pool: ScenePool, config: DecoderFit, folder: Path) -> AutoencoderKL:
    """Train the decoder to invert the encoder on the pool's scenes; resumes from ``folder``."""
    torch.manual_seed(config.fit.seed)
    model.encoder.requires_grad_(False)
    model.quant_conv.requires_grad_(False)
    model.post_quant_conv.requires_grad_(False)
    model.decoder.to(memory_format=torch.channels_last)

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        draw = rng(config.fit.seed, "decoder", step)
        images = pool.images([draw.randrange(len(pool.scenes)) for _ in range(config.fit.batch)])
        with torch.no_grad():
            latents = model.encode(images).latent_dist.mode()
            latents = latents + config.latent_noise * normal(tuple(latents.shape), config.fit.seed, "decoder", step)
        with native_autocast(torch.device("cpu")):
            decoded = model.decode(latents).sample
        difference = decoded.float() - images
        error = difference.abs().mean()
        # Edges carry a drawing's shape, and a plain mean error lets them blur.
        edges = difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()
        return error + difference.square().mean() + edges, {"l1": error.item(), "edges": edges.item()}

    Fit(model.decoder, config.fit, folder).run(loss)
    return model.eval()
