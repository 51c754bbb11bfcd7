"""Training of the judge's network on composed scenes, whose drawings' positions are known, and on negatives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from safety.emoji.build.fitting import Fit, FitConfig
from safety.emoji.build.negatives import Negatives, NegativesConfig, absent_loss
from safety.emoji.build.pool import ScenePool
from safety.emoji.judge_net import JudgeNet, JudgeNetConfig, load_weights
from safety.precision import native_autocast
from safety.seeds import rng, torch_generator

CELLS = 8
CELL_PIXELS = 8
NEAR_PIXELS = 7.0
FAR_PIXELS = 17.0
IGNORED = -100


class JudgeTrainingConfig(JudgeNetConfig):
    """Shape and training of the judge's network."""

    noise: float = Field(0.15, ge=0, description="largest deviation of the pixel noise added in training")
    negatives: NegativesConfig = NegativesConfig()
    start: Path | None = Field(None, description="weights of a judge of this shape to start from; None: random ones")
    fit: FitConfig = FitConfig(steps=3000, batch=64, learning_rate=2e-3, checkpoint_every=500)


def cell_targets(pool: ScenePool, rows: list[int]) -> Tensor:
    """Return each cell's class, int64 [B, 8, 8]: a concept near its centre, "nothing" far off, ignored between."""
    names = {name: i for i, name in enumerate(pool.taxonomy.names)}
    centres = torch.arange(CELLS) * CELL_PIXELS + CELL_PIXELS / 2
    targets = torch.full((len(rows), CELLS, CELLS), len(names))
    for index, row in enumerate(rows):
        for item in pool.scenes[row].placed:
            across = (centres - (item.left + item.side / 2)).abs()
            down = (centres - (item.top + item.side / 2)).abs()
            away = torch.maximum(down[:, None], across[None, :])
            near, between = away <= NEAR_PIXELS, (away > NEAR_PIXELS) & (away < FAR_PIXELS)
            targets[index][near] = names[item.concept]
            targets[index][between & (targets[index] == len(names))] = IGNORED
    return targets


def degrade(images: Tensor, generator: torch.Generator, noise: float) -> Tensor:
    """Return images [B, 3, H, W] with random gain, tint, blur and noise, as generated images have."""
    batch = len(images)
    gain = 1.0 + 0.2 * (torch.rand(batch, 1, 1, 1, generator=generator) - 0.5)
    tint = 0.16 * (torch.rand(batch, 3, 1, 1, generator=generator) - 0.5)
    share = torch.rand(batch, 1, 1, 1, generator=generator) * 0.9
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
    images = images * (1 - share) + blurred * share
    level = noise * torch.rand(batch, 1, 1, 1, generator=generator)
    return (images * gain + tint + level * torch.randn(images.shape, generator=generator)).clamp(-1, 1)


class _Step(NamedTuple):
    """A step's images: the rows' scenes, then the negatives of each kind in turn."""

    images: Tensor
    rows: list[int]
    negatives: list[tuple[Negatives, int]]


def _step(
    pool: ScenePool, negatives: Sequence[tuple[Negatives, int]], config: JudgeTrainingConfig, step: int, purpose: str
) -> _Step:
    draw = rng(config.fit.seed, purpose, step)
    rows = [draw.randrange(len(pool.scenes)) for _ in range(config.fit.batch)]
    parts, counts = [pool.images(rows)], []
    for kind, count in negatives:
        if count and len(kind.pixels):
            parts.append(kind.images([draw.randrange(len(kind.pixels)) for _ in range(count)]))
            counts.append((kind, count))
    generator = torch_generator(config.fit.seed, f"{purpose}-noise", step)
    return _Step(degrade(torch.cat(parts), generator, config.noise), rows, counts)


def train_judge(
    pool: ScenePool, config: JudgeTrainingConfig, folder: Path, negatives: Sequence[tuple[Negatives, int]] = ()
) -> JudgeNet:
    """Train the judge's network on a pool of many sets and free placements; resumes from ``folder``.

    Args:
        pool: Scenes with their placements.
        config: The network and its training.
        folder: Where the checkpoints go.
        negatives: Images that do not show some of the classes, and the number of each kind per step.
    """
    torch.manual_seed(config.fit.seed)
    net = JudgeNet(len(pool.taxonomy.names), config)
    if config.start is not None:
        load_weights(net, config.start.read_bytes())
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        seen = _step(pool, negatives, config, step, "judge")
        with native_autocast(torch.device("cpu")):
            logits = net(seen.images.to(memory_format=torch.channels_last))
        scenes, *others = logits.float().split([len(seen.rows), *(count for _, count in seen.negatives)])
        value, right = _scene_loss(scenes, cell_targets(pool, seen.rows))
        absent = [absent_loss(part, kind.concepts) for part, (kind, _) in zip(others, seen.negatives, strict=True)]
        metrics = {"right": right} | {f"absent_{place}": part.item() for place, part in enumerate(absent)}
        return value + config.negatives.weight * sum(absent), metrics

    Fit(net, config.fit, folder).run(loss)
    _settle_batch_norm(net, pool, negatives, config)
    net.eval()
    return net


def _scene_loss(logits: Tensor, targets: Tensor) -> tuple[Tensor, float]:
    """Return the cells' loss, and the accuracy on cells near a drawing."""
    nothing = targets == logits.shape[1] - 1
    each = F.cross_entropy(logits, targets, reduction="none", ignore_index=IGNORED, label_smoothing=0.02)
    shown = ~nothing & (targets != IGNORED)
    right = (logits.argmax(1) == targets)[shown].float().mean().item()
    # Empty cells are many and easy: they weigh a quarter of the shown ones in all.
    return each[shown].mean() + 0.25 * each[nothing].mean(), right


@torch.no_grad()
def _settle_batch_norm(
    net: JudgeNet,
    pool: ScenePool,
    negatives: Sequence[tuple[Negatives, int]],
    config: JudgeTrainingConfig,
    batches: int = 60,
) -> None:
    """Recompute the batch norms' statistics under the averaged weights."""
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    net.train()
    for step in range(batches):
        net(_step(pool, negatives, config, step, "settle").images)
