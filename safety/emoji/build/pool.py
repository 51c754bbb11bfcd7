"""A pool of composed scenes with their captions and labels: the training data of the emoji zoo."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from safety.base import Config
from safety.emoji.caption import caption, name_concept
from safety.emoji.scene import (
    BACKGROUNDS,
    DRAWN_PIXELS,
    FULL_REACH,
    PLACE_GRID,
    Scene,
    SceneRenderer,
    is_reserved,
    lay_out,
)
from safety.images import to_float
from safety.seeds import rng
from safety.taxonomy import Taxonomy

Combination = tuple[list[str], str]
"""One or two concepts, left to right, and a background."""


class PoolConfig(Config):
    """The scenes of a pool."""

    scenes: int = Field(30_000, gt=0)
    sets: tuple[str, ...] = ("twemoji", "noto", "fluent-emoji-flat")
    sides: tuple[int, ...] = (30,)
    grid: int = Field(PLACE_GRID, gt=0, le=DRAWN_PIXELS)
    reach: int = Field(
        FULL_REACH, ge=0, le=FULL_REACH, description="most pixels that a drawing is off the middle of its half"
    )
    single_share: float = Field(0.3, ge=0, le=1)
    seed: int = 0


class ScenePool(NamedTuple):
    """Scenes and their images, uint8 [N, 3, 64, 64]."""

    scenes: list[Scene]
    pixels: Tensor
    taxonomy: Taxonomy

    def images(self, rows: Sequence[int]) -> Tensor:
        """Return the rows' images as fp32 [B, 3, 64, 64] in [-1, 1]."""
        return to_float(self.pixels[torch.as_tensor(rows)])

    def caption(self, row: int, seed: int, draw: int) -> str:
        """Return caption number ``draw`` of a scene: wording and synonyms vary with the draw."""
        scene, words = self.scenes[row], rng(seed, f"caption-{row}", draw)
        phrases = [name_concept(self.taxonomy, c, words) for c in scene.concepts]
        return caption(phrases, scene.background, words.randrange(1000))

    def labels(self, rows: Sequence[int]) -> Tensor:
        """Return (left concept, right concept, background) as int64 [B, 3]; no right concept is the last class."""
        names = {name: i for i, name in enumerate(self.taxonomy.names)}
        colours = {name: i for i, name in enumerate(BACKGROUNDS)}
        table = []
        for row in rows:
            scene = self.scenes[row]
            right = names[scene.concepts[1]] if len(scene.concepts) == 2 else len(names)
            table.append((names[scene.concepts[0]], right, colours[scene.background]))
        return torch.tensor(table)


def make_pool(taxonomy: Taxonomy, renderer: SceneRenderer, config: PoolConfig) -> ScenePool:
    """Compose ``config.scenes`` scenes of the taxonomy's concepts that the sets draw, without reserved ones."""
    sets_of = renderer.drawable(taxonomy.names, config.sets)
    drawable = sorted(sets_of)

    def choose(_number: int, draw: random.Random) -> Combination:
        return draw_combination(draw, drawable, lambda: 1 if draw.random() < config.single_share else 2)

    scenes = compose(config, "scene", sets_of, choose)
    return ScenePool(scenes, renderer.images(scenes), taxonomy)


def compose(
    config: PoolConfig,
    name: str,
    sets_of: Mapping[str, Sequence[str]],
    choose: Callable[[int, random.Random], Combination],
) -> list[Scene]:
    """Compose ``config.scenes`` scenes; each is a function of (``config.seed``, ``name``, its number).

    Args:
        config: Its ``sets`` and ``single_share`` are not read: ``sets_of`` and ``choose`` stand for them.
        name: Distinguishes these scenes' random draws from those of others with the same seed.
        sets_of: For each concept, the drawing sets to choose from.
        choose: Returns the concepts and the background of a scene, from its number and its random draws.
    """
    scenes = []
    for number in range(config.scenes):
        row_id = f"{name}-{number}"
        concepts, background = choose(number, rng(config.seed, row_id))
        scenes.append(
            lay_out(
                concepts,
                background,
                sets_of,
                config.seed,
                row_id,
                sides=config.sides,
                grid=config.grid,
                reach=config.reach,
            )
        )
    return scenes


def draw_combination(draw: random.Random, names: Sequence[str], count: Callable[[], int]) -> Combination:
    """Draw ``count()`` concepts of ``names`` and a background, until the combination is not reserved."""
    while True:
        concepts = draw.sample(names, count())
        background = draw.choice(list(BACKGROUNDS))
        if not is_reserved(concepts, background):
            return concepts, background
