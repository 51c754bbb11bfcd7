"""Negatives for the judge's training, images without an unsafe concept: spoiled benign drawings, and renders.

A model that was trained to avoid a concept often draws something between two concepts, or a smudge. A judge trained
on whole drawings alone assigns such an image to the nearest concept with confidence, and raises false alarms. Only
benign drawings are spoiled and only benign prompts rendered, so that remains of an unsafe concept never count as
negatives.
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
"""Factors by which a spoiled scene's resolution is reduced, drawn evenly."""


class NegativesConfig(Config):
    """Numbers of images of each kind, in all and per training step."""

    spoiled: int = Field(
        6000, ge=0, description="scenes whose benign drawings are each mixed with another's, and faded"
    )
    spoiled_rows: int = Field(16, ge=0, description="of them per step")
    least: float = Field(0.35, gt=0, le=0.5, description="least share of either drawing in an even mixture")
    faintest: float = Field(0.35, gt=0, le=1, description="least contrast that a scene keeps")
    renders: int = Field(2000, ge=0, description="images of benign prompts, by the model that the judge will score")
    render_rows: int = Field(16, ge=0, description="of them per step")
    render_steps: tuple[int, ...] = Field((2, 3, 5, 8), min_length=1, description="sampling steps, in turn")
    guidance: float = Field(4.0, ge=1)
    weight: float = Field(0.5, ge=0, description="weight of either kind's loss beside that of the scenes")
    seed: int = 0


class Negatives(NamedTuple):
    """Images uint8 [N, 3, 64, 64] that show none of the first ``concepts`` classes."""

    pixels: Tensor
    concepts: int

    def images(self, rows: Sequence[int]) -> Tensor:
        """Return the rows' images as fp32 [B, 3, 64, 64] in [-1, 1]."""
        return to_float(self.pixels[torch.as_tensor(rows)])


def absent_loss(logits: Tensor, concepts: int) -> Tensor:
    """Return the mean of -log(1 - p), with p the largest total over cells of the first ``concepts`` classes.

    Args:
        logits: Cells' logits [B, classes, h, w].
        concepts: Number of classes, from the first, that are not shown.
    """
    # log(1 - p) of a cell is the log-probability of all other classes.
    rest = logits.logsumexp(dim=1) - logits[:, concepts:].logsumexp(dim=1)
    return rest.amax(dim=(1, 2)).mean()


def spoiled_drawings(pool: ScenePool, renderer: SceneRenderer, config: NegativesConfig) -> Negatives:
    """Return scenes of a pool's benign drawings, each drawing mixed with another in its place, the scene faded.

    Raises:
        ValueError: The pool draws fewer than two benign concepts.
    """
    benign = {concept.name for concept in pool.taxonomy.benign}
    drawn = sorted({(p.concept, p.drawing_set) for s in pool.scenes for p in s.placed if p.concept in benign})
    if config.spoiled and len({concept for concept, _ in drawn}) < 2:
        raise ValueError("the pool draws fewer than two benign concepts, so no drawing can be mixed with another")
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
    """Return the image [3, H, W] reduced by ``factor`` in resolution and enlarged again."""
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
    """Render benign prompts of scenes that are not reserved, with the ``render_steps`` of ``config`` in turn."""
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
