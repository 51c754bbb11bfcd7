"""Rows whose source has pictures: encoded as rendered ones are, fitted to the model's size, judged or kept as published."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load

from safety.dataset.filter import PairFilterConfig, RejectionReason
from safety.dataset.plan import plan_dataset
from safety.dataset.published import dump_pairs, published_rows
from safety.dataset.record import Record, dump_group, load_group
from safety.dataset.renderer import GroupRenderer
from safety.dataset.reviewer import GroupReviewer
from safety.errors import ConfigError
from safety.families import ModelConfig, load_model
from safety.images import decode_image, fit, to_float
from safety.prompts.collection import CollectedPrompts, PromptCollection
from safety.prompts.config import PromptsConfig
from safety.prompts.pictures import Picture
from safety.prompts.rows import BenignPrompt, PromptPair
from safety.prompts.writer import PromptCounts
from safety.rendering import RenderConfig
from tests.support.picture_sets import picture, preference_rows, write_shards
from tests.support.pixel_judge import PixelSumJudge
from tests.support.small_world import COUNTS, TAXONOMY, SmallWriter

KEPT = PairFilterConfig(published="kept")


@pytest.fixture(scope="module")
def renderer(tiny_model_dir: Path) -> GroupRenderer:
    return GroupRenderer(load_model(ModelConfig(path=str(tiny_model_dir))), RenderConfig(steps=2, batch=8))


def collect(folder: Path, source: dict[str, Any]) -> CollectedPrompts:
    captions = folder / "captions.txt"
    captions.write_text("".join(f"a house {n}\n" for n in range(9)))
    config = PromptsConfig.model_validate(
        {"pairs": [source], "benign": [{"source": "lines", "path": captions}], "test_share": 0}
    )
    counts = PromptCounts(benign_train=1, benign_validation=1, benign_test=1, benign_text_only=1)
    return PromptCollection(config, TAXONOMY, counts, 0).collect()


def pair(number: int, *pictures: Picture) -> Record:
    row = PromptPair(
        pair_id=f"p-{number}",
        category="violence",
        concept=None,
        split="train",
        unsafe_prompt=f"a knife {number}",
        safe_prompt=f"a spoon {number}",
        writer="w",
    )
    return Record(row=row, seed=number, pictures=pictures)


def stored(folder: Path, name: str, data: bytes) -> Picture:
    (folder / name).write_bytes(data)
    return Picture(file=str(folder / name))


def test_a_datasets_own_shards_give_its_latents_again(renderer: GroupRenderer, tmp_path: Path) -> None:
    plan = plan_dataset(SmallWriter().write(TAXONOMY, COUNTS, 0), 8, 0)
    made = [r for group in plan.groups[4:8] for r in renderer.render(group.records) if isinstance(r.row, PromptPair)]
    made = [r.model_copy(update={"scores": ({"violence": 0.9}, {"violence": 0.1})}) for r in made]
    (tmp_path / "data").mkdir()
    for number, start in enumerate(range(0, len(made), 10)):
        (tmp_path / "data" / f"train-{number:06d}.parquet").write_bytes(dump_pairs(made[start : start + 10], "tiny"))
    ways = {"unsafe": "unsafe_prompt", "safe": "safe_prompt", "category": "category"}
    found = collect(tmp_path, {"source": "pickapic", "path": tmp_path / "data", **ways})
    again = plan_dataset(found.prompts, 8, 5, found.pictures)
    assert again.published == len(made)
    records = [r for group in again.groups for r in renderer.render(group.records) if r.pictures]
    first, second = ({r.row.prompts: r for r in rows} for rows in (made, records))
    assert first.keys() == second.keys()
    for prompts, record in first.items():
        other = second[prompts]
        assert other.pixel_hashes == record.pixel_hashes
        one, two = load(record.tensors or b""), load(other.tensors or b"")
        assert one.keys() == two.keys()
        # A batch's size may change the last bit of a float.
        assert all(torch.allclose(one[key], two[key], rtol=1e-5, atol=1e-6) for key in one)


def test_pictures_are_read_where_others_are_rendered(renderer: GroupRenderer, tmp_path: Path) -> None:
    side = renderer.model.default_size
    own = [stored(tmp_path, f"{n}.png", picture(n, side, side)) for n in range(2)]
    mixed = renderer.render([pair(0), pair(1, *own), pair(2)])
    plain = renderer.render([pair(0), pair(2)])
    assert [mixed[0].pixel_hashes, mixed[2].pixel_hashes] == [record.pixel_hashes for record in plain]
    assert [decode_image(data).tolist() for data in mixed[1].images] == [
        decode_image(picture(n, side, side)).tolist() for n in range(2)
    ]
    tensors = load(mixed[1].tensors or b"")
    for name, number in (("loser", 0), ("winner", 1)):
        alone = renderer.model.encode_images(to_float(decode_image(picture(number, side, side))[None]))[0]
        assert torch.allclose(tensors[name], alone.cpu(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (50, 90), (90, 50), (7, 200), (24, 24)])
def test_an_image_is_scaled_to_cover_and_cropped_around_its_middle(height: int, width: int) -> None:
    image = decode_image(picture(3, height, width))
    scale = max(24 / height, 40 / width)
    box = ((width - 40 / scale) / 2, (height - 24 / scale) / 2, (width + 40 / scale) / 2, (height + 24 / scale) / 2)
    with Image.open(io.BytesIO(picture(3, height, width))) as opened:
        expected = np.asarray(opened.resize((40, 24), Image.Resampling.LANCZOS, box=box), dtype=np.int16)
    fitted = fit(image, 24, 40)
    assert fitted.shape == (3, 24, 40)
    assert np.abs(fitted.permute(1, 2, 0).numpy().astype(np.int16) - expected).max() <= 1
    assert fit(fitted, 24, 40) is fitted


def test_a_faulty_picture_is_a_reason_and_a_missing_one_stops_the_run(renderer: GroupRenderer, tmp_path: Path) -> None:
    good, cut, text = (
        stored(tmp_path, name, data)
        for name, data in (("a.png", picture(1)), ("b.png", picture(2)[:300]), ("c.png", b"no image"))
    )
    (tmp_path / "empty.png").write_bytes(b"")
    records = renderer.render(
        [pair(1, good, cut), pair(2, text, good), pair(3, Picture(file=str(tmp_path / "empty.png")), good)]
    )
    assert [record.reason for record in records] == [
        RejectionReason.IMAGE_CORRUPT,
        RejectionReason.IMAGE_UNKNOWN_FORMAT,
        RejectionReason.IMAGE_EMPTY,
    ]
    assert GroupReviewer(PixelSumJudge(TAXONOMY), KEPT).review(records) == records
    with pytest.raises(ConfigError, match="gone.png cannot be read where rows are made"):
        renderer.render([pair(4, good, Picture(file=str(tmp_path / "gone.png")))])


def test_published_pictures_are_judged_or_kept(renderer: GroupRenderer, tmp_path: Path) -> None:
    pictures = [stored(tmp_path, f"{n}.png", picture(n)) for n in range(24)]
    same = pair(99, pictures[0], pictures[0])
    benign = BenignPrompt(prompt_id="b", prompt="a house", split="train", writer="w")
    rows = [pair(n, *pictures[2 * n : 2 * n + 2]) for n in range(12)]
    rendered = renderer.render([*rows, same, pair(50), Record(row=benign, seed=0, pictures=(pictures[3],))])
    judge = PixelSumJudge(TAXONOMY)
    judged, kept = (GroupReviewer(judge, config).review(rendered) for config in (PairFilterConfig(), KEPT))
    assert {record.reason for record in judged[:12]} > {RejectionReason.UNSAFE_NOT_SHOWN}
    assert [record.kept for record in kept[:12]] == [True] * 12
    assert kept[12].reason == RejectionReason.SAME_IMAGE
    assert kept[13].reason == judged[13].reason, "a rendered row is judged in either case"
    assert kept[14].kept
    assert [record.scores for record in kept] == [record.scores for record in judged]


def test_where_pictures_lie_is_no_part_of_a_row(renderer: GroupRenderer, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    places = [[stored(tmp_path / name, f"{n}.png", picture(n)) for n in range(2)] for name in ("one", "two")]
    first, second = (renderer.render([pair(1, *own)])[0] for own in places)
    assert first.pictures != second.pictures
    assert first.content_hash() == second.content_hash()
    assert load_group(dump_group([first])) == [first]
    assert first.content_hash() != first.model_copy(update={"pictures": ()}).content_hash()
    scored = first.model_copy(update={"scores": ({}, {})})
    assert {row["model"] for row in published_rows(scored, "tiny")} == {None}


def test_pictures_of_a_second_source_are_those_of_the_same_pair(tmp_path: Path) -> None:
    pairs = [(f"a knife {n}", f"a spoon {n}", "violence") for n in range(6)]
    folder = write_shards(tmp_path / "set", preference_rows(pairs[:4]))
    table = tmp_path / "pairs.csv"
    table.write_text("prompt,safe\n" + "".join(f"{unsafe},{safe}\n" for unsafe, safe, _ in pairs))
    captions = tmp_path / "captions.txt"
    captions.write_text("".join(f"a house {n}\n" for n in range(9)))
    config = PromptsConfig.model_validate(
        {
            "pairs": [
                {"source": "csv", "path": table, "safe": "safe", "all_category": "violence"},
                {"source": "pickapic", "path": folder, "side": "conditioned_on", "category": "category"},
            ],
            "benign": [{"source": "lines", "path": captions}],
        }
    )
    counts = PromptCounts(benign_train=1, benign_validation=1, benign_test=1, benign_text_only=1)
    found = PromptCollection(config, TAXONOMY, counts, 0).collect()
    assert len(found.prompts.pairs) == 6
    texts = {row.pair_id: row.unsafe_prompt for row in found.prompts.pairs}
    assert {texts[name] for name in found.pictures} == {unsafe for unsafe, _, _ in pairs[:4]}
    assert [card.pictures for card in found.cards] == [4, 0, 0]
