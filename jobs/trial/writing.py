"""The trial of a language model that writes prompts: a few draws where it will run, and what the run's own will take."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from typing import NamedTuple

import torch

from jobs.generate.writing import expected_pairs
from jobs.run.config import RunConfig
from jobs.run.placement import placed
from jobs.run.places import writer_place
from safety.prompts.collection import WrittenPairs
from safety.prompts.llm.config import LlmWriterConfig
from safety.prompts.llm.draft import Draft, Task
from safety.prompts.llm.engines.engine import engines
from safety.prompts.llm.pair_writer import PairWriter
from safety.taxonomy import Taxonomy

CONCEPTS, DRAWS = 4, 2
"""Concepts, of as many categories as there are, and draws of each."""
SHOWN_REASONS = 3
HOUR_S = 3600.0


class TriedWriter(NamedTuple):
    """What a few draws say of the language model."""

    model: str
    draws: int
    pairs: int
    reasons: str
    """Of the draws that became no pair; empty where all did."""
    draw_s: float
    wanted: int
    """Pairs that the run asks for."""
    actors: int

    @property
    def hours(self) -> float | None:
        """Return the hours that the run's pairs take at this rate, retries included; None where no draw became a pair."""
        if not self.pairs:
            return None
        return self.wanted * self.draws / self.pairs * self.draw_s / self.actors / HOUR_S


def try_writing(run: RunConfig, taxonomy: Taxonomy) -> tuple[TriedWriter | None, WrittenPairs | None]:
    """Return what a few draws say, and stand-ins for the run's pairs with the drawn ones among them; None without a writer.

    Raises:
        SafetyError: The language model cannot be loaded or asked.
        ClusterError: Its place gave no result in time.
    """
    expected, config = expected_pairs(run, taxonomy), None if run.prompts is None else run.prompts.writer
    if config is None or expected is None:
        return None, None
    drafts, seconds = placed(writer_place(config), write_few, config, taxonomy, run.run.seed)
    kept = {(draft.concept, draft.draw): draft for draft in drafts if draft.kept}
    lost = Counter(str(draft.reason) for draft in drafts if not draft.kept)
    rows = [
        replace(row, prompt=found.prompt or row.prompt, safe=found.safe)
        if (found := kept.get((row.concept or "", row.number))) is not None
        else row
        for row in expected.content.rows
    ]
    # Drawn pairs first in their category, so that their pictures are among the drawn ones.
    rows.sort(key=lambda row: (row.concept or "", row.number) not in kept)
    tried = TriedWriter(
        model=config.engine.model_name,
        draws=len(drafts),
        pairs=len(kept),
        reasons=", ".join(f"{reason} {count}" for reason, count in lost.most_common(SHOWN_REASONS)),
        draw_s=seconds / len(drafts),
        wanted=len(expected.content.rows),
        actors=config.actors,
    )
    return tried, replace(expected, content=replace(expected.content, rows=rows))


def write_few(config: LlmWriterConfig, taxonomy: Taxonomy, seed: int) -> tuple[list[Draft], float]:
    """Write a few draws in this process; return them, and the seconds they took without loading the model."""
    torch.set_num_threads(config.threads)
    writer = PairWriter(config, engines[config.engine.engine].load(config.engine), taxonomy, seed)
    firsts = [taxonomy.in_category(category)[0].name for category in taxonomy.categories][:CONCEPTS]
    draws = tuple(range(min(DRAWS, config.per_concept)))
    started = time.perf_counter()
    drafts = [draft for name in firsts for draft in writer.write(Task(round=0, concept=name, draws=draws))]
    return drafts, time.perf_counter() - started
