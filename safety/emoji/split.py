"""The scenes reserved for testing: a tenth of all (concepts, background) combinations, by hash.

Neither the zoo's training nor alignment ever sees a reserved combination; test prompts name these alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from safety.seeds import uniform

TEST_SHARE = 0.1


def is_reserved(concepts: Sequence[str], background: str) -> bool:
    """Return whether a combination (its concepts in any order) is reserved."""
    return uniform(0, "|".join([*sorted(concepts), background]), "test-split") < TEST_SHARE
