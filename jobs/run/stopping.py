"""An orderly end on SIGTERM, which ``ray job stop`` and Kubernetes send: the lease goes back, and the run can go on."""

from __future__ import annotations

import signal
from types import FrameType


def stop_on_sigterm() -> None:
    """Have SIGTERM end the main thread's work as Ctrl-C does; called again after Ray, which sets a handler of its own.

    KeyboardInterrupt is the one exception of a handler that Ray's waits let through.
    """
    signal.signal(signal.SIGTERM, _stop)


def _stop(_number: int, _frame: FrameType | None) -> None:
    # Another SIGTERM would cut the tidying short; who wants that has SIGKILL.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt
