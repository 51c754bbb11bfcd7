"""Prompt rows: unsafe prompts with their safe counterparts, and benign prompts."""

from __future__ import annotations

from collections import Counter
from typing import Literal

from pydantic import Field, model_validator

from safety.base import Config
from safety.errors import ConfigError

PairSplit = Literal["train", "validation", "test", "heldout"]
BenignSplit = Literal["train", "validation", "test", "text_only"]
"""Benign prompts of the split "text_only" are never rendered: only their text embeddings are used, to protect them
from the merge."""
WITHHELD = "[withheld]"


def slug(name: str) -> str:
    """Return a name as used in ids and file names: lower case, hyphens for all but letters and digits."""
    return "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())


class PromptPair(Config):
    """An unsafe prompt and its safe counterpart, which keeps everything but the harmful concept."""

    pair_id: str = Field(min_length=1)
    category: str
    other_categories: tuple[str, ...] = Field((), description="further categories that the source gives")
    concept: str | None = Field(description="the unsafe concept's name; None where the source does not name it")
    split: PairSplit
    unsafe_prompt: str = Field(min_length=1)
    safe_prompt: str | None = Field(
        min_length=1, description="None where the source has no safe side: such a row can only be a test prompt"
    )
    benign_objects: tuple[str, ...] = Field((), description="benign concepts that both prompts name")
    counterpart: str | None = Field(None, description="the benign concept in the unsafe one's place")
    background: str | None = Field(None, description="of the scene, where both prompts name one")
    writer: str

    @model_validator(mode="after")
    def _has_both_sides(self) -> PromptPair:
        if self.safe_prompt is None and self.split not in ("test", "heldout"):
            raise ValueError(f"a row of the split {self.split!r} needs a safe prompt")
        return self

    @property
    def row_id(self) -> str:
        """Return the row's id."""
        return self.pair_id

    @property
    def prompts(self) -> tuple[str, ...]:
        """Return the row's prompts: unsafe, and safe if there is one."""
        return (self.unsafe_prompt,) if self.safe_prompt is None else (self.unsafe_prompt, self.safe_prompt)

    def withheld(self) -> PromptPair:
        """Return the row without its texts, the form in which a refused row is recorded."""
        safe = None if self.safe_prompt is None else WITHHELD
        return self.model_copy(update={"unsafe_prompt": WITHHELD, "safe_prompt": safe})


class BenignPrompt(Config):
    """A prompt with nothing harmful in it. Alignment must not change its image."""

    prompt_id: str = Field(min_length=1)
    prompt: str = Field(min_length=1)
    objects: tuple[str, ...] = Field((), description="benign concepts that the prompt names")
    background: str | None = Field(None, description="of the scene, where the prompt names one")
    split: BenignSplit
    writer: str

    @property
    def row_id(self) -> str:
        """Return the row's id."""
        return self.prompt_id

    @property
    def prompts(self) -> tuple[str, ...]:
        """Return the row's one prompt."""
        return (self.prompt,)

    def withheld(self) -> BenignPrompt:
        """Return the row without its text, the form in which a refused row is recorded."""
        return self.model_copy(update={"prompt": WITHHELD})


PromptRow = PromptPair | BenignPrompt


class PromptSet(Config):
    """All the prompts of a run. Every id occurs once, and every prompt in one split only."""

    pairs: tuple[PromptPair, ...]
    benign: tuple[BenignPrompt, ...]

    def check(self) -> None:
        """Raise ConfigError when an id is taken twice or a prompt occurs in two splits."""
        ids = Counter([*(p.pair_id for p in self.pairs), *(b.prompt_id for b in self.benign)])
        doubled = sorted(name for name, count in ids.items() if count > 1)
        if doubled:
            raise ConfigError(
                f"ids taken twice: {', '.join(doubled[:3])}", field="prompts", fix="give each row its own id"
            )
        split_of: dict[str, str] = {}
        for prompt, split in self.prompts():
            if split_of.setdefault(prompt, split) != split:
                raise ConfigError(
                    f"{prompt!r} is in the splits {split_of[prompt]} and {split}",
                    field="prompts",
                    fix="keep a prompt in one split only",
                )

    def prompts(self) -> list[tuple[str, str]]:
        """Return every prompt with its split, benign prompts under the pairs' split names."""
        named = [(text, pair.split) for pair in self.pairs for text in pair.prompts]
        return [*named, *((b.prompt, b.split) for b in self.benign)]

    def in_split(self, split: str, category: str | None = None) -> tuple[PromptPair, ...]:
        """Return a split's pairs, of one category or all."""
        return tuple(p for p in self.pairs if p.split == split and category in (None, p.category))

    def benign_in(self, split: str) -> tuple[BenignPrompt, ...]:
        """Return a split's benign prompts."""
        return tuple(b for b in self.benign if b.split == split)
