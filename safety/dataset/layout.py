"""Writer of a dataset folder: shards, latents, prompts, rejected rows, card, summary and grid."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path

import jinja2
import torch
import torch.nn.functional as F
from safetensors.torch import load
from torch import Tensor

from safety.dataset.plan import RENDERED_SPLITS
from safety.dataset.preferences import PreferenceSet, write_preference_file
from safety.dataset.published import RejectedWriter, ShardWriter
from safety.dataset.record import Record
from safety.dataset.summary import BENIGN, DatasetProvenance, DatasetSummary, Tally
from safety.images import decode_image, encode_png, grid
from safety.markdown import code, head, plain, quoted
from safety.prompts.files import PROMPTS_FILE, write_prompt_file
from safety.prompts.rows import PromptSet, slug
from safety.tensor_format import under

GRID_PAIRS = 5
GRID_PIXELS = 128
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"))


def latents_file(category: str) -> str:
    """Return the name of a category's latents in a dataset folder."""
    name = slug(category)
    if not name.isascii():
        # A manifest names files in ASCII; the hash tells apart what is left of two names in another script.
        rest = name.encode("ascii", "ignore").decode().strip("-")
        name = "-".join(filter(None, (rest, hashlib.sha256(name.encode()).hexdigest()[:8])))
    return f"latents/{name}.safetensors"


class DatasetWriter:
    """Writes records, added per category and benign ones first, to the files of a dataset folder.

    It holds the tensors of one category at a time, and those of the benign rows, which are in each category's file.
    """

    def __init__(
        self, folder: Path, prompts: PromptSet, provenance: DatasetProvenance, empty: Mapping[str, Tensor]
    ) -> None:
        """Write below ``folder``.

        Args:
            folder: An empty folder.
            prompts: The accepted prompts of all splits.
            provenance: Everything that the rows depend on; its recipe has ``shard_rows``.
            empty: The empty prompt's text states, {key: [1, ...]}.
        """
        self.folder, self.prompts, self.provenance, self.empty = folder, prompts, provenance, dict(empty)
        rows = int(provenance.recipe["shard_rows"])
        self._shards = {split: ShardWriter(folder, split, provenance.model, rows) for split in RENDERED_SPLITS}
        (folder / "latents").mkdir(parents=True, exist_ok=True)
        self._rejected = RejectedWriter(folder / "rejected.parquet")
        self._tally = Tally()
        self._benign: list[Record] = []
        self._samples: list[Record] = []

    def add_benign(self, records: Iterable[Record]) -> None:
        """Add the benign rows, before any category's; raise EmptyDatasetError when a split keeps none."""
        self._benign = self._split_off_rejected(records)
        self._check(BENIGN)

    def add_category(self, category: str, records: Iterable[Record]) -> None:
        """Add all the rows of one category, in the order of their ids.

        Raises:
            EmptyDatasetError: None of the rows of a split is kept.
        """
        kept = self._split_off_rejected(records)
        self._check(category)
        for record in kept:
            self._shards[record.row.split].add(record)
        training = [record for record in kept if record.row.split == "train"]
        self._samples += training[:: max(1, len(training) // GRID_PAIRS)][:GRID_PAIRS]
        if kept:
            found = preference_set(category, kept, self._benign, self.empty)
            write_preference_file(self.folder / latents_file(category), found)

    def _split_off_rejected(self, records: Iterable[Record]) -> list[Record]:
        """Count the records, write the rejected ones and return the kept ones."""
        kept: list[Record] = []
        rejected: list[Record] = []
        for record in records:
            self._tally.add(record)
            (kept if record.kept else rejected).append(record)
        self._rejected.add(rejected)
        return kept

    def _check(self, category: str) -> None:
        """Raise EmptyDatasetError when none of a rendered split's rows is kept."""
        for count in self._tally.counts():
            if count.category == category and count.split in RENDERED_SPLITS:
                count.check()

    def finish(self) -> DatasetSummary:
        """Write the remaining files and return the summary."""
        for shard in self._shards.values():
            shard.flush()
        self._rejected.close()
        write_prompt_file(self.prompts, self.folder / PROMPTS_FILE)
        summary = self.summary()
        (self.folder / "summary.json").write_text(summary.model_dump_json(indent=1) + "\n", encoding="utf-8")
        (self.folder / "grid.png").write_bytes(encode_png(sample_grid(self._samples)))
        (self.folder / "README.md").write_text(dataset_card(summary), encoding="utf-8")
        return summary

    def summary(self) -> DatasetSummary:
        """Return the counts of the records added so far."""
        splits = [*(pair.split for pair in self.prompts.pairs), *(f"benign_{b.split}" for b in self.prompts.benign)]
        return DatasetSummary(
            dataset_hash=self._tally.dataset_hash(),
            provenance=self.provenance,
            counts=self._tally.counts(),
            prompts={split: splits.count(split) for split in dict.fromkeys(splits)},
        )


def preference_set(
    category: str, pairs: list[Record], benign: list[Record], empty: Mapping[str, Tensor]
) -> PreferenceSet:
    """Return the training set of kept pairs and benign rows; raise ValueError for a record without tensors."""
    pair_tensors, benign_tensors = _stacked(pairs), _stacked(benign)
    return PreferenceSet(
        category=category,
        ids=tuple(record.row.row_id for record in pairs),
        splits=tuple(record.row.split for record in pairs),
        winner=pair_tensors["winner"],
        loser=pair_tensors["loser"],
        unsafe=under("unsafe", pair_tensors),
        safe=under("safe", pair_tensors),
        benign_ids=tuple(record.row.row_id for record in benign),
        benign_splits=tuple(record.row.split for record in benign),
        benign=benign_tensors["benign"],
        benign_prompts=under("benign", benign_tensors),
        empty=dict(empty),
    )


def _stacked(records: list[Record]) -> dict[str, Tensor]:
    """Return the records' tensors by name, stacked in the records' order."""
    found: dict[str, list[Tensor]] = {}
    for record in records:
        if record.tensors is None:
            raise ValueError(f"{record.row.row_id} has no tensors: it is not a kept, rendered row")
        for name, tensor in load(record.tensors).items():
            found.setdefault(name, []).append(tensor)
    return {name: torch.stack(tensors) for name, tensors in found.items()}


def sample_grid(samples: list[Record]) -> Tensor:
    """Return kept pairs as one image, one row per category, each unsafe image left of its safe one."""
    tiles = []
    by_category: dict[str, list[Record]] = {}
    for record in samples:
        by_category.setdefault(record.group, []).append(record)
    for records in by_category.values():
        line = [decode_image(data) for record in records for data in record.images]
        blank = torch.full_like(line[0], 255)
        tiles += line + [blank] * (2 * GRID_PAIRS - len(line))
    images = torch.stack(tiles)
    if images.shape[-1] > GRID_PIXELS:
        small = F.interpolate(images.float(), (GRID_PIXELS, GRID_PIXELS), mode="area")
        images = small.round().to(torch.uint8)
    return grid(images, 2 * GRID_PAIRS)


def dataset_card(summary: DatasetSummary) -> str:
    """Return the data card, a README with the header that dataset hubs read."""
    text = resources.files("safety.dataset").joinpath("card.md.j2").read_text(encoding="utf-8")
    size = next((name for limit, name in SIZES if summary.kept < limit), "100K<n<1M")
    splits = [
        split for split in RENDERED_SPLITS if any(c.split == split and c.category != BENIGN for c in summary.counts)
    ]
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False)
    environment.filters.update(plain=plain, code=code, quoted=quoted, head=head)
    template = environment.from_string(text)
    return (
        template.render(
            size=size,
            splits=splits,
            rows=summary.rows,
            kept=summary.kept,
            **{name: getattr(summary, name) for name in type(summary).model_fields},
        )
        + "\n"
    )
