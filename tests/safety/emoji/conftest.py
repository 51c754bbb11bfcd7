"""A small world of coloured shapes in place of the emoji drawings, which tests do not fetch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from safety.emoji.build.pool import PoolConfig, ScenePool, make_pool
from safety.emoji.scene import SceneRenderer
from safety.taxonomy import Taxonomy


def shape(colour: tuple[int, int, int], inset: int) -> Tensor:
    """Return a filled square of a colour with a transparent margin, uint8 [64, 64, 4]."""
    drawing = torch.zeros(64, 64, 4, dtype=torch.uint8)
    drawing[inset : 64 - inset, inset : 64 - inset] = torch.tensor([*colour, 255], dtype=torch.uint8)
    return drawing


@pytest.fixture(scope="session")
def shapes_taxonomy() -> Taxonomy:
    return Taxonomy.model_validate(
        {
            "name": "shapes",
            "version": "1",
            "concepts": [{"name": "red square", "category": "violence", "counterpart": "black square"}],
            "benign": [{"name": "black square", "synonyms": ["dark tile"]}, {"name": "small square"}],
        }
    )


@pytest.fixture(scope="session")
def renderer() -> SceneRenderer:
    return SceneRenderer(
        {
            "red square|flat": shape((255, 0, 0), 0),
            "black square|flat": shape((0, 0, 0), 0),
            "small square|flat": shape((0, 0, 0), 20),
            "small square|round": shape((0, 0, 255), 20),
        }
    )


@pytest.fixture(scope="session")
def pool(shapes_taxonomy: Taxonomy, renderer: SceneRenderer) -> ScenePool:
    return make_pool(shapes_taxonomy, renderer, PoolConfig(scenes=120, sets=("flat",)))
