"""From planned groups to a dataset folder, with a real tiny model and a judge of pixel sums."""

from __future__ import annotations

import fnmatch
import hashlib
import io
import itertools
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load, save

from safety.dataset.filter import PairFilterConfig, RejectionReason
from safety.dataset.group_files import GroupFigures, StoredFile, group_figures, group_files, group_samples
from safety.dataset.latents import EMPTY_FILE, dump_latents, load_preferences, training_files, write_empty
from safety.dataset.layout import summarise, write_layout
from safety.dataset.plan import DatasetPlan, plan_dataset
from safety.dataset.published import dump_pairs, read_images
from safety.dataset.record import Record, dump_group, load_group
from safety.dataset.renderer import GroupRenderer
from safety.dataset.reviewer import GroupReviewer
from safety.dataset.summary import BENIGN, DatasetProvenance, DatasetSummary, content_digest, dataset_hash
from safety.errors import ArtifactFormatError, EmptyDatasetError
from safety.families import ModelConfig, load_model
from safety.images import decode_image, to_float
from safety.judges.judge import JudgeIdentity
from safety.prompts.files import read_prompt_file
from safety.prompts.rows import WITHHELD, BenignPrompt, PromptPair, PromptSet
from safety.rendering import RenderConfig, render, row_seed
from tests.support.pixel_judge import PixelSumJudge
from tests.support.small_world import BENIGN_ROWS, COUNTS, PAIRS, TAXONOMY, SmallWriter

PROVENANCE = DatasetProvenance(
    model="tiny",
    model_hash="0" * 64,
    taxonomy="small 1",
    notice="Its concepts are stand-ins.",
    writer_version="1",
    judge=JudgeIdentity(name="pixel-sum", version="1", threshold=0.5),
    seed=0,
    recipe={"writer": "grammar", "render": {"steps": 2, "guidance": 3.0}},
)
REFUSED = PromptPair(
    pair_id="train-refused",
    category="violence",
    concept=None,
    split="train",
    unsafe_prompt="a naked child",
    safe_prompt="a house",
    writer="hand",
)
TOO_LONG = BenignPrompt(prompt_id="benign-long", prompt="house " * 60, split="train", writer="hand")


@pytest.fixture(scope="module")
def plan() -> DatasetPlan:
    written = SmallWriter().write(TAXONOMY, COUNTS, 0)
    prompts = PromptSet(pairs=(*written.pairs, REFUSED), benign=(*written.benign, TOO_LONG))
    return plan_dataset(prompts, 8, 0)


@pytest.fixture(scope="module")
def renderer(tiny_model_dir: Path) -> GroupRenderer:
    return GroupRenderer(load_model(ModelConfig(path=str(tiny_model_dir))), RenderConfig(steps=2, batch=8))


@pytest.fixture(scope="module")
def rendered(plan: DatasetPlan, renderer: GroupRenderer) -> dict[int, list[Record]]:
    return {group.index: renderer.render(group.records) for group in plan.groups}


@pytest.fixture(scope="module")
def judged(rendered: dict[int, list[Record]]) -> dict[int, list[Record]]:
    reviewer = GroupReviewer(PixelSumJudge(TAXONOMY), PairFilterConfig())
    return {index: reviewer.review(records) for index, records in rendered.items()}


def write(folder: Path, plan: DatasetPlan, judged: dict[int, list[Record]], renderer: GroupRenderer) -> DatasetSummary:
    """Write what the groups' workers write, and then what the stage writes."""
    figures: dict[int, GroupFigures] = {}
    for index, records in judged.items():
        files = {}
        for file in group_files(index, records, "tiny"):
            (folder / file.name).parent.mkdir(parents=True, exist_ok=True)
            (folder / file.name).write_bytes(file.data)
            files[file.name] = StoredFile(size=len(file.data), sha256=hashlib.sha256(file.data).hexdigest())
        figures[index] = GroupFigures.model_validate_json(group_figures(records, files).model_dump_json())
    write_empty(folder / EMPTY_FILE, renderer.model.encode_text([""]))
    summary = summarise(plan, PROVENANCE, figures)
    write_layout(folder, plan, summary, figures, lambda index: group_samples(judged[index]))
    return summary


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory,
    plan: DatasetPlan,
    judged: dict[int, list[Record]],
    renderer: GroupRenderer,
) -> Path:
    made = tmp_path_factory.mktemp("dataset")
    write(made, plan, judged, renderer)
    return made


def kept(judged: dict[int, list[Record]]) -> list[Record]:
    return [r for records in judged.values() for r in records if r.kept]


def test_the_plan_has_each_row_once_in_groups_of_one_category(plan: DatasetPlan) -> None:
    ids = [r.row.row_id for group in plan.groups for r in group.records]
    assert len(ids) == len(set(ids)) == PAIRS + BENIGN_ROWS + 1
    for group in plan.groups:
        assert {r.group for r in group.records} == {group.category}
        assert len(group.records) <= 8
        assert {r.row.split for r in group.records} <= {"train", "validation"}
        for record in group.records:
            assert record.seed == row_seed(0, record.row.row_id)
    assert plan.categories[0] == BENIGN
    assert plan.rows == len(ids) + 1
    (refused,) = plan.refused["violence"]
    assert refused.reason == RejectionReason.REFUSED_PROMPT
    assert refused.row.prompts == (WITHHELD, WITHHELD)
    assert REFUSED.pair_id not in {p.pair_id for p in plan.prompts.pairs}


def test_both_members_of_a_pair_start_from_the_same_noise(
    plan: DatasetPlan, rendered: dict[int, list[Record]], renderer: GroupRenderer
) -> None:
    record = next(r for records in rendered.values() for r in records if r.group == "violence")
    for data, prompt in zip(record.images, record.row.prompts, strict=True):
        alone = render(renderer.model, [prompt], [record.seed], renderer.config)[0]
        assert (decode_image(data).int() - alone.int()).abs().max() <= 1
        assert Image.open(io.BytesIO(data)).text == {"prompt": prompt, "seed": str(record.seed)}  # type: ignore[attr-defined]
    assert record.images[0] != record.images[1]


def test_tensors_are_the_encoders_of_the_stored_pictures_and_texts(
    rendered: dict[int, list[Record]], renderer: GroupRenderer
) -> None:
    record = next(r for records in rendered.values() for r in records if r.group == "violence")
    assert record.tensors is not None
    tensors = load(record.tensors)
    assert tensors.keys() == {"winner", "loser", "unsafe/states", "safe/states"}
    unsafe, safe = (to_float(decode_image(data))[None] for data in record.images)
    assert torch.allclose(tensors["loser"], renderer.model.encode_images(unsafe)[0], atol=1e-5)
    assert torch.allclose(tensors["winner"], renderer.model.encode_images(safe)[0], atol=1e-5)
    states = renderer.model.encode_text(record.row.prompts)["states"]
    assert torch.allclose(tensors["unsafe/states"], states[0], atol=1e-5)
    assert torch.allclose(tensors["safe/states"], states[1], atol=1e-5)


def test_verdicts_follow_the_judge(judged: dict[int, list[Record]]) -> None:
    judge = PixelSumJudge(TAXONOMY)
    seen: Counter[str] = Counter()
    for record in itertools.chain.from_iterable(judged.values()):
        seen[str(record.reason)] += 1
        if record.reason == RejectionReason.PROMPT_TOO_LONG:
            assert record.images == ()
            continue
        pictures = torch.stack([decode_image(data) for data in record.images])
        scores = judge.score(pictures)
        flagged = judge.flagged(scores).tolist()
        assert [list(s.values()) for s in record.scores] == [pytest.approx(s, abs=1e-5) for s in scores.tolist()]
        if isinstance(record.row, PromptPair):
            own = scores[0, judge.categories.index(record.row.category)].item()
            expected = own >= 0.5 and not flagged[1] and record.images[0] != record.images[1]
        else:
            expected = not flagged[0]
        assert record.kept == expected
        assert (record.tensors is not None) == expected
    assert seen.keys() >= {"None", "prompt_too_long", "unsafe_not_shown", "safe_flagged", "benign_flagged"}


def test_an_unreadable_picture_is_a_reason_and_harms_no_other_row(rendered: dict[int, list[Record]]) -> None:
    records = next(records for records in rendered.values() if records[0].group == "violence")
    broken = records[0].model_copy(update={"images": (records[0].images[0][:50], records[0].images[1])})
    reviewer = GroupReviewer(PixelSumJudge(TAXONOMY), PairFilterConfig())
    first, *others = reviewer.review([broken, *records[1:]])
    assert first.reason == RejectionReason.IMAGE_CORRUPT
    assert first.tensors is None
    assert others == reviewer.review(records)[1:]
    same = records[0].model_copy(update={"pixel_hashes": (records[0].pixel_hashes[0],) * 2})
    assert reviewer.review([same])[0].reason == RejectionReason.SAME_IMAGE


def test_groups_survive_their_bytes(judged: dict[int, list[Record]]) -> None:
    for records in judged.values():
        data = dump_group(records)
        assert load_group(data) == records
        assert dump_group(load_group(data)) == data
    with pytest.raises(ArtifactFormatError, match="cannot be read"):
        load_group(data[:-40])


def test_the_datasets_hash_is_of_the_content_and_not_of_the_order(judged: dict[int, list[Record]]) -> None:
    def hashed(records: list[Record]) -> str:
        return dataset_hash({0: content_digest(records), 1: "1"}, "none")

    records = [r for group in judged.values() for r in group]
    assert hashed(records) == hashed(records[::-1])
    assert dataset_hash({3: "a", 11: "b"}, "") == dataset_hash({11: "b", 3: "a"}, "")
    assert len({dataset_hash(g, r) for g, r in (({0: "a", 1: "b"}, ""), ({0: "b", 1: "a"}, ""), ({0: "a"}, "b"))}) == 3
    for change in ({"seed": 1}, {"tensors": b"x"}, {"reason": RejectionReason.SAME_IMAGE}, {"pixel_hashes": ("0",)}):
        assert hashed([records[0].model_copy(update=change), *records[1:]]) != hashed(records)
    with pytest.raises(RuntimeError, match="occurs twice"):
        hashed([*records, records[0]])


def test_rows_in_are_rows_kept_and_rejected(folder: Path, plan: DatasetPlan, judged: dict[int, list[Record]]) -> None:
    summary = DatasetSummary.model_validate_json((folder / "summary.json").read_bytes())
    assert summary.rows == plan.rows
    assert summary.kept == len(kept(judged))
    rejected = [row for path in (folder / "rejected").iterdir() for row in pq.read_table(path).to_pylist()]
    assert len(rejected) == summary.rows - summary.kept
    assert sum(sum(c.rejected.values()) for c in summary.counts) == len(rejected)
    by_id = {row["row_id"]: row for row in rejected}
    assert by_id["train-refused"]["prompts"] == [WITHHELD, WITHHELD]
    assert by_id["train-refused"]["images"] == []
    assert by_id["benign-long"]["reason"] == "prompt_too_long"
    assert by_id["benign-long"]["prompts"] == list(TOO_LONG.prompts)
    assert b"naked" not in b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_shards_are_in_pickapics_columns_with_two_rows_a_pair(folder: Path, judged: dict[int, list[Record]]) -> None:
    pairs = {r.row.row_id: r for r in kept(judged) if isinstance(r.row, PromptPair)}
    found: list[tuple[str, str]] = []
    for path in sorted((folder / "data").iterdir()):
        table = pq.read_table(path)
        assert {"caption", "jpg_0", "jpg_1", "label_0"} <= set(table.column_names)
        rows = table.to_pylist()
        assert len(rows) <= 2 * 8
        for row in rows:
            record = pairs[row["pair_id"]]
            assert isinstance(record.row, PromptPair)
            assert path.name.startswith(record.row.split)
            prompts = {"unsafe": record.row.unsafe_prompt, "safe": record.row.safe_prompt}
            assert row["caption"] == prompts[row["conditioned_on"]]
            assert (row["jpg_1"], row["jpg_0"], row["label_0"]) == (*record.images, 1)
            found.append((row["pair_id"], row["conditioned_on"]))
    assert len(found) == len(set(found)) == 2 * len(pairs)


def test_a_picture_is_stored_once(judged: dict[int, list[Record]]) -> None:
    record = next(r for r in kept(judged) if isinstance(r.row, PromptPair))
    noise = [torch.randint(0, 256, (20_000,), dtype=torch.uint8).numpy().tobytes() for _ in range(20)]
    records = [
        record.model_copy(
            update={
                "row": record.row.model_copy(update={"pair_id": f"p{number}"}),
                "images": (noise[2 * number], noise[2 * number + 1]),
            }
        )
        for number in range(10)
    ]
    data = dump_pairs(records, "tiny")
    assert pq.read_table(io.BytesIO(data)).num_rows == 20
    assert len(data) < 1.1 * sum(map(len, noise))
    assert read_images(data) == [record.images for record in records]


def test_latents_are_the_kept_rows_under_their_own_names(folder: Path, judged: dict[int, list[Record]]) -> None:
    benign = [r for r in kept(judged) if r.group == BENIGN]
    for category in TAXONOMY.categories:
        mine = [r for r in kept(judged) if r.group == category]
        found = load_preferences(folder, category)
        assert found.category == category
        assert found.ids == tuple(r.row.row_id for r in mine)
        assert found.splits == tuple(r.row.split for r in mine)
        assert found.benign_ids == tuple(r.row.row_id for r in benign)
        for index, record in enumerate(mine):
            tensors = load(record.tensors or b"")
            assert torch.equal(found.winner[index], tensors["winner"])
            assert torch.equal(found.loser[index], tensors["loser"])
            assert torch.equal(found.unsafe["states"][index], tensors["unsafe/states"])
            assert torch.equal(found.safe["states"][index], tensors["safe/states"])
        for index, record in enumerate(benign):
            tensors = load(record.tensors or b"")
            assert torch.equal(found.benign[index], tensors["benign"])
            assert torch.equal(found.benign_prompts["states"][index], tensors["benign/states"])


def test_training_reads_neither_images_nor_other_categories(folder: Path) -> None:
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    wanted = training_files(["violence"])
    read = {name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in wanted)}
    assert {name.rpartition("/")[0] for name in read} == {"latents/violence", "latents/benign", "latents"}
    assert len(read) < len([name for name in names if name.startswith("latents/")])


def test_a_prompt_s_states_are_stored_once_and_as_precise_as_the_model_made_them(
    judged: dict[int, list[Record]],
) -> None:
    records = [r for r in kept(judged) if r.group == "violence"][:3]
    first = load(records[0].tensors or b"")
    row = records[0].row.model_copy(update={"pair_id": "twin"})
    twin = records[0].model_copy(update={"row": row})
    half = [
        r.model_copy(update={"tensors": save({k: v.bfloat16() for k, v in load(r.tensors or b"").items()})})
        for r in (*records, twin)
    ]
    file = load(dump_latents("violence", half))
    assert file["states/states"].shape == (6, *first["unsafe/states"].shape)
    assert file["winner"].shape[0] == 4
    assert {tensor.dtype for tensor in file.values()} == {torch.bfloat16}


def test_prompts_card_and_grid(folder: Path, plan: DatasetPlan) -> None:
    assert read_prompt_file(folder / "prompts.parquet") == plan.prompts
    card = (folder / "README.md").read_text(encoding="utf-8")
    _, header, body = card.split("---\n", 2)
    splits = yaml.safe_load(header)["configs"][0]["data_files"]
    assert {s["split"] for s in splits} == {"train", "validation"}
    for split in splits:
        assert list(folder.glob(split["path"]))
    assert "stand-ins" in body
    assert "| violence | train | 29 |" in body
    grid = decode_image((folder / "grid.png").read_bytes())
    assert grid.shape == (3, 2 * 18 + 2, 10 * 18 + 2)


def test_the_same_records_give_the_same_files(
    folder: Path, tmp_path: Path, plan: DatasetPlan, judged: dict[int, list[Record]], renderer: GroupRenderer
) -> None:
    write(tmp_path, plan, judged, renderer)
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert len(files) >= 8
    for name in files:
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes(), name


@pytest.mark.parametrize("category", [BENIGN, "violence"])
def test_nothing_kept_names_the_category_the_reasons_and_a_fix(
    tmp_path: Path, plan: DatasetPlan, judged: dict[int, list[Record]], renderer: GroupRenderer, category: str
) -> None:
    emptied = {
        index: [
            r.model_copy(update={"reason": RejectionReason.CONTEXT_LOST}) if r.group == category and r.kept else r
            for r in records
        ]
        for index, records in judged.items()
    }
    with pytest.raises(EmptyDatasetError, match=rf"none of the \d+ train rows of '{category}' is kept .*context_lost"):
        write(tmp_path, plan, emptied, renderer)
