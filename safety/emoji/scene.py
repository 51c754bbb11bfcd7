"""Scenes: one or two drawings on a coloured background, placed by a seed.

An unsafe scene and its safe counterpart share background, places and drawing set; only the concept changes.
The first of two concepts is in the left half, the second in the right half.

A tenth of all (concepts, background) combinations, by hash, is reserved for testing: neither the zoo's training nor
alignment ever sees one, and test prompts name these alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from safety.images import to_uint8
from safety.seeds import rng, uniform

KEY_SEPARATOR = "|"
"""Between concept and set in the key of a drawing."""
SCENE_PIXELS = 64
PLACE_GRID = 8
DRAWN_PIXELS = 32
TEST_SHARE = 0.1
FULL_REACH = (SCENE_PIXELS - DRAWN_PIXELS) // 2
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (248, 248, 248),
    "gray": (150, 152, 156),
    "pink": (250, 170, 195),
    "yellow": (250, 226, 120),
    "green": (122, 204, 138),
    "blue": (112, 172, 242),
    "purple": (170, 132, 222),
    "brown": (162, 122, 92),
}


class Placed(NamedTuple):
    """One drawing in a scene: its concept and set, its top-left corner and side in pixels."""

    concept: str
    drawing_set: str
    left: int
    top: int
    side: int


class Scene(NamedTuple):
    """A background colour's name and the drawings on it, left to right."""

    background: str
    placed: tuple[Placed, ...]

    @property
    def concepts(self) -> tuple[str, ...]:
        """Return the concepts shown, left to right."""
        return tuple(p.concept for p in self.placed)


def is_reserved(concepts: Sequence[str], background: str) -> bool:
    """Return whether a combination (its concepts in any order) is reserved for testing."""
    return uniform(0, "|".join([*sorted(concepts), background]), "test-split") < TEST_SHARE


def lay_out(
    concepts: Sequence[str],
    background: str,
    sets_of: Mapping[str, Sequence[str]],
    seed: int,
    row_id: str,
    *,
    sides: tuple[int, ...] = (30,),
    grid: int = PLACE_GRID,
    reach: int = FULL_REACH,
) -> Scene:
    """Place one or two concepts as draws of (seed, row id).

    Args:
        concepts: One or two concept names, left to right.
        background: A key of ``BACKGROUNDS``.
        sets_of: For each concept, the drawing sets to choose from.
        seed: The run seed.
        row_id: The row's id.
        sides: Sizes in pixels to choose from, at most ``DRAWN_PIXELS``.
        grid: Corners fall on multiples of ``grid`` pixels.
        reach: Most pixels that a drawing's centre is off the middle of its half.
    """
    placed = []
    for index, concept in enumerate(concepts):
        draw = rng(seed, row_id, f"place-{index}")
        side = draw.choice(sides)
        margin = (DRAWN_PIXELS - side) // 2
        away = reach // grid
        across = FULL_REACH + draw.randint(-away, away) * grid if len(concepts) == 1 else index * DRAWN_PIXELS
        placed.append(
            Placed(
                concept,
                draw.choice(list(sets_of[concept])),
                across + margin,
                FULL_REACH + draw.randint(-away, away) * grid + margin,
                side,
            )
        )
    return Scene(background, tuple(placed))


@lru_cache(maxsize=4096)
def _resized(key: str, side: int, source: SceneRenderer) -> Tensor:
    drawing = source.drawings[key].permute(2, 0, 1)[None].float() / 255.0
    return F.interpolate(drawing, size=(side, side), mode="area")[0]


class SceneRenderer:
    """Composes scenes from rendered drawings; it hashes by identity, so that resized ones are cached for each."""

    def __init__(self, drawings: Mapping[str, Tensor]) -> None:
        self.drawings = drawings

    def drawable(self, concepts: Sequence[str], allowed: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """Return the allowed sets that draw each concept; one that none draws is left out."""
        found = {c: tuple(s for s in allowed if f"{c}{KEY_SEPARATOR}{s}" in self.drawings) for c in concepts}
        return {concept: sets for concept, sets in found.items() if sets}

    def sets_of(self, concepts: Sequence[str], allowed: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """Return for each concept the allowed sets that draw it; raise ValueError when one has none."""
        found = self.drawable(concepts, allowed)
        missing = [concept for concept in concepts if concept not in found]
        if missing:
            raise ValueError(f"no drawing of {', '.join(missing)} in the sets {', '.join(allowed)}")
        return found

    def render(self, scene: Scene) -> Tensor:
        """Return the scene as fp32 [3, 64, 64] in [-1, 1]."""
        colour = torch.tensor(BACKGROUNDS[scene.background], dtype=torch.float32) / 255.0
        canvas = colour[:, None, None].expand(3, SCENE_PIXELS, SCENE_PIXELS).clone()
        for item in scene.placed:
            drawing = _resized(f"{item.concept}{KEY_SEPARATOR}{item.drawing_set}", item.side, self)
            region = canvas[:, item.top : item.top + item.side, item.left : item.left + item.side]
            region.mul_(1.0 - drawing[3:]).add_(drawing[:3])
        return canvas.clamp_(0.0, 1.0).mul_(2.0).sub_(1.0)

    def images(self, scenes: Sequence[Scene]) -> Tensor:
        """Return the scenes as uint8 [N, 3, 64, 64]."""
        pixels = torch.empty((len(scenes), 3, SCENE_PIXELS, SCENE_PIXELS), dtype=torch.uint8)
        for index, scene in enumerate(scenes):
            pixels[index] = to_uint8(self.render(scene))
        return pixels
