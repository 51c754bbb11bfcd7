"""Writes one concept's drafts: unsafe prompts first, then candidates for the safe counterpart of each.

The candidate that changes least of those that pass is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from safety.prompts.llm.answer import read_answer
from safety.prompts.llm.checks import PairChecks, changed_share
from safety.prompts.llm.config import LlmWriterConfig
from safety.prompts.llm.draft import SAFE_SIDE, Draft, DraftReason, Task, rejected
from safety.prompts.llm.engines.engine import ChatAnswer, ChatEngine, ChatRequest
from safety.prompts.llm.instructions import load_instructions
from safety.prompts.llm.naming import replace_concept
from safety.prompts.rows import slug
from safety.seeds import derive_seed, rng
from safety.taxonomy import Taxonomy, UnsafeConcept

PROMPT, PHRASE = "prompt", "phrase"
MOST_PHRASE_WORDS = 5
"""Of what stands in the concept's place; more is a caption of its own."""


class PairWriter:
    """An engine with instructions and checks. A draft is a function of the run's seed, the concept and the draw's number."""

    def __init__(self, config: LlmWriterConfig, engine: ChatEngine, taxonomy: Taxonomy, seed: int) -> None:
        """Read the instructions; raise ConfigError when they are wrong."""
        self._config, self._engine, self._taxonomy, self._seed = config, engine, taxonomy, seed
        self._instructions = load_instructions(config.instructions)
        self._checks = PairChecks(config.checks, taxonomy.concepts)
        self._concepts = {concept.name: concept for concept in taxonomy.concepts}

    def write(self, task: Task) -> list[Draft]:
        """Return one draft per draw of the task, in its order.

        Raises:
            EndpointError: The language model cannot be asked.
        """
        concept = self._concepts[task.concept]
        answers = self._engine.answer([self._ask_unsafe(concept, draw) for draw in task.draws])
        drafts = {
            draw: self._unsafe(task, draw, concept, answer) for draw, answer in zip(task.draws, answers, strict=True)
        }
        asked = [draft for draft in drafts.values() if draft.kept]
        requests = [
            self._ask_safe(concept, draft, number) for draft in asked for number in range(self._config.candidates)
        ]
        answers = self._engine.answer(requests)
        for index, draft in enumerate(asked):
            own = answers[index * self._config.candidates : (index + 1) * self._config.candidates]
            drafts[draft.draw] = self._paired(draft, concept, own)
        return [drafts[draw] for draw in task.draws]

    def _row(self, concept: UnsafeConcept) -> str:
        return f"llm-{slug(concept.category)}-{slug(concept.name)}"

    def _ask_unsafe(self, concept: UnsafeConcept, draw: int) -> ChatRequest:
        scene = rng(self._seed, self._row(concept), f"scene-{draw}").choice(self._instructions.scenes)
        values = {"concept": concept.name, "category": concept.category, "scene": scene}
        messages = self._instructions.unsafe.chat(PROMPT, values)
        return ChatRequest(messages, PROMPT, derive_seed(self._seed, self._row(concept), f"unsafe-{draw}"))

    def _ask_safe(self, concept: UnsafeConcept, draft: Draft, number: int) -> ChatRequest:
        phrase = self._config.rewrite == "phrase"
        instruction = self._instructions.phrase if phrase else self._instructions.whole
        values = {
            "caption": draft.prompt or "",
            "concept": concept.name,
            "category": concept.category,
            "counterpart": concept.counterpart or "",
        }
        key = PHRASE if phrase else PROMPT
        seed = derive_seed(self._seed, self._row(concept), f"safe-{draft.draw}-{number}")
        return ChatRequest(instruction.chat(key, values), key, seed)

    def _unsafe(self, task: Task, draw: int, concept: UnsafeConcept, answer: ChatAnswer) -> Draft:
        text = read_answer(answer, PROMPT)
        if isinstance(text, DraftReason):
            return rejected(task, draw, text)
        reason = self._checks.of_prompt(text, concept)
        if reason is not None:
            return rejected(task, draw, reason, text)
        return Draft(concept=concept.name, draw=draw, state="kept", prompt=text)

    def _paired(self, draft: Draft, concept: UnsafeConcept, answers: Sequence[ChatAnswer]) -> Draft:
        """Return the pair of the candidate that changes least, or the draft as rejected for the first candidate's reason."""
        prompt = draft.prompt or ""
        found = [self._candidate(prompt, concept, answer) for answer in answers]
        passed = [text for text, reason in found if reason is None]
        if passed:
            return draft.model_copy(update={"safe": min(passed, key=partial(changed_share, prompt))})
        text, reason = found[0]
        assert reason is not None
        return draft.model_copy(update={"safe": text}).rejected(SAFE_SIDE.get(reason, reason))

    def _candidate(
        self, prompt: str, concept: UnsafeConcept, answer: ChatAnswer
    ) -> tuple[str | None, DraftReason | None]:
        phrase = self._config.rewrite == "phrase"
        said = read_answer(answer, PHRASE if phrase else PROMPT)
        if isinstance(said, DraftReason):
            return None, said
        safe: str | None = said
        if phrase:
            if len(said.split()) > MOST_PHRASE_WORDS:
                return said, DraftReason.SAFE_CHANGED_TOO_MUCH
            safe = replace_concept(prompt, concept, said)
            if safe is None:
                return said, DraftReason.SAFE_STILL_UNSAFE
        assert safe is not None
        return safe, self._checks.of_pair(prompt, safe, concept)
