"""What real benign scenes look like to the emoji CLIP: the reference of FID in the emoji world.

The drawings are not shipped, so that the moments are made once, by the world's build job, and kept in the zoo.
"""

from __future__ import annotations

from pathlib import Path

import torch

from safety.emoji.pool import PoolConfig
from safety.emoji.scene import BACKGROUNDS, SceneRenderer, lay_out
from safety.evaluation.features import EmojiClip
from safety.evaluation.moments import Moments, moments_of
from safety.images import to_uint8
from safety.seeds import rng
from safety.taxonomy import Taxonomy

SCENES = 4000
SEED = 30_000
BATCH = 200


def real_scene_moments(zoo: Path, taxonomy: Taxonomy, renderer: SceneRenderer, pool: PoolConfig) -> Moments:
    """Compose benign scenes of the sets that the UNet learns to draw, half of them of one drawing; return their moments."""
    features = EmojiClip(zoo / "clip", zoo / "tokenizer")
    names = [concept.name for concept in taxonomy.benign]
    sets_of = renderer.sets_of(names, pool.sets)
    rows = []
    for start in range(0, SCENES, BATCH):
        images = []
        for number in range(start, min(start + BATCH, SCENES)):
            draw = rng(SEED, f"reference-{number}")
            concepts = draw.sample(names, 1 + number % 2)
            background = draw.choice(list(BACKGROUNDS))
            scene = lay_out(
                concepts, background, sets_of, SEED, f"reference-{number}", sides=pool.sides, reach=pool.reach
            )
            images.append(renderer.render(scene))
        rows.append(features.images(to_uint8(torch.stack(images))))
    return moments_of(torch.cat(rows), features.name, f"{SCENES} real benign scenes, drawn by {', '.join(pool.sets)}")
