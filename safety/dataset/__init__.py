"""The dataset of judged image pairs: its records, how they are made, and how they are laid out in files."""

from safety.dataset.record import Record, dump_group, load_group
from safety.dataset.renderer import GroupRenderer
from safety.dataset.reviewer import GroupReviewer

__all__ = ["GroupRenderer", "GroupReviewer", "Record", "dump_group", "load_group"]
