"""What Ray Data says on the terminal; its log file keeps everything."""

from __future__ import annotations

import logging


def set_ray_data_console_level(level: int) -> None:
    """Have Ray Data write to the terminal what is of this level or above."""
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(level)
