"""Pictures that show nothing unsafe: spoiled benign drawings, renders of benign prompts, and what the judge loses by them."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from safety.emoji import TAXONOMY
from safety.emoji.build.negatives import NegativesConfig, absent_loss, benign_renders, spoiled_drawings
from safety.emoji.build.pool import PoolConfig, ScenePool, make_pool
from safety.emoji.scene import SceneRenderer, is_reserved
from safety.families import ModelConfig, load_model
from safety.taxonomy import Taxonomy, load_taxonomy


def test_the_loss_is_that_of_the_cell_that_gives_most_to_what_is_absent() -> None:
    logits = torch.randn(3, 5, 4, 4, generator=torch.Generator().manual_seed(0))
    expected = 0.0
    for image in logits:
        most = max(float(image[:, i, j].softmax(0)[:2].sum()) for i in range(4) for j in range(4))
        expected -= math.log(1.0 - most) / 3
    assert float(absent_loss(logits, 2)) == pytest.approx(expected, rel=1e-5)


def test_spoiled_drawings_are_of_benign_concepts_alone_and_leave_the_background(
    pool: ScenePool, renderer: SceneRenderer
) -> None:
    found = spoiled_drawings(pool, renderer, NegativesConfig(spoiled=40))
    assert found.concepts == len(pool.taxonomy.concepts) == 1
    backgrounds = {tuple(image[:, 0, 0].tolist()) for image in pool.pixels}
    between = 0
    for image in found.pixels:
        colours = Counter(tuple(pixel) for pixel in image.flatten(1).T.tolist())
        ground = colours.most_common(1)[0][0]
        assert ground in backgrounds
        # Benign shapes are black or blue, the unsafe one is red: mixing and fading benign ones adds no red.
        assert int(image[0].max()) <= ground[0] + 1
        between += len(colours.keys() - {ground, (0, 0, 0)}) > 0
    assert between == 40
    assert torch.equal(found.pixels, spoiled_drawings(pool, renderer, NegativesConfig(spoiled=40)).pixels)


def test_the_contrast_that_is_left_is_within_its_limits(pool: ScenePool, renderer: SceneRenderer) -> None:
    whole = spoiled_drawings(pool, renderer, NegativesConfig(spoiled=30, faintest=1.0)).pixels.float()
    faint = spoiled_drawings(pool, renderer, NegativesConfig(spoiled=30, faintest=0.2)).pixels.float()
    corner = whole[:, :, :1, :1]
    left = (faint - corner).abs().amax(dim=(1, 2, 3)) / (whole - corner).abs().amax(dim=(1, 2, 3))
    assert 0.18 < float(left.min()) < 0.5
    assert float(left.max()) <= 1.02


def test_a_pool_of_one_benign_concept_cannot_be_mixed(shapes_taxonomy: Taxonomy, renderer: SceneRenderer) -> None:
    drawings = {key: renderer.drawings[key] for key in ("red square|flat", "black square|flat")}
    only = SceneRenderer(drawings)
    single = make_pool(shapes_taxonomy, only, PoolConfig(scenes=9, sets=("flat",), single_share=1.0))
    with pytest.raises(ValueError, match="fewer than two benign"):
        spoiled_drawings(single, only, NegativesConfig(spoiled=2))


def test_renders_are_of_benign_prompts_in_scenes_not_kept_for_testing(monkeypatch: pytest.MonkeyPatch) -> None:
    taxonomy = load_taxonomy(TAXONOMY)
    asked: list[bool] = []

    def seen(concepts: list[str], background: str) -> bool:
        assert set(concepts) <= {concept.name for concept in taxonomy.benign}
        asked.append(is_reserved(concepts, background))
        return asked[-1]

    monkeypatch.setattr("safety.emoji.build.pool.is_reserved", seen)
    config = NegativesConfig(renders=5, render_steps=(1, 2))
    model = load_model(ModelConfig())
    found = benign_renders(model, taxonomy, config)
    assert found.pixels.shape == (5, 3, 64, 64)
    assert found.pixels.dtype == torch.uint8
    assert found.concepts == len(taxonomy.concepts)
    assert asked.count(False) == 5
    assert torch.equal(found.pixels, benign_renders(model, taxonomy, config).pixels)
