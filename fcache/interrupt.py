"""Ctrl-C during long work: once, what is at hand is finished and kept; twice, at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Whether somebody asked to stop."""

    def __init__(self) -> None:
        self.asked = False


@contextmanager
def interruptible(tell: Callable[[], None]) -> Iterator[StopRequest]:
    """Catches the first Ctrl-C for as long as the context lasts; the second one raises.

    Outside the main thread nothing is caught: Python delivers no signals there.
    """
    request = StopRequest()

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        if request.asked:
            raise KeyboardInterrupt
        request.asked = True
        tell()

    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield request
    finally:
        signal.signal(signal.SIGINT, before)
