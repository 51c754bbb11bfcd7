"""A thousand images of which one in twenty is broken: every row is kept or rejected, each rejection with its reason."""

from __future__ import annotations

import io
import random
import struct
import time
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import save

from cluster.store.artifacts import ArtifactStore
from jobs.generate import stage as generate
from jobs.generate.actors import JudgeActor
from jobs.generate.config import GenerateConfig
from jobs.generate.groups import GroupStore, stored_files
from jobs.run.artifacts import ArtifactRef
from safety.dataset.filter import RejectionReason
from safety.dataset.latents import latents_folder, read_latents
from safety.dataset.layout import summarise
from safety.dataset.plan import DatasetPlan, plan_dataset
from safety.dataset.record import Record, dump_group
from safety.dataset.summary import BENIGN, DatasetProvenance
from safety.errors import ImageError
from safety.images import decode_image, encode_png, pixel_hash
from safety.judges.judge import JudgeConfig, JudgeIdentity
from safety.prompts.rows import PromptPair
from safety.prompts.writer import PromptCounts
from tests.faults.figures import Figures
from tests.support.small_world import TAXONOMY, SmallWriter

pytestmark = [pytest.mark.slow]
SIDE = 16
CONFIG = GenerateConfig(judge=JudgeConfig(name="tests.support.pixel_judge:load_pixel_judge"), group_size=16)


def saved(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def cut(whole: bytes) -> bytes:
    return whole[: len(whole) * 2 // 3]


def wrong_magic(whole: bytes) -> bytes:
    return b"\x89PMG" + whole[4:]


def animation(_: bytes) -> bytes:
    return saved(Image.new("RGB", (SIDE, SIDE), "red"), "GIF")


def for_print(_: bytes) -> bytes:
    return saved(Image.new("CMYK", (SIDE, SIDE), (9, 80, 70, 0)), "JPEG")


def deep_grey(_: bytes) -> bytes:
    return saved(Image.fromarray(np.full((SIDE, SIDE), 40_000, dtype=np.uint16)), "PNG")


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(side: int, depth: int, rows: bytes) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, depth, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")


def deep_colour(_: bytes) -> bytes:
    """Sixteen bits a channel in colour, which Pillow reads as eight without a word."""
    return png(SIDE, 16, b"".join(b"\0" + bytes(6 * SIDE) for _ in range(SIDE)))


def bomb(_: bytes) -> bytes:
    """A few thousand bytes that say they are 10 GB of pixels."""
    return png(60_000, 8, bytes(1_000_000))


def honest_bomb(_: bytes) -> bytes:
    """75 MB of black in 75 kB, all there."""
    return png(5_000, 8, b"".join(b"\0" + bytes(3 * 5_000) for _ in range(5_000)))


BREAKS: dict[Callable[[bytes], bytes], RejectionReason] = {
    cut: RejectionReason.IMAGE_CORRUPT,
    (lambda _: b""): RejectionReason.IMAGE_EMPTY,
    wrong_magic: RejectionReason.IMAGE_UNKNOWN_FORMAT,
    animation: RejectionReason.IMAGE_UNKNOWN_FORMAT,
    for_print: RejectionReason.IMAGE_CMYK,
    deep_grey: RejectionReason.IMAGE_TOO_DEEP,
    deep_colour: RejectionReason.IMAGE_TOO_DEEP,
    bomb: RejectionReason.IMAGE_TOO_LARGE,
    honest_bomb: RejectionReason.IMAGE_TOO_LARGE,
}


def rendered(record: Record) -> Record:
    """Return a record as a renderer would leave it, with random images."""
    draw = torch.Generator().manual_seed(record.seed % 2**31)
    pair = isinstance(record.row, PromptPair)
    images = [
        torch.randint(0, 256, (3, SIDE, SIDE), dtype=torch.uint8, generator=draw) for _ in range(2 if pair else 1)
    ]
    latents, texts = (("loser", "winner"), ("unsafe", "safe")) if pair else (("benign",), ("benign",))
    tensors = {name: torch.zeros(4, 2, 2) for name in latents} | {f"{name}/states": torch.zeros(3, 2) for name in texts}
    return record.model_copy(
        update={
            "images": tuple(encode_png(image) for image in images),
            "pixel_hashes": tuple(pixel_hash(image) for image in images),
            "tensors": save(tensors),
        }
    )


def broken(record: Record, spoil: Callable[[bytes], bytes], member: int) -> Record:
    images = list(record.images)
    images[member] = spoil(images[member])
    return record.model_copy(update={"images": tuple(images)})


def path_category(path: Path) -> str:
    """Return the category of a file of latents."""
    return next(name for name in (*TAXONOMY.categories, BENIGN) if latents_folder(name).endswith(path.parent.name))


class Sifted:
    """The outcome of a plan's images in generation's own judge actor, group store and layout."""

    def __init__(self, store: ArtifactStore, name: str, plan: DatasetPlan, rows: dict[str, Record], work: Path) -> None:
        groups = GroupStore(store, ArtifactRef("dataset", name))
        stage = JudgeActor("none", TAXONOMY, CONFIG, groups)
        for group in plan.groups:
            records = [rows[record.row.row_id] for record in group.records]
            stage({"index": group.index, "seconds": 0.0, "node": "", "records": dump_group(records)})
        groups.write_empty({"states": torch.zeros(1, 3, 2)})
        self.folder = work / name
        self.folder.mkdir()
        provenance = DatasetProvenance(
            model="none",
            model_hash="0" * 64,
            taxonomy=TAXONOMY.name,
            notice=None,
            writer_version="1",
            judge=JudgeIdentity(name="pixel-sum", version="1", threshold=0.5),
            seed=0,
            recipe=CONFIG.recipe(),
        )
        found = groups.finished()
        self.summary = summarise(plan, provenance, found)
        generate.fill(self.folder, plan, self.summary, found, groups)
        ref = ArtifactRef("dataset", name)
        store.put(*ref, self.folder, config={}, seed=0, stored=stored_files(found))
        store.fetch(*ref, self.folder)
        self.reasons: dict[str, RejectionReason | None] = {}
        for path in self.folder.glob("rejected/*"):
            for row in pq.read_table(path, columns=["row_id", "reason"]).to_pylist():
                self.reasons[row["row_id"]] = RejectionReason(row["reason"])
        for path in self.folder.glob("latents/*/*"):
            self.reasons |= dict.fromkeys(read_latents(path, path_category(path)).ids)


def test_of_a_thousand_images_the_broken_ones_cost_their_rows_alone(
    store: ArtifactStore, tmp_path: Path, times: Callable[[int, int], int], figures: Figures
) -> None:
    # 2 categories x 2 splits x 110 pairs of two images, and 120 benign ones: 1,000. Reduced: 200.
    pairs, benign = times(110, 22), times(60, 12)
    counts = PromptCounts(
        train=pairs,
        validation=pairs,
        test=0,
        heldout=0,
        benign_train=benign,
        benign_validation=benign,
        benign_test=0,
        benign_text_only=0,
    )
    plan = plan_dataset(SmallWriter().write(TAXONOMY, counts, 0), CONFIG.group_size, 0)
    whole = {record.row.row_id: rendered(record) for group in plan.groups for record in group.records}
    images = sum(len(record.images) for record in whole.values())
    assert images == times(1000, 200)
    draw, expected, rows = random.Random(5), dict[str, RejectionReason](), dict(whole)
    for number, row_id in enumerate(draw.sample(sorted(whole), images // 20)):
        spoil, expected[row_id] = list(BREAKS.items())[number % len(BREAKS)]
        rows[row_id] = broken(whole[row_id], spoil, draw.randrange(len(whole[row_id].images)))
    started = time.monotonic()
    found = Sifted(store, "dataset-broken", plan, rows, tmp_path)
    seconds = time.monotonic() - started
    control = Sifted(store, "dataset-whole", plan, whole, tmp_path)

    summary = found.summary
    rejected = sum(number for count in summary.counts for number in count.rejected.values())
    assert summary.rows == len(whole) == summary.kept + rejected
    assert {row_id: found.reasons[row_id] for row_id in expected} == expected
    others = set(whole) - set(expected)
    assert {row_id: found.reasons[row_id] for row_id in others} == {
        row_id: control.reasons[row_id] for row_id in others
    }
    assert not any(str(reason).startswith("image_") for reason in control.reasons.values())
    assert set(found.reasons) == set(whole), "every row is kept or rejected"
    assert sum(reason is not None for reason in found.reasons.values()) == rejected
    assert set(BREAKS.values()) <= set(expected.values())
    figures.note(
        "1,000 images, 5% broken (cut, empty, wrong magic, GIF, CMYK, 16 bits, bombs)",
        f"{images} images in {summary.rows} rows = {summary.kept} kept + {rejected} rejected; "
        f"{len(expected)} of {len(expected)} broken ones with their own reason, no other row touched",
        seconds=round(seconds, 1),
        **{str(reason): count for reason, count in sorted(Counter(expected.values()).items())},
    )


@pytest.mark.parametrize("spoil", BREAKS)
def test_an_image_is_kept_until_it_is_broken(spoil: Callable[[bytes], bytes]) -> None:
    image = encode_png(torch.randint(0, 256, (3, SIDE, SIDE), dtype=torch.uint8))
    assert decode_image(image).shape == (3, SIDE, SIDE)
    with pytest.raises(ImageError) as caught:
        decode_image(spoil(image))
    assert RejectionReason(caught.value.fault.value) is BREAKS[spoil]
