"""Random preference sets and adapters for a tiny model, for tests of jobs that start from a dataset or from experts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from safety.dataset.latents import EMPTY_FILE, FORMAT, latents_file, write_empty
from safety.dataset.layout import SUMMARY_FILE
from safety.dataset.preferences import PreferenceSet
from safety.dataset.stack import Rows
from safety.dataset.summary import BENIGN, DatasetProvenance, DatasetSummary, SplitCount
from safety.families import ModelFamily
from safety.judges.judge import JudgeIdentity
from safety.lora.weights import LoraLayer, LoraWeights
from safety.prompts.rows import PromptSet

PROVENANCE = DatasetProvenance(
    model="tiny",
    model_hash="0" * 64,
    taxonomy="small 1",
    notice=None,
    writer_version="1",
    judge=JudgeIdentity(name="none", version="1", threshold=0.5),
    seed=0,
    recipe={"writer": "none", "render": {"steps": 2, "guidance": 3.0}},
)


def preferences(model: ModelFamily, prompts: PromptSet, category: str) -> PreferenceSet:
    """Return the kept rows of a category as the dataset holds them: nothing of the test split."""
    draw = torch.Generator().manual_seed(len(category))
    pairs = [pair for pair in prompts.pairs if pair.category == category and pair.split != "test"]
    benign = [row for row in prompts.benign if row.split != "test"]
    shape = model.latent_shape(model.default_size, model.default_size)
    return PreferenceSet(
        category=category,
        ids=tuple(pair.pair_id for pair in pairs),
        splits=tuple(pair.split for pair in pairs),
        winner=torch.randn(len(pairs), *shape, generator=draw),
        loser=torch.randn(len(pairs), *shape, generator=draw),
        unsafe=model.encode_text([pair.unsafe_prompt for pair in pairs]),
        safe=model.encode_text([pair.safe_prompt for pair in pairs]),
        benign_ids=tuple(row.prompt_id for row in benign),
        benign_splits=tuple(row.split for row in benign),
        benign=torch.randn(len(benign), *shape, generator=draw),
        benign_prompts=model.encode_text([row.prompt for row in benign]),
        empty=model.unconditional(),
    )


def write_sets(folder: Path, *sets: PreferenceSet) -> None:
    """Write sets of one dataset, which share their benign rows, as its workers and its stage would have written them."""
    for found in sets:
        count = len(found)
        states = {key: torch.cat([found.unsafe[key], found.safe[key]]) for key in found.unsafe}  # type: ignore[list-item]
        prompts = {"unsafe": list(range(count)), "safe": list(range(count, 2 * count))}
        latents = {"winner": found.winner, "loser": found.loser}
        write_rows(folder, found.category, found.ids, found.splits, latents, states, prompts)
    first = sets[0]
    if first.benign_ids:
        prompts = {"benign": list(range(len(first.benign_ids)))}
        latents, states = {"benign": first.benign}, dict(first.benign_prompts)
        write_rows(folder, BENIGN, first.benign_ids, first.benign_splits, latents, states, prompts)
    write_empty(folder / EMPTY_FILE, first.empty)
    named = [(found.category, found.splits) for found in sets] + [(BENIGN, first.benign_splits)]
    counts = tuple(
        SplitCount(category=name, split=split, rows=count, kept=count, rejected={})
        for name, splits in named
        for split, count in Counter(splits).items()
    )
    summary = DatasetSummary.model_construct(
        dataset_hash="0" * 64, provenance=PROVENANCE, counts=counts, prompts={"train": 1}
    )
    (folder / SUMMARY_FILE).write_text(summary.model_dump_json())


def write_rows(
    folder: Path,
    category: str,
    ids: Sequence[str],
    splits: Sequence[str],
    latents: Mapping[str, Rows],
    states: Mapping[str, Rows],
    prompts: Mapping[str, Sequence[int]],
) -> Path:
    """Write one file of latents, the first of its category."""
    head = {"category": category, "ids": ids, "splits": splits, "prompts": prompts}
    tensors = {**latents, **{f"states/{key}": value for key, value in states.items()}}
    return FORMAT.write(folder / latents_file(category, 0), tensors, head)  # type: ignore[arg-type]


def random_lora(
    model: ModelFamily, seed: int, targets: tuple[str, ...] | None = None, size: float = 0.1
) -> LoraWeights:
    """Return a random LoRA of rank 2 on the layers that end with ``targets``, or on all that the family adapts."""
    draw = torch.Generator().manual_seed(seed)
    return LoraWeights(
        {
            name: LoraLayer(
                torch.randn(2, module.in_features, generator=draw),
                size * torch.randn(module.out_features, 2, generator=draw),
            )
            for name, module in model.denoiser.named_modules()
            if isinstance(module, torch.nn.Linear) and name.endswith(targets or model.lora_targets)
        }
    )
