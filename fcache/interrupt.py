"""Ctrl-C during long work: once, what is at hand is finished and kept; twice, at once.

Workers do not hear it; the process that started them tells them.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
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


@contextmanager
def without_interrupts() -> Iterator[None]:
    """Holds Ctrl-C back, and from every process that is started by a thread begun in here.

    The terminal sends Ctrl-C to workers too, which are not to break off by themselves. Threads and
    processes inherit the mask, and so do workers that are started again.
    """
    resource_tracker.ensure_running()  # begun later, it would unblock the signal again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
