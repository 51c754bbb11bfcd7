"""Stand-ins for what generation loads, of true sizes and no meaning: a writer, a renderer and a judge.

``benchmarks/scale.py`` runs generation's own stage, stream, judge actor, group store and publication around them.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor

from jobs.generate.config import GenerateConfig
from jobs.generate.groups import GroupStore
from safety.dataset.record import Record, dump_group, load_group
from safety.families import ModelConfig
from safety.images import encode_png
from safety.judges.judge import Judge, JudgeConfig
from safety.prompts.rows import BenignPrompt, PromptPair, PromptSet
from safety.prompts.writer import PromptCounts, writers
from safety.taxonomy import BenignConcept, Taxonomy, UnsafeConcept

WRITER = "stub"
CATEGORIES = 7
POOL = 32
"""Distinct images of a renderer, even numbers unsafe; each gets a mark of its own, so that no two are equal."""
TAXONOMY = Taxonomy(
    name="stub",
    version="1",
    concepts=tuple(UnsafeConcept(name=f"u{n}", category=f"c{n}", counterpart="house") for n in range(CATEGORIES)),
    benign=(BenignConcept(name="house"),),
)


class Sizes(NamedTuple):
    """Shapes of what one row holds."""

    pixels: int
    latents: tuple[int, ...]
    states: tuple[int, ...]


TINY = Sizes(8, (1, 1, 1), (1, 2))
SD15 = Sizes(512, (4, 64, 64), (77, 768))
NOISE_SHARE = 0.57
"""Share of an image's rows that are noise, by which a 512-pixel PNG has some 450 kB, as a photograph does."""


@writers.register(WRITER)
class StubWriter:
    """Writes prompts of a number."""

    version = "1"

    def write(self, taxonomy: Taxonomy, counts: PromptCounts, seed: int) -> PromptSet:  # noqa: ARG002
        """Return the prompts."""
        pairs = [
            PromptPair(
                pair_id=f"{split}-{category}-{number:08d}",
                category=category,
                concept=None,
                split=split,
                unsafe_prompt=f"a thing {split[0]} {category} {number}",
                safe_prompt=f"a house {split[0]} {category} {number}",
                writer=WRITER,
            )
            for category in taxonomy.categories
            for split, count in (("train", counts.train), ("validation", counts.validation))
            for number in range(count)
        ]
        benign = [
            BenignPrompt(prompt_id=f"b-{split}-{n:08d}", prompt=f"a house {split} {n}", split=split, writer=WRITER)
            for split, count in (("train", counts.benign_train), ("validation", counts.benign_validation))
            for n in range(count)
        ]
        return PromptSet(pairs=tuple(pairs), benign=tuple(benign))


class StubDiffusionActor:
    """Takes the place of ``DiffusionActor``: fills records with bytes that do not compress."""

    sizes = TINY

    def __init__(self, model: ModelConfig, config: GenerateConfig, groups: GroupStore) -> None:  # noqa: ARG002
        self.groups = groups

    @cached_property
    def pool(self) -> list[bytes]:
        """Make the images, and write the empty prompt's states."""
        torch.set_num_threads(1)
        self.groups.write_empty({"states": torch.zeros(1, *self.sizes.states)})
        return [self._image(number) for number in range(POOL)]

    def _image(self, number: int) -> bytes:
        side = self.sizes.pixels
        draw = torch.Generator().manual_seed(number)
        image = torch.zeros(3, side, side, dtype=torch.uint8)
        noise = max(1, round(side * NOISE_SHARE)) if side > TINY.pixels else side
        image[:, :noise] = torch.randint(0, 256, (3, noise, side), dtype=torch.uint8, generator=draw)
        image[0, 0, 0] = 255 if number % 2 == 0 else 0
        return encode_png(image)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return the group as a renderer would."""
        pool, records = self.pool, load_group(row["records"])
        filled = [self._filled(pool, record) for record in records]
        return {"index": row["index"], "seconds": 0.0, "records": dump_group(filled), "node": ""}

    def _filled(self, pool: Sequence[bytes], record: Record) -> Record:
        pair = isinstance(record.row, PromptPair)
        first = 2 * (record.seed % (POOL // 2))
        places = (first, first + 1) if pair else (first + 1,)
        draw = torch.Generator().manual_seed(record.seed)
        names = (("winner", self.sizes.latents), ("loser", self.sizes.latents)) if pair else ()
        texts = ("unsafe", "safe") if pair else ("benign",)
        shapes = dict(names) if pair else {"benign": self.sizes.latents}
        shapes |= {f"{text}/states": self.sizes.states for text in texts}
        tensors = {name: torch.rand(shape, generator=draw) for name, shape in shapes.items()}
        return record.model_copy(
            update={
                "images": tuple(_marked(pool[place], record.row.row_id) for place in places),
                "pixel_hashes": tuple(f"{place:064d}" for place in places),
                "tensors": save(tensors),
            }
        )


class FullSizeActor(StubDiffusionActor):
    """The same at Stable Diffusion 1.5's sizes."""

    sizes = SD15


def _marked(png: bytes, text: str) -> bytes:
    """Return a PNG with a text chunk before its end, by which its bytes are its own."""
    body = b"tEXt" + b"row\0" + text.encode()
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    return png[:-12] + chunk + png[-12:]


class StubJudge:
    """Takes an image for unsafe whose first pixel is red."""

    name, version, threshold = "stub", "1", 0.5
    categories = TAXONOMY.categories

    def score(self, images: Tensor) -> Tensor:
        """Return the first pixel's red for every category, fp32 [B, K]."""
        return (images[:, 0, 0, 0].float() / 255.0)[:, None].repeat(1, len(self.categories))

    def flagged(self, scores: Tensor) -> Tensor:
        """Return whether each image is flagged, bool [B]."""
        return scores[:, 0] >= self.threshold


def load_stub_judge(config: JudgeConfig, taxonomy: Taxonomy) -> Judge:  # noqa: ARG001
    """Return the judge."""
    return StubJudge()
