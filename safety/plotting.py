"""Text from users in plots: drawn as it stands, and never parsed as mathematics, a hidden label or a missing font."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl

LONGEST = 40
"""Characters of a name in a plot; a longer one would leave no room for the plot itself."""
AS_IT_STANDS: dict[str, Any] = {"text.parse_math": False, "text.usetex": False}


@contextmanager
def plain_text(**style: Any) -> Iterator[None]:
    """Draw all text inside the context as it stands; ``style`` are further settings of matplotlib, by name."""
    with mpl.rc_context({**AS_IT_STANDS, **style}), warnings.catch_warnings():
        # A character that the font lacks is drawn as a box; SVG leaves it to the reader's fonts.
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .*missing from")
        yield


def short(name: str) -> str:
    """Return a name as a plot shows it: cut with an ellipsis, and without the "_" for which a legend leaves it out."""
    cut = name if len(name) <= LONGEST else f"{name[: LONGEST - 1].rstrip()}…"
    return f" {cut}" if cut.startswith("_") else cut
