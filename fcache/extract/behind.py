"""Row groups written from another thread, while the next frames are made ready."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

from fcache.store.writer import RowGroup


class Behind:
    """Writing in another thread, in order; who hands out work is at most one piece ahead.

    Row groups that it keeps and that are not committed leave nothing behind.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="fcache-write")
        self._pending: Future[None] | None = None
        self._kept: list[RowGroup] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._thread.shutdown(wait=True)
        for group in self._kept:
            group.discard()

    def keep(self, group: RowGroup) -> RowGroup:
        """Answers for a row group until it is ``done``."""
        self._kept.append(group)
        return group

    def done(self, group: RowGroup) -> None:
        """Forgets a row group: it is committed."""
        self._kept.remove(group)

    def submit(self, work: Callable[[], None]) -> None:
        """Hands out work, once what was handed out before is done.

        Raises:
            Exception: what that ended in.
        """
        self.wait()
        self._pending = self._thread.submit(work)

    def wait(self) -> None:
        """Waits until everything handed out is done."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()
