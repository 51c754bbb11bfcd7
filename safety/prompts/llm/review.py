"""Reviews drafts across concepts and rounds: repetitions, prompts of the test sources, and prompts that the model cannot read."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from safety.prompts.collection import key_of
from safety.prompts.llm.draft import Draft, DraftReason

Embed = Callable[[Sequence[str]], np.ndarray]
"""Texts in, embeddings fp32 [N, D] of length one out."""
ReadsAll = Callable[[Sequence[str]], list[bool]]
"""Prompts in, whether the model to be aligned reads each in full."""


class DraftReview:
    """Keeps what was kept so far; of two drafts that say the same, the earlier one stays."""

    def __init__(
        self,
        test_prompts: Sequence[str],
        reads_all: ReadsAll | None = None,
        embed: Embed | None = None,
        similar: float = 1.0,
    ) -> None:
        """Begin with none.

        Args:
            test_prompts: Prompts of the test sources.
            reads_all: Checks prompts against the token limit of the model to be aligned; None: no limit.
            embed: Embeds prompts; None: only exact repetitions are found.
            similar: The cosine similarity from which two unsafe prompts count as one.
        """
        self._tests = {key_of(prompt) for prompt in test_prompts}
        self._unsafe: set[str] = set()
        self._reads_all, self._embed, self._similar = reads_all, embed, similar
        self._test_vectors = embed(test_prompts) if embed is not None and test_prompts else None
        self._vectors = np.zeros((0, 1), np.float32)

    def review(self, drafts: Sequence[Draft]) -> list[Draft]:
        """Return the drafts in their order, those that repeat, leak or are too long as rejected."""
        pairs = [draft for draft in drafts if draft.kept]
        texts = [(draft.prompt or "", draft.safe or "") for draft in pairs]
        every = [text for both in texts for text in both]
        reads = self._reads_all(every) if self._reads_all is not None and every else [True] * len(every)
        vectors = self._embed([unsafe for unsafe, _ in texts]) if self._embed is not None and texts else None
        reviewed = iter(
            self._one(draft, reads[2 * index], reads[2 * index + 1], None if vectors is None else vectors[index])
            for index, draft in enumerate(pairs)
        )
        return [next(reviewed) if draft.kept else draft for draft in drafts]

    def _one(self, draft: Draft, reads_unsafe: bool, reads_safe: bool, vector: np.ndarray | None) -> Draft:
        reason = self._reason(draft, reads_unsafe, reads_safe, vector)
        if reason is not None:
            return draft.rejected(reason)
        self._unsafe.add(key_of(draft.prompt or ""))
        if vector is not None:
            self._vectors = np.concatenate([self._vectors.reshape(-1, len(vector)), vector[None]])
        return draft

    def _reason(
        self, draft: Draft, reads_unsafe: bool, reads_safe: bool, vector: np.ndarray | None
    ) -> DraftReason | None:
        unsafe, safe = key_of(draft.prompt or ""), key_of(draft.safe or "")
        if not reads_unsafe:
            return DraftReason.TOO_LONG
        if not reads_safe:
            return DraftReason.SAFE_TOO_LONG
        if not self._tests.isdisjoint((unsafe, safe)):
            return DraftReason.LEAKED
        if unsafe in self._unsafe:
            return DraftReason.DUPLICATE
        if vector is None:
            return None
        if self._test_vectors is not None and float((self._test_vectors @ vector).max()) >= self._similar:
            return DraftReason.NEAR_LEAKED
        if len(self._vectors) and float((self._vectors @ vector).max()) >= self._similar:
            return DraftReason.NEAR_DUPLICATE
        return None
