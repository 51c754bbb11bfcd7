"""Pictures that show no unsafe concept, for the judge to be sure of that: spoiled benign drawings, and renders.

A generator that was made to leave a concept out often draws something between two things, or a smudge. A judge that
has seen whole drawings alone takes such a picture for whatever it comes nearest to, with confidence, and raises false
alarms. Only benign drawings are spoiled and only benign prompts rendered, so that what is left of an unsafe concept
is not taught to be none.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from safety.base import Config
from safety.emoji.build.pool import ScenePool, draw_combination
from safety.emoji.caption import caption, name_concept
from safety.emoji.scene import SCENE_PIXELS, Scene, SceneRenderer
from safety.families import ModelFamily
from safety.images import to_float, to_uint8
from safety.rendering import RenderConfig, render, row_seed
from safety.seeds import rng, torch_generator
from safety.taxonomy import Taxonomy

MASK_CELLS = 8
BLURS = (1, 1, 2, 4)
"""How coarse a spoiled scene is left, drawn evenly."""


class NegativesConfig(Config):
    """How many pictures of each kind, and how many of them a training step reads."""

    spoiled: int = Field(
        6000, ge=0, description="scenes whose benign drawings are each mixed with another's, and faded"
    )
    spoiled_rows: int = Field(16, ge=0, description="of them a step")
    least: float = Field(0.35, gt=0, le=0.5, description="least share of either drawing in an even mixture")
    faintest: float = Field(0.35, gt=0, le=1, description="least contrast that is left of a scene")
    renders: int = Field(2000, ge=0, description="images of benign prompts, by the model that the judge will read")
    render_rows: int = Field(16, ge=0, description="of them a step")
    render_steps: tuple[int, ...] = Field((2, 3, 5, 8), min_length=1, description="sampling steps, in turn")
    guidance: float = Field(4.0, ge=1)
    weight: float = Field(0.5, ge=0, description="weight of either kind's loss beside that of the scenes")
    seed: int = 0


class Negatives(NamedTuple):
    """Pictures uint8 [N, 3, 64, 64], of which the first ``concepts`` classes are not shown."""

    pixels: Tensor
    concepts: int

    def images(self, rows: Sequence[int]) -> Tensor:
        """Return the rows' pictures as fp32 [B, 3, 64, 64] in [-1, 1]."""
        return to_float(self.pixels[torch.as_tensor(rows)])


def absent_loss(logits: Tensor, concepts: int) -> Tensor:
    """Return the mean of -log(1 - p), p being the most that any cell gives to the first ``concepts`` classes in all.

    Args:
        logits: Cells' logits [B, classes, h, w].
        concepts: How many classes, from the first, are not shown.
    """
    # log(1 - p) of a cell is the log-probability of all other classes.
    rest = logits.logsumexp(dim=1) - logits[:, concepts:].logsumexp(dim=1)
    return rest.amax(dim=(1, 2)).mean()


def spoiled_drawings(pool: ScenePool, renderer: SceneRenderer, config: NegativesConfig) -> Negatives:
    """Return scenes of a pool's benign drawings, each drawing mixed with another in its place, the scene faded.

    Raises ValueError when the pool draws fewer than two benign concepts.
    """
    benign = {concept.name for concept in pool.taxonomy.benign}
    drawn = sorted({(p.concept, p.drawing_set) for s in pool.scenes for p in s.placed if p.concept in benign})
    if config.spoiled and len({concept for concept, _ in drawn}) < 2:
        raise ValueError("the pool draws fewer than two benign concepts, so that no drawing can be mixed with another")
    pixels = torch.empty((config.spoiled, 3, SCENE_PIXELS, SCENE_PIXELS), dtype=torch.uint8)
    for number in range(config.spoiled):
        draw = rng(config.seed, f"spoiled-{number}")
        scene = pool.scenes[draw.randrange(len(pool.scenes))]
        one, other = (_redrawn(scene, drawn, draw) for _ in range(2))
        share = _share(config, number, even=draw.random() < 0.5)
        mixed = renderer.render(one) * share + renderer.render(other) * (1.0 - share)
        empty = renderer.render(scene._replace(placed=()))
        contrast = draw.uniform(config.faintest, 1.0)
        pixels[number] = to_uint8(empty + contrast * (_blurred(mixed, draw.choice(BLURS)) - empty))
    return Negatives(pixels, len(pool.taxonomy.concepts))


def _redrawn(scene: Scene, drawn: Sequence[tuple[str, str]], draw: random.Random) -> Scene:
    """Return the scene with another drawing in each place."""
    chosen = [draw.choice(drawn) for _ in scene.placed]
    places = zip(scene.placed, chosen, strict=True)
    return scene._replace(placed=tuple(p._replace(concept=c, drawing_set=s) for p, (c, s) in places))


def _blurred(image: Tensor, factor: int) -> Tensor:
    """Return the image [3, H, W] as what is left of it at a ``factor`` of the resolution."""
    small = F.avg_pool2d(image[None], factor)
    return F.interpolate(small, image.shape[-2:], mode="bilinear", align_corners=False)[0]


def _share(config: NegativesConfig, number: int, *, even: bool) -> Tensor:
    """Return the first drawing's share in [0, 1]: one number [1, 1, 1], or smooth patches [1, 64, 64] of mean 1/2."""
    generator = torch_generator(config.seed, f"spoiled-{number}", "share")
    if even:
        return config.least + (1.0 - 2.0 * config.least) * torch.rand(1, 1, 1, generator=generator)
    patches = torch.randn(1, 1, MASK_CELLS, MASK_CELLS, generator=generator)
    smooth = F.interpolate(patches, (SCENE_PIXELS, SCENE_PIXELS), mode="bicubic", align_corners=False)[0]
    return (4.0 * smooth).sigmoid()


def benign_renders(model: ModelFamily, taxonomy: Taxonomy, config: NegativesConfig) -> Negatives:
    """Render benign prompts, of scenes that are not kept for testing, by the steps of ``config`` in turn."""
    names = [concept.name for concept in taxonomy.benign]
    images: list[Tensor] = []
    for turn, steps in enumerate(config.render_steps):
        rows = [f"negative-{n}" for n in range(turn, config.renders, len(config.render_steps))]
        if rows:
            prompts = [_benign_prompt(taxonomy, names, config.seed, row) for row in rows]
            seeds = [row_seed(config.seed, row) for row in rows]
            images.append(render(model, prompts, seeds, RenderConfig(steps=steps, guidance=config.guidance)))
    pixels = torch.cat(images) if images else torch.empty((0, 3, SCENE_PIXELS, SCENE_PIXELS), dtype=torch.uint8)
    return Negatives(pixels, len(taxonomy.concepts))


def _benign_prompt(taxonomy: Taxonomy, names: Sequence[str], seed: int, row: str) -> str:
    draw = rng(seed, row)
    concepts, background = draw_combination(draw, names, lambda: draw.choice((1, 2, 2)))
    phrases = [name_concept(taxonomy, concept, draw) for concept in concepts]
    return caption(phrases, background, draw.randrange(1000))
