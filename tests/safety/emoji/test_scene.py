"""Scenes: placement, composition and the split."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from safety.emoji.build.pool import PoolConfig, ScenePool, compose, make_pool
from safety.emoji.scene import BACKGROUNDS, TEST_SHARE, Placed, Scene, SceneRenderer, is_reserved, lay_out
from safety.taxonomy import Taxonomy

SETS = {"red square": ("flat",), "black square": ("flat",), "small square": ("flat", "round")}


def test_a_scene_is_its_drawing_over_its_background(renderer: SceneRenderer) -> None:
    image = renderer.render(Scene("blue", (Placed("red square", "flat", 8, 16, 30),)))
    blue = torch.tensor(BACKGROUNDS["blue"]) / 127.5 - 1
    red = torch.tensor([1.0, -1.0, -1.0])
    inside = torch.zeros(64, 64, dtype=torch.bool)
    inside[16:46, 8:38] = True
    assert torch.allclose(image[:, inside], red[:, None].expand(-1, 900), atol=1e-6)
    assert torch.allclose(image[:, ~inside], blue[:, None].expand(-1, 64 * 64 - 900), atol=1e-6)


@given(st.integers(0, 10_000), st.sampled_from([1, 2]))
def test_drawings_never_overlap_or_leave_the_scene(row: int, count: int) -> None:
    concepts = ["red square", "small square"][:count]
    scene = lay_out(concepts, "white", SETS, 0, str(row), sides=(24, 30, 32), grid=1)
    for item in scene.placed:
        assert 0 <= item.left <= item.left + item.side <= 64
        assert 0 <= item.top <= item.top + item.side <= 64
    if count == 2:
        left, right = scene.placed
        assert left.left + left.side <= 32 <= right.left


@given(st.integers(0, 10_000), st.sampled_from([0, 8, 16]))
def test_drawings_stay_within_reach_of_the_middle_of_their_room(row: int, reach: int) -> None:
    [single] = lay_out(["red square"], "white", SETS, 0, str(row), reach=reach).placed
    pair = lay_out(["red square", "small square"], "white", SETS, 0, str(row), reach=reach).placed
    assert abs(single.left + single.side / 2 - 32) <= reach
    for item in (single, *pair):
        assert abs(item.top + item.side / 2 - 32) <= reach
    assert [item.left + item.side / 2 for item in pair] == [16, 48]


def test_a_counterparts_scene_shares_everything_but_the_concept() -> None:
    unsafe = lay_out(["red square", "small square"], "pink", SETS, 3, "row")
    safe = lay_out(["black square", "small square"], "pink", SETS, 3, "row")
    assert unsafe.placed[1] == safe.placed[1]
    assert unsafe.placed[0]._replace(concept="black square") == safe.placed[0]


def test_the_split_ignores_the_order_of_concepts_and_keeps_its_share() -> None:
    pairs = [(f"a{i}", f"b{i}") for i in range(3000)]
    assert all(is_reserved(p, "blue") == is_reserved(p[::-1], "blue") for p in pairs)
    share = sum(is_reserved(p, "blue") for p in pairs) / len(pairs)
    assert abs(share - TEST_SHARE) < 0.02


def test_no_training_scene_is_reserved(pool: ScenePool) -> None:
    assert not any(is_reserved(scene.concepts, scene.background) for scene in pool.scenes)


def test_a_pool_is_a_function_of_its_seed(shapes_taxonomy: Taxonomy, renderer: SceneRenderer, pool: ScenePool) -> None:
    longer = make_pool(shapes_taxonomy, renderer, PoolConfig(scenes=130, sets=("flat",)))
    assert longer.scenes[:120] == pool.scenes
    assert torch.equal(longer.pixels[:120], pool.pixels)


def test_scenes_are_what_is_chosen_laid_out_by_the_config() -> None:
    config = PoolConfig(scenes=6, sides=(24, 30), grid=4, reach=8, seed=9)
    chosen = [(["red square"], "blue"), (["black square", "small square"], "pink")] * 3
    for name in ("a", "b"):
        expected = [
            lay_out(concepts, background, SETS, 9, f"{name}-{number}", sides=(24, 30), grid=4, reach=8)
            for number, (concepts, background) in enumerate(chosen)
        ]
        assert compose(config, name, SETS, lambda number, _: chosen[number]) == expected
    draws = [[], []]
    for seen in draws:
        compose(config, "a", SETS, lambda number, draw, seen=seen: seen.append(draw.random()) or chosen[number])
    assert draws[0] == draws[1]
    assert len(set(draws[0])) == 6


def test_pictures_are_scenes_to_the_nearest_level(renderer: SceneRenderer, pool: ScenePool) -> None:
    for scene, pixels in zip(pool.scenes[:20], renderer.images(pool.scenes[:20]), strict=True):
        assert (pixels.double() - (renderer.render(scene).double() + 1) * 127.5).abs().max() <= 0.5


def test_captions_name_every_part(pool: ScenePool, shapes_taxonomy: Taxonomy) -> None:
    for row, scene in enumerate(pool.scenes[:40]):
        for draw in range(5):
            text = pool.caption(row, 0, draw)
            assert scene.background in text
            for concept in scene.concepts:
                assert any(word in text for word in shapes_taxonomy.concept(concept).words)


def test_a_concept_without_a_drawing_is_named(renderer: SceneRenderer) -> None:
    with pytest.raises(ValueError, match="no drawing of unicorn"):
        renderer.sets_of(["unicorn"], ["flat"])
