"""Bytes and memory of a run: what its store, its nodes' disks, its driver and its processes need."""

from __future__ import annotations

from typing import NamedTuple

from cluster.preflight.node import disk_of
from jobs.run.config import RunConfig
from jobs.trial.pictures import Drawn
from jobs.trial.step import StepTime
from jobs.trial.work import StageWork, rendered_pictures, trained_experts
from safety.base import Config
from safety.dataset.record import load_group
from safety.experts.memory import GIB, latents_of
from safety.prompts.rows import PromptSet
from safety.taxonomy import Taxonomy

CHECKPOINTS, STATES = 2, 3
"""Checkpoints of an expert that lie in the store at once, and an adapter's sizes in one: itself and AdamW's two moments."""
RELEASED = 3
"""Copies of the released adapter: the merge's, the release's, and the one in kohya's form."""
SHOWN_BYTES, RECORD_BYTES = 60_000, 3_000
"""An image in the report and a row of figures beside it, as they are at 256 pixels and with 768 features."""
DRIVER_BASE, DRIVER_ROW = 460 * 2**20, 4_000
"""The driver's memory: of itself, and of a planned row (docs/scaling.md)."""


class RowBytes(NamedTuple):
    """Bytes of an average picture of the trial, with its latents and text states."""

    image: float
    tensors: float


class Bytes(Config):
    """What a run puts where, in bytes; upper bounds, as if every row were kept."""

    store: int
    store_free: int | None
    """Free where the store is a folder; None for a server's."""
    node_disk: int
    """On one machine that trains every expert: copies of the latents and adapters, and the model where it is fetched."""
    driver_disk: int
    driver_free: int
    driver_memory: int


class StageMemory(Config):
    """A stage's most bytes at once on its device, and those that it may take."""

    stage: str
    peak: int | None
    """None: the model is small, and it was not counted."""
    free: int
    how: str


def row_bytes(records: bytes) -> RowBytes:
    """Return the bytes of a picture, averaged over the rendered rows."""
    rows = [record for record in load_group(records) if record.images]
    count = sum(len(record.images) for record in rows)
    image = sum(len(data) for record in rows for data in record.images)
    return RowBytes(image / count, sum(len(record.tensors or b"") for record in rows) / count)


def run_bytes(
    run: RunConfig, taxonomy: Taxonomy, prompts: PromptSet, drawn: Drawn, step: StepTime, evaluated: StageWork
) -> Bytes:
    """Return what a run needs of store, disks and driver."""
    each = row_bytes(drawn.records)
    pictures = rendered_pictures(prompts)
    adapter, experts = 4 * step.adapter, trained_experts(run, taxonomy)
    merges = len(run.merge.merges()) + int(run.consolidate is not None)
    latents = int(pictures * each.tensors)
    report = evaluated.images * RECORD_BYTES + _shown(run, taxonomy) * SHOWN_BYTES
    adapters = adapter * (experts + merges + RELEASED + experts * CHECKPOINTS * STATES)
    text = sum(len(text.encode()) for text, _ in prompts.prompts())
    return Bytes(
        store=int(pictures * each.image) + latents + adapters + 2 * report + text,
        store_free=disk_of(run.store.data_dir.expanduser()).free if run.store.endpoint is None else None,
        node_disk=latents + adapter * (experts + merges) + drawn.fetched,
        driver_disk=2 * report + RELEASED * adapter + 2 * text,
        driver_free=disk_of(run.run.output).free,
        driver_memory=DRIVER_BASE + DRIVER_ROW * (len(prompts.pairs) + len(prompts.benign)),
    )


def _shown(run: RunConfig, taxonomy: Taxonomy) -> int:
    """Return the images in the report: of the base and of the released model."""
    counts, categories = run.evaluate.counts, len(taxonomy.categories)
    return 2 * (categories * (counts.shown + counts.shown_heldout) + counts.shown_benign)


def stage_memory(run: RunConfig, drawn: Drawn, step: StepTime) -> list[StageMemory]:
    """Return the memory of each stage that holds the model: what was measured on a GPU, beside the estimate for its batch."""
    renders = {"generate": run.generate.render, "merge": run.merge.render, "evaluate": run.evaluate.render}
    found = [
        _memory(stage, drawn.peaks[stage], f"batch {render.batch}", drawn.peak, "the pictures", drawn.free)
        for stage, render in renders.items()
    ]
    latents = latents_of(run.train.expert, run.train.workers)
    return [*found, _memory("train", step.estimate, f"{latents} latents", step.peak, "a step", step.free)]


def _memory(stage: str, estimate: int | None, size: str, peak: int | None, what: str, free: int) -> StageMemory:
    how = "the model is small: it fits anywhere" if estimate is None else f"estimated, {size}"
    if peak is not None:
        how += f"; {what} took {peak / GIB:.1f} GiB, measured"
    return StageMemory(stage=stage, peak=estimate if peak is None else max(peak, estimate or 0), free=free, how=how)
