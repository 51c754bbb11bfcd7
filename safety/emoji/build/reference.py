"""Moments of real benign scenes under the emoji CLIP: the reference of FID in the emoji world.

The drawings are not shipped, so the world's build job computes the moments once and stores them in the zoo.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch

from safety.emoji.build.pool import Combination, PoolConfig, compose
from safety.emoji.features import EmojiClip
from safety.emoji.scene import BACKGROUNDS, SceneRenderer
from safety.evaluation.moments import Moments, moments_of
from safety.taxonomy import Taxonomy

SCENES = 4000
SEED = 30_000
BATCH = 200


def real_scene_moments(zoo: Path, taxonomy: Taxonomy, renderer: SceneRenderer, pool: PoolConfig) -> Moments:
    """Compose benign scenes as the UNet's ``pool`` does, half of them of one drawing; return their moments."""
    names = [concept.name for concept in taxonomy.benign]

    def choose(number: int, draw: random.Random) -> Combination:
        return draw.sample(names, 1 + number % 2), draw.choice(list(BACKGROUNDS))

    own = pool.model_copy(update={"scenes": SCENES, "seed": SEED})
    scenes = compose(own, "reference", renderer.sets_of(names, pool.sets), choose)
    features = EmojiClip(zoo / "clip", zoo / "tokenizer")
    rows = torch.cat([features.images(part) for part in torch.split(renderer.images(scenes), BATCH)])
    return moments_of(rows, features.name, f"{SCENES} real benign scenes, drawn by {', '.join(pool.sets)}")
