"""What runs tasks: this process, or the workers of a dask client."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from fcache.errors import FcacheError
from fcache.extract.handout import Breakdown, Handout, SchedulerWatch
from fcache.extract.tasks import ShardTask
from fcache.extract.worker import TaskResult, WorkerSettings, run_task
from fcache.report import Report

IN_FLIGHT = 2  # tasks a worker: one at work, one ready
LAST = 2  # tasks a worker that are taken apart
MAP_POLL_S = 0.1  # between looks at work that is mapped
POLL_S = 1.0  # between looks at workers and scheduler while nothing is heard


class Executor(Protocol):
    """Runs tasks somewhere."""

    @property
    def num_workers(self) -> int:
        """Workers there are at this moment."""
        ...

    def run(
        self, tasks: Sequence[ShardTask], settings: WorkerSettings, report: Report
    ) -> Iterator[TaskResult]:
        """Yields each source's result as its task ends; reports commits as they happen.

        Raises:
            FcacheError: what a task raised.
        """
        ...

    def map(
        self, function: Callable[[Any], Any], works: Sequence[Any], report: Report
    ) -> Iterator[Any]:
        """Yields what a function makes of each piece of work, in whatever order they end.

        Raises:
            FcacheError: a worker broke down over one.
        """
        ...


class InlineExecutor:
    """Runs tasks one after another in this process: for debugging and for tests."""

    @property
    def num_workers(self) -> int:
        """This process."""
        return 1

    def run(
        self, tasks: Sequence[ShardTask], settings: WorkerSettings, report: Report
    ) -> Iterator[TaskResult]:
        """Yields each source's result; see ``Executor``."""
        for task in tasks:
            yield from run_task(task, settings, report)

    def map(
        self, function: Callable[[Any], Any], works: Sequence[Any], report: Report
    ) -> Iterator[Any]:
        """Yields what a function makes of each piece of work; see ``Executor``."""
        yield from map(function, works)


class DaskExecutor:
    """Runs tasks on the workers of a dask client.

    The scheduler is given a few tasks a worker at a time: its memory does not grow with the job,
    and a worker that joins late finds tasks left.

    Args:
        client: A connected ``distributed.Client``.
        scheduler: What ``--scheduler`` says, for messages.
        retries: How often a task is tried again after an error.
        why_none: Asked while there is no worker; an error says that there will be none.
    """

    def __init__(
        self,
        client: Any,  # noqa: ANN401 - dask has no types
        scheduler: str,
        retries: int,
        why_none: Callable[[], FcacheError | None] = lambda: None,
    ) -> None:
        self._client = client
        self._watch = SchedulerWatch(client, scheduler, why_none)
        self._retries = retries

    @property
    def num_workers(self) -> int:
        """Workers there are at this moment.

        Raises:
            FcacheError: the scheduler is lost, or there will be no workers.
        """
        return self._watch.count()

    def run(
        self, tasks: Sequence[ShardTask], settings: WorkerSettings, report: Report
    ) -> Iterator[TaskResult]:
        """Yields each source's result; see ``Executor``.

        A source over which its worker breaks down again and again is ``failed``; others go on.

        Raises:
            FcacheError: what a task raised, or the scheduler is lost.
        """
        suspects: list[ShardTask] = []
        for task, results in self._results(tasks, settings, report):
            if isinstance(results, Breakdown) and (results.died or len(task.runs) > 1):
                suspects += task.alone()
            else:
                yield from _unless_broken(task, results)
        # dask blames every task a dying worker was given: alone, it shows which one it was.
        for suspect in suspects:
            for task, results in self._results([suspect], settings, report):
                yield from _unless_broken(task, results)

    def map(
        self, function: Callable[[Any], Any], works: Sequence[Any], report: Report
    ) -> Iterator[Any]:
        """Yields what a function makes of each piece of work; see ``Executor``.

        Raises:
            FcacheError: a worker broke down over one, or the scheduler is lost.
        """
        futures = self._client.map(function, works, pure=False, retries=self._retries)
        left = list(futures)
        try:
            while left:
                self._watch.look(report)
                done = [future for future in left if future.done()]
                for future in done:
                    if future.cancelled():
                        raise self._watch.lost()
                    error = future.exception()
                    if error is not None:
                        reason = str(error).strip().partition("\n")[0]
                        raise FcacheError(f"a worker failed: {type(error).__name__}: {reason}")
                    yield future.result()
                left = [future for future in left if future not in done]
                time.sleep(0 if done or not left else MAP_POLL_S)
        finally:
            for future in futures:
                future.release()

    def _results(
        self, tasks: Sequence[ShardTask], settings: WorkerSettings, report: Report
    ) -> Iterator[tuple[ShardTask, list[TaskResult] | Breakdown]]:
        """Yields each task with its results; of a job that is to stop, those given before."""
        waiting = deque(tasks)
        handout = Handout(self._client, settings, self._retries)
        try:
            while waiting or len(handout):
                count = self._watch.look(report)
                if settings.stop_file.exists():
                    waiting.clear()
                    if not count:
                        return  # nobody is there who could finish a shard
                while waiting and self._watch.is_connected and len(handout) < _room(count):
                    if len(waiting) <= LAST * count:
                        waiting = _apart(waiting)
                    handout.give(waiting.popleft())
                heard = handout.hear(POLL_S)
                if isinstance(heard, dict):
                    report({**heard, "workers": max(1, count)})
                elif heard is not None:
                    if heard.results is None:
                        waiting.appendleft(heard.task)
                    else:
                        yield heard.task, heard.results
        finally:
            handout.close()


def _room(num_workers: int) -> int:
    return IN_FLIGHT * max(1, num_workers)


def _apart(tasks: Iterable[ShardTask]) -> deque[ShardTask]:
    """Tasks of one run each, the longest first: so that workers end at about the same time."""
    alone = [run for task in tasks for run in task.alone()]
    return deque(sorted(alone, key=lambda task: -task.runs[0].num_shards))


def _unless_broken(task: ShardTask, results: list[TaskResult] | Breakdown) -> list[TaskResult]:
    if not isinstance(results, Breakdown):
        return results
    reason = "its worker died every time; out of memory?" if results.died else results.reason
    return [
        TaskResult(member.source.video_id, member.item.item, "failed", reason)
        for member in task.members
    ]


@contextmanager
def quiet_logs() -> Iterator[None]:
    """Keeps dask's own talk off the terminal: what the user can mend is told by fcache."""
    import distributed  # noqa: F401 - it sets its loggers' levels

    names = [name for name in logging.root.manager.loggerDict if name.startswith("distributed")]
    before = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
