"""What runs tasks: this process, or the workers of a dask client."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from fcache.errors import ConfigError
from fcache.extract.handout import Breakdown, Handout, Report, SchedulerWatch
from fcache.extract.tasks import ShardTask
from fcache.extract.worker import TaskResult, WorkerSettings, run_task

IN_FLIGHT = 2  # tasks a worker: one at work, one ready
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


class DaskExecutor:
    """Runs tasks on the workers of a dask client.

    The scheduler is given a few tasks a worker at a time: its memory does not grow with the job,
    and a worker that joins late finds tasks left.

    Args:
        client: A connected ``distributed.Client``.
        scheduler: What ``--scheduler`` says, for messages.
        retries: How often a task is tried again after an error.
        refusals: Fills where the queue refuses the workers.
    """

    def __init__(
        self,
        client: Any,  # noqa: ANN401 - dask has no types
        scheduler: str,
        retries: int,
        refusals: Sequence[str] = (),
    ) -> None:
        self._client = client
        self._watch = SchedulerWatch(client, scheduler)
        self._retries = retries
        self._refusals = refusals

    @property
    def num_workers(self) -> int:
        """Workers there are at this moment.

        Raises:
            ConfigError: there will be none: the queue refuses them.
            FcacheError: the scheduler is lost.
        """
        count = self._watch.count()
        if self._refusals and not count:
            raise ConfigError(f"sbatch refuses the jobs: {self._refusals[0]}.")
        return count

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
                    handout.give(waiting.popleft())
                heard = handout.hear(POLL_S)
                if isinstance(heard, dict):
                    report(heard)
                elif heard is not None and heard.results is None:
                    waiting.appendleft(heard.task)
                elif heard is not None and heard.results is not None:
                    yield heard.task, heard.results
        finally:
            handout.close()


def _room(num_workers: int) -> int:
    return IN_FLIGHT * max(1, num_workers)


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
    """Keeps dask's own start-up and shut-down talk off the terminal."""
    logger = logging.getLogger("distributed")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)
