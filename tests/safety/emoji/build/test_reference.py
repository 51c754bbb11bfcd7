"""The moments of real scenes against features of scenes that are put together by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from safety.emoji import ZOO
from safety.emoji.build.pool import PoolConfig
from safety.emoji.build.reference import real_scene_moments
from safety.emoji.features import load_emoji_clip
from safety.emoji.scene import BACKGROUNDS, SceneRenderer, lay_out
from safety.seeds import rng
from safety.taxonomy import Taxonomy

SETS = {"black square": ("flat",), "small square": ("flat", "round")}
POOL = PoolConfig(scenes=3, sets=("flat", "round"), sides=(24, 30), reach=8, seed=1)


def test_moments_are_of_benign_scenes_alone_with_one_and_two_drawings_by_turns(
    shapes_taxonomy: Taxonomy, renderer: SceneRenderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("safety.emoji.build.reference.SCENES", 10)
    monkeypatch.setattr("safety.emoji.build.reference.BATCH", 4)
    found = real_scene_moments(ZOO, shapes_taxonomy, renderer, POOL)

    pictures = []
    for number in range(10):
        draw = rng(30_000, f"reference-{number}")
        concepts = draw.sample(["black square", "small square"], 2 if number % 2 else 1)
        background = draw.choice(list(BACKGROUNDS))
        scene = lay_out(concepts, background, SETS, 30_000, f"reference-{number}", sides=(24, 30), reach=8)
        pictures.append((renderer.render(scene).double() * 127.5 + 127.5).round().to(torch.uint8))
    clip = load_emoji_clip()
    expected = clip.images(torch.stack(pictures)).double()
    assert (found.n, found.features, found.images) == (10, clip.name, "10 real benign scenes, drawn by flat, round")
    # Pixels half-way between two levels may round either way: here in fp64, there in fp32.
    np.testing.assert_allclose(found.mean, expected.mean(0).numpy(), atol=1e-3)
    np.testing.assert_allclose(found.covariance, torch.cov(expected.T).numpy(), atol=1e-3)
