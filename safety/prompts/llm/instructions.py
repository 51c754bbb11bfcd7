"""What a language model is told, as data: a chat for the unsafe prompt, and two ways to ask for its safe counterpart."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from pydantic import Field, ValidationError, model_validator

from safety.base import Config
from safety.documents import explain, read_mapping
from safety.errors import ConfigError
from safety.prompts.llm.engines.engine import Message

EMBEDDED_FILE = Path(__file__).parent / "instructions.yaml"
FIELD = "prompts.writer.instructions"
PLACES = ("concept", "category", "scene", "caption", "counterpart")
PLACE = re.compile(r"\{([a-z_]+)\}")


class Example(Config):
    """One chat as it should go; it may use what its instruction's own text names."""

    concept: str
    category: str = ""
    scene: str = ""
    caption: str = ""
    answer: str = Field(min_length=1)


class Instruction(Config):
    """A system's turn, a user's turn with placeholders, and examples."""

    system: str = Field(min_length=1)
    user: str = Field(min_length=1, description="with the placeholders that it needs, such as {concept}")
    hint: str = Field("", description="added to the user's turn where the taxonomy names a counterpart: {counterpart}")
    examples: tuple[Example, ...] = ()

    @model_validator(mode="after")
    def _knows_its_places(self) -> Instruction:
        unknown = sorted(set(PLACE.findall(self.user + self.hint)) - set(PLACES))
        if unknown:
            raise ValueError(f"there is no placeholder {{{unknown[0]}}}; use some of: {', '.join(PLACES)}")
        return self

    def chat(self, key: str, values: Mapping[str, str]) -> tuple[Message, ...]:
        """Return the chat that asks for ``{key: ...}``; ``values`` stand at the placeholders, without counterpart no hint."""
        turns = [Message(role="system", content=self.system)]
        for example in self.examples:
            turns.append(Message(role="user", content=filled(self.user, example.model_dump())))
            turns.append(Message(role="assistant", content=json.dumps({key: example.answer}, ensure_ascii=False)))
        hint = self.hint if values.get("counterpart") else ""
        return (*turns, Message(role="user", content=filled(self.user + hint, values)))

    def require(self, *places: str) -> None:
        """Raise ValueError when the user's turn lacks a placeholder."""
        lost = [place for place in places if f"{{{place}}}" not in self.user]
        if lost:
            raise ValueError(f"the user's turn has no {{{lost[0]}}}")


class Instructions(Config):
    """All that is told."""

    unsafe: Instruction = Field(description="asks for an unsafe prompt")
    whole: Instruction = Field(description="asks for the safe counterpart as a whole")
    phrase: Instruction = Field(description="asks for what stands in the concept's place")
    scenes: tuple[str, ...] = Field(min_length=1, description="settings, of which each draw gets one")

    @model_validator(mode="after")
    def _have_their_places(self) -> Instructions:
        self.unsafe.require("concept")
        self.whole.require("caption")
        self.phrase.require("caption", "concept")
        return self


def filled(text: str, values: Mapping[str, str]) -> str:
    """Return a text with its placeholders filled in; other braces stay."""
    return PLACE.sub(lambda found: str(values.get(found[1], found[0])), text)


def load_instructions(path: Path | None) -> Instructions:
    """Return the instructions of a file, or the embedded ones; raise ConfigError that names what is wrong in it."""
    document = read_mapping(path or EMBEDDED_FILE, field=FIELD, what="a YAML file of instructions")
    try:
        return Instructions.model_validate(document)
    except ValidationError as error:
        found = [explain(problem) for problem in error.errors(include_url=False)]
        raise ConfigError(
            f"{path}: {'; '.join(f'{name}: {message}' for name, message, _ in found)}",
            field=FIELD,
            fix="; ".join(dict.fromkeys(fix for _, _, fix in found)),
        ) from None
