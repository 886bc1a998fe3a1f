"""What runs tasks: this process, or the workers of a dask client."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from fcache.errors import ConfigError, FcacheError
from fcache.extract.tasks import ShardTask
from fcache.extract.worker import TaskResult, WorkerSettings, run_task

Report = Callable[[dict[str, Any]], None]


class Executor(Protocol):
    """Runs tasks somewhere."""

    @property
    def num_workers(self) -> int:
        """Workers there are at this moment."""
        ...

    def run(
        self, tasks: Sequence[ShardTask], settings: WorkerSettings, report: Report
    ) -> Iterator[TaskResult]:
        """Yields each task's result as it ends; reports commits as they happen.

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
        """Yields each task's result; see ``Executor``."""
        for task in tasks:
            yield run_task(task, settings, report)


class DaskExecutor:
    """Runs tasks on the workers of a dask client."""

    def __init__(
        self,
        client: Any,  # noqa: ANN401 - dask has no types
        retries: int,
        refusals: Sequence[str] = (),
    ) -> None:
        self._client = client
        self._retries = retries
        self._refusals = refusals

    @property
    def num_workers(self) -> int:
        """Workers there are at this moment.

        Raises:
            ConfigError: there will be none: the queue refuses them.
        """
        count = len(self._client.nthreads())
        if self._refusals and not count:
            raise ConfigError(f"sbatch refuses the jobs: {self._refusals[0]}.")
        return count

    def run(
        self, tasks: Sequence[ShardTask], settings: WorkerSettings, report: Report
    ) -> Iterator[TaskResult]:
        """Yields each task's result; see ``Executor``.

        A task over which its worker breaks down again and again is ``failed``; others go on.
        """
        suspects = []
        for task, result in self._results(tasks, settings, report):
            if result is None:
                suspects.append(task)
            else:
                yield result
        # dask blames every task a dying worker was given: alone, it shows which one it was.
        for task in suspects:
            for _, result in self._results([task], settings, report):
                yield result or _failed(task, "its worker died every time; out of memory?")

    def _results(
        self, tasks: Sequence[ShardTask], settings: WorkerSettings, report: Report
    ) -> Iterator[tuple[ShardTask, TaskResult | None]]:
        """Yields each task with its result; None if its workers died."""
        from distributed import KilledWorker, as_completed

        job = f"fcache-{uuid.uuid4().hex}"  # a scheduler may serve several jobs
        self._client.subscribe_topic(job, lambda event: report(event[1]))
        futures = {
            self._client.submit(
                _on_worker, task, settings, job, key=f"{job}-{number}", retries=self._retries
            ): task
            for number, task in enumerate(tasks)
        }
        try:
            for future in as_completed(futures):
                task, error = futures[future], future.exception()
                if isinstance(error, KilledWorker):
                    yield task, None
                elif error is not None:
                    reason = str(error).strip().partition("\n")[0]
                    yield task, _failed(task, f"{type(error).__name__}: {reason}")
                else:
                    yield task, _unless_error(future.result())
        finally:
            self._client.cancel(list(futures), force=True)
            self._client.unsubscribe_topic(job)


def _on_worker(task: ShardTask, settings: WorkerSettings, topic: str) -> TaskResult | FcacheError:
    """Runs a task on a dask worker.

    What the user can mend is handed back as a value: trying again would not mend it.
    """
    from distributed import get_worker

    worker = get_worker()
    try:
        return run_task(task, settings, lambda event: worker.log_event(topic, event))
    except FcacheError as error:
        return error


def _unless_error(result: TaskResult | FcacheError) -> TaskResult:
    if isinstance(result, FcacheError):
        raise result
    return result


def _failed(task: ShardTask, reason: str) -> TaskResult:
    return TaskResult(task.source.video_id, task.item.item, "failed", reason)


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
