"""Passes on to a child process what ends this one."""

from __future__ import annotations

import signal
import subprocess
import threading
from types import FrameType
from typing import Any, Self

PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Relay:
    """Passes signals that end a process on to a child, for as long as the context lasts.

    Attributes:
        asked: Those that came.
    """

    def __init__(self) -> None:
        self.asked: list[int] = []
        self._child: subprocess.Popen[str] | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._pass_on) for number in PASSED_ON}
        return self

    def __exit__(self, *raised: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._child is not None and self._child.poll() is None:
            self._child.terminate()
            self._child.wait()

    def begin(self, child: subprocess.Popen[str]) -> None:
        """Names the child; signals that came before it reach it too."""
        self._child = child
        for number in self.asked:
            child.send_signal(number)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self.asked.append(number)
        if self._child is not None:
            self._child.send_signal(number)
