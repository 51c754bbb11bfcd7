"""Pictures that show nothing unsafe: mixed in place, rendered from benign prompts, and what the judge loses by them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from safety.emoji.negatives import NegativesConfig, absent_loss, benign_renders, mixed_drawings
from safety.emoji.pool import PoolConfig, ScenePool, make_pool
from safety.emoji.scene import SceneRenderer
from safety.emoji.split import is_reserved
from safety.families import ModelConfig, load_model
from safety.taxonomy import Taxonomy, load_taxonomy

TAXONOMY = Path(__file__).parents[3] / "safety" / "emoji" / "taxonomy.yaml"


def test_the_loss_is_that_of_the_cell_that_gives_most_to_what_is_absent() -> None:
    logits = torch.randn(3, 5, 4, 4, generator=torch.Generator().manual_seed(0))
    expected = 0.0
    for image in logits:
        most = max(float(image[:, i, j].softmax(0)[:2].sum()) for i in range(4) for j in range(4))
        expected -= math.log(1.0 - most) / 3
    assert float(absent_loss(logits, 2)) == pytest.approx(expected, rel=1e-5)


def test_a_mixed_drawing_lies_between_its_two_drawings_and_leaves_the_background(
    pool: ScenePool, renderer: SceneRenderer
) -> None:
    found = mixed_drawings(pool, renderer, NegativesConfig(mixed=24, least=0.5))
    assert found.concepts == len(pool.taxonomy.names)
    backgrounds = {tuple(image[:, 0, 0].tolist()) for image in pool.pixels}
    colours = {(255, 0, 0), (0, 0, 0), *backgrounds}
    changed = 0
    for image in found.pixels:
        assert tuple(image[:, 0, 0].tolist()) in backgrounds
        inner = {tuple(pixel) for pixel in image.flatten(1).T.tolist()}
        changed += bool(inner - colours)
    # A half-and-half mixture of two colours is neither of them; a patch may by chance be nearly whole.
    assert changed >= 20


def test_a_pool_of_one_concept_cannot_be_mixed(shapes_taxonomy: Taxonomy, renderer: SceneRenderer) -> None:
    only = SceneRenderer({"red square|flat": renderer._source.drawings["red square|flat"]})
    single = make_pool(shapes_taxonomy, only, PoolConfig(scenes=3, sets=("flat",), single_share=1.0))
    with pytest.raises(ValueError, match="one concept only"):
        mixed_drawings(single, only, NegativesConfig(mixed=2))


def test_renders_are_of_benign_prompts_in_scenes_not_kept_for_testing(monkeypatch: pytest.MonkeyPatch) -> None:
    taxonomy = load_taxonomy(TAXONOMY)
    asked: list[bool] = []

    def seen(concepts: list[str], background: str) -> bool:
        assert set(concepts) <= {concept.name for concept in taxonomy.benign}
        asked.append(is_reserved(concepts, background))
        return asked[-1]

    monkeypatch.setattr("safety.emoji.negatives.is_reserved", seen)
    config = NegativesConfig(renders=5, render_steps=(1, 2))
    model = load_model(ModelConfig())
    found = benign_renders(model, taxonomy, config)
    assert found.pixels.shape == (5, 3, 64, 64)
    assert found.pixels.dtype == torch.uint8
    assert found.concepts == len(taxonomy.concepts)
    assert asked.count(False) == 5
    assert torch.equal(found.pixels, benign_renders(model, taxonomy, config).pixels)
