"""Pairs that a language model writes: an artifact of its own, made in rounds, from which a run that starts again goes on.

In each round every concept gets as many draws as it still lacks pairs. What a round wrote is reviewed as a whole, in the
order of concepts and draws, so that the result does not depend on which actor was the fastest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from cluster.progress import StageProgress
from jobs.generate.writer_actors import (
    FinishedTasks,
    dump_task,
    embed_prompts,
    parse_task,
    read_in_full,
    stream_tasks,
)
from jobs.run.artifacts import StageContext, artifact_ref, finished, publish
from jobs.run.config import RunConfig
from jobs.run.placement import placed, placed_unless_cheap
from jobs.run.places import generate_place, writer_place
from safety.errors import ConfigError, EmptyDatasetError
from safety.prompts.collection import WrittenPairs
from safety.prompts.config import PromptsConfig
from safety.prompts.llm.config import LlmWriterConfig
from safety.prompts.llm.draft import Draft, Task
from safety.prompts.llm.draft_files import CARD_FILE, DRAFTS_FILE, outcomes, write_draft_files, written_pairs
from safety.prompts.llm.engines.engine import engines
from safety.prompts.llm.pair_writer import PairWriter
from safety.prompts.llm.review import DraftReview
from safety.prompts.sources.source import SourceContent, SourceRow, sources
from safety.taxonomy import Taxonomy

KIND = "prompts"
LAYOUT = 1
"""Version of the artifact's files."""
SHOWN_REASONS = 4


def writer_recipe(config: LlmWriterConfig) -> dict[str, Any]:
    """Return what the drafts depend on, the language model by its content; read where it will run.

    Raises:
        ConfigError: There is no such language model, or the instructions are wrong.
    """
    return placed_unless_cheap(writer_place(config), config.recipe)


def run_recipe(run: RunConfig) -> dict[str, Any] | None:
    """Return the recipe of the run's language model; None where it has none. Raises as ``writer_recipe`` does."""
    config = None if run.prompts is None else run.prompts.writer
    return None if config is None else writer_recipe(config)


def write_pairs(context: StageContext, taxonomy: Taxonomy) -> WrittenPairs | None:
    """Return the pairs of the run's language model, written now unless they are published; None where the run has none.

    Raises:
        ConfigError: There is no such language model, or the taxonomy has no concepts to write of.
        EndpointError: It cannot be asked.
        EmptyDatasetError: A category is left without a pair.
    """
    given = context.run.prompts
    if given is None or given.writer is None:
        return None
    config = given.writer
    require_concepts(taxonomy)
    settings = {
        "layout": LAYOUT,
        "writer": writer_recipe(config),
        "taxonomy": taxonomy.model_dump(mode="json"),
        "tests": [source.recipe() for source in given.test],
        "model": context.model.model_dump(mode="json"),
    }
    ref = artifact_ref(context, KIND, settings)
    model = config.engine.model_name
    if finished(context, ref):
        context.console.print(f"prompts {ref.id}: already published")
    else:
        area = FinishedTasks(context.store, ref, dump_task, parse_task, "json")
        drafts = Writing(context, config, taxonomy, area, test_prompts(given)).drafts()
        _require_all_categories(drafts, taxonomy)
        publish(context, ref, settings, [], lambda folder: write_draft_files(drafts, taxonomy, model, folder))
        area.clear()
        context.console.print(drafts_table(drafts, taxonomy))
    folder = context.folder(ref, DRAFTS_FILE, CARD_FILE)
    return written_pairs(model, folder / DRAFTS_FILE, taxonomy)


def require_concepts(taxonomy: Taxonomy) -> None:
    """Raise ConfigError when a category has no concept that a language model could write of."""
    empty = [name for name in taxonomy.categories if not taxonomy.in_category(name)]
    if empty:
        raise ConfigError(
            f"the category {empty[0]!r} has no concept, and the language model writes of concepts",
            field="taxonomy.concepts",
            fix="name its concepts, or take the category out",
        )


def test_prompts(given: PromptsConfig) -> list[str]:
    """Return the prompts of the test sources, which no written pair may have; raises as reading them does."""
    rows = [row for source in given.test for row in sources[source.source].read(source).rows]
    return [text for row in rows for text in (row.prompt, row.safe) if text is not None]


class Writing:
    """Writes and reviews, round by round."""

    def __init__(
        self,
        context: StageContext,
        config: LlmWriterConfig,
        taxonomy: Taxonomy,
        finished: FinishedTasks,
        tests: Sequence[str],
    ) -> None:
        self._context, self._config, self._taxonomy, self._finished = context, config, taxonomy, finished
        self._concepts = [concept.name for concept in taxonomy.concepts]
        run, embedding = context.run, config.embedding

        def reads_all(prompts: Sequence[str]) -> list[bool]:
            return placed(generate_place(run), read_in_full, run.model, prompts)

        if embedding is None:
            self._review = DraftReview(tests, reads_all)
        else:
            self._review = DraftReview(
                tests,
                reads_all,
                lambda texts: placed(writer_place(config), embed_prompts, embedding, texts),
                embedding.similar,
            )

    def drafts(self) -> list[Draft]:
        """Return all draws in the order of rounds, concepts and draws."""
        every: list[Draft] = []
        pairs, drawn = Counter[str](), Counter[str]()
        for number in range(self._config.rounds):
            tasks = self._tasks(number, pairs, drawn)
            if not tasks:
                break
            written = self._review.review(self._round(number, tasks))
            every += written
            pairs.update(draft.concept for draft in written if draft.kept)
            drawn.update(draft.concept for draft in written)
            if not pairs:
                raise EmptyDatasetError(
                    f"none of the first {len(every)} draws became a pair: {_reasons(every)}",
                    field="prompts.writer",
                    fix="use a stronger language model, or prompts.writer.rewrite: phrase; or loosen prompts.writer.checks",
                )
        short = [name for name in self._concepts if pairs[name] < self._config.per_concept]
        if short:
            self._context.console.print(
                f"[yellow]{len(short)} of {len(self._concepts)} concepts have fewer than {self._config.per_concept} pairs "
                f"after {self._config.rounds} rounds:[/] {escape(', '.join(short[:5]))}"
            )
        return every

    def _tasks(self, number: int, pairs: Counter[str], drawn: Counter[str]) -> dict[int, Task]:
        """Return a round's tasks by their numbers in the work area."""
        found = {}
        for index, concept in enumerate(self._concepts):
            missing, first = self._config.per_concept - pairs[concept], drawn[concept]
            if missing > 0:
                draws = tuple(range(first, first + missing))
                found[number * len(self._concepts) + index] = Task(round=number, concept=concept, draws=draws)
        return found

    def _round(self, number: int, tasks: dict[int, Task]) -> list[Draft]:
        """Write what is missing of a round's tasks, and return all of their drafts."""
        context = self._context
        done = {index for index, made in self._finished.all() if index in tasks and made.task == tasks[index]}
        missing = {index: task for index, task in tasks.items() if index not in done}
        draws = sum(len(task.draws) for task in tasks.values())
        left = sum(len(task.draws) for task in missing.values())
        with StageProgress(
            context.console, f"write, round {number + 1}", draws, "draws", done=draws - left
        ) as progress:
            if missing:
                passed = 0
                seed = context.run.run.seed
                for made in stream_tasks(missing, self._config, self._taxonomy, seed, self._finished):
                    passed += int(made["pairs"])
                    progress.advance(int(made["draws"]), f"{passed} pairs")
        return [draft for index in tasks for draft in self._finished.read(index).drafts]


def _require_all_categories(drafts: Sequence[Draft], taxonomy: Taxonomy) -> None:
    for category, counts in outcomes(drafts, taxonomy).items():
        if not counts["kept"]:
            lost = [draft for draft in drafts if draft.concept in {c.name for c in taxonomy.in_category(category)}]
            raise EmptyDatasetError(
                f"none of the {counts.total()} draws of the category {category!r} became a pair: {_reasons(lost)}",
                field="prompts.writer",
                fix="give its concepts synonyms, raise prompts.writer.rounds, or use a stronger language model",
            )


def _reasons(drafts: Sequence[Draft]) -> str:
    counts = Counter(str(draft.reason) for draft in drafts if not draft.kept)
    return ", ".join(f"{reason} {count}" for reason, count in counts.most_common(SHOWN_REASONS))


def drafts_table(drafts: Sequence[Draft], taxonomy: Taxonomy) -> Table:
    """Return a table of the draws by category: kept, and rejected by reason."""
    kept = sum(draft.kept for draft in drafts)
    table = Table(title=f"{len(drafts)} draws = {kept} pairs + {len(drafts) - kept} rejected", title_justify="left")
    for name in ("category", "draws", "pairs", "rejected"):
        table.add_column(name, justify="right" if name in ("draws", "pairs") else "left", overflow="fold")
    for category, counts in outcomes(drafts, taxonomy).items():
        reasons = ", ".join(f"{reason} {count}" for reason, count in counts.most_common() if reason != "kept")
        table.add_row(escape(category), str(counts.total()), str(counts["kept"]), reasons)
    return table


def try_writer(config: LlmWriterConfig, taxonomy: Taxonomy, *, ask: bool) -> None:
    """Load the language model and have it write one draw; without ``ask`` only its files and instructions are looked at.

    Raises:
        ConfigError: There is no such language model or encoder, or the taxonomy has no concepts to write of.
        EndpointError: It cannot be asked.
    """
    require_concepts(taxonomy)
    config.recipe()
    if ask:
        if config.embedding is not None:
            embed_prompts(config.embedding, ["a prompt"])
        engine = engines[config.engine.engine].load(config.engine)
        task = Task(round=0, concept=taxonomy.concepts[0].name, draws=(0,))
        PairWriter(config, engine, taxonomy, seed=0).write(task)


def expected_pairs(run: RunConfig, taxonomy: Taxonomy) -> WrittenPairs | None:
    """Return stand-ins for what the language model will write, as if every concept gets all of its pairs: for counts alone."""
    config = None if run.prompts is None else run.prompts.writer
    if config is None:
        return None
    rows = [
        SourceRow(draw, f"{concept.name} {draw}", f"not {concept.name} {draw}", (concept.category,), concept.name)
        for concept in taxonomy.concepts
        for draw in range(config.per_concept)
    ]
    return WrittenPairs(config.engine.model_name, "", SourceContent(rows, len(rows)))
