"""Giving tasks to a dask scheduler, hearing what becomes of them, and noticing who is gone."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from concurrent.futures import CancelledError
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

from fcache.errors import FcacheError
from fcache.extract.tasks import ShardTask
from fcache.extract.worker import TaskResult, WorkerSettings, run_task
from fcache.report import Report

ANSWER_S = 5.0  # an answer takes no longer, or is asked for again
COUNT_S = 5.0  # between counts of the workers
PATIENCE_S = 10.0  # without a worker, before that is told: a dead one is being replaced
LOST_S = 120.0  # a scheduler that keeps the connection, but answers nothing for so long, is lost


@dataclass(frozen=True, slots=True)
class Breakdown:
    """What a task ended in instead of results.

    Attributes:
        died: Whether the workers it was given to died; another task may have been the cause.
    """

    reason: str
    died: bool


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a task; None if nothing did: it is to be given again."""

    task: ShardTask
    results: list[TaskResult] | Breakdown | None


class Handout:
    """The tasks a scheduler has been given.

    Args:
        client: A connected ``distributed.Client``.
        settings: The job's.
        retries: How often the scheduler tries a task again after an error.
    """

    def __init__(
        self,
        client: Any,  # noqa: ANN401 - dask has no types
        settings: WorkerSettings,
        retries: int,
    ) -> None:
        self._client = client
        self._settings = settings
        self._retries = retries
        self._topic = f"fcache-{uuid.uuid4().hex}"  # a scheduler may serve several jobs
        self._inbox: SimpleQueue[Any] = SimpleQueue()
        self._given: dict[Any, ShardTask] = {}
        self._num_given = 0
        self._is_subscribed = False

    def __len__(self) -> int:
        return len(self._given)

    def give(self, task: ShardTask) -> None:
        """Gives a task to the scheduler."""
        if not self._is_subscribed:
            self._client.subscribe_topic(self._topic, lambda event: self._inbox.put(event[1]))
            self._is_subscribed = True
        key = f"{self._topic}-{self._num_given}"
        self._num_given += 1
        future = self._client.submit(
            _on_worker, task, self._settings, self._topic, key=key, retries=self._retries
        )
        self._given[future] = task
        future.add_done_callback(self._inbox.put)

    def hear(self, timeout_s: float) -> Answer | dict[str, Any] | None:
        """Returns what a worker tells next, or a task's end; None if nothing comes in time.

        Raises:
            FcacheError: what the task raised.
        """
        try:
            heard = self._inbox.get(timeout=timeout_s)
        except Empty:
            return None
        if isinstance(heard, dict):
            return heard
        return self._answer(heard) if heard in self._given else None

    def close(self) -> None:
        """Takes back what is not done; what workers are at goes on to its end."""
        for future in self._given:
            future.release()
        if self._is_subscribed and self._client.status == "running":
            self._client.unsubscribe_topic(self._topic)

    def _answer(self, future: Any) -> Answer | None:  # noqa: ANN401
        """What came of a future that is done; None if its result is being made once more."""
        from distributed import KilledWorker

        task = self._given.pop(future)
        results: Any = None
        try:
            if future.status == "error":
                error = future.exception(timeout=ANSWER_S)
                reason = str(error).strip().partition("\n")[0]
                died = isinstance(error, KilledWorker)
                results = Breakdown(f"{type(error).__name__}: {reason}", died)
            else:
                results = future.result(timeout=ANSWER_S)
        except TimeoutError:  # the worker died with the result in hand
            self._given[future] = task
            future.add_done_callback(self._inbox.put)
            return None
        except (CancelledError, OSError):
            # The connection was lost, and with it what was given and who listens to what.
            self._is_subscribed = False
        future.release()
        if isinstance(results, FcacheError):
            raise results
        return Answer(task, results)


class SchedulerWatch:
    """Counts the workers of a scheduler; tells when there are none, or when it is gone.

    Args:
        client: A connected ``distributed.Client``.
        name: What ``--scheduler`` says, for messages.
        why_none: Asked while there is no worker; an error says that there will be none.
    """

    def __init__(
        self,
        client: Any,  # noqa: ANN401 - dask has no types
        name: str,
        why_none: Callable[[], FcacheError | None],
    ) -> None:
        self._client = client
        self._name = name
        self._why_none = why_none
        self._count = 0
        self._asked_s = -COUNT_S
        self._answered_s = self._staffed_s = time.monotonic()
        self._told = ""

    @property
    def is_connected(self) -> bool:
        """Whether tasks can be given."""
        return bool(self._client.status == "running")

    def count(self) -> int:
        """Returns how many workers there are, as far as is known.

        Raises:
            FcacheError: the scheduler is lost, or there will be no workers.
        """
        if self._client.status in {"closing", "closed"}:
            raise self.lost()
        if self.is_connected:
            self._asked_s = time.monotonic()
            try:
                self._count = len(self._client.nthreads(callback_timeout=ANSWER_S))
            except (OSError, TimeoutError):
                if time.monotonic() - self._answered_s > LOST_S:
                    raise self.lost() from None
            else:
                self._answered_s = time.monotonic()
        if not self._count and (error := self._why_none()):
            raise error
        return self._count

    def look(self, report: Report) -> int:
        """Returns how many workers are heard of, and tells where that keeps the job waiting.

        Raises:
            FcacheError: the scheduler is lost, or there will be no workers.
        """
        now = time.monotonic()
        if not self.is_connected or not self._count or now - self._asked_s >= COUNT_S:
            self.count()
        if self._count:
            self._staffed_s = now
        silent = not self.is_connected or self._asked_s - self._answered_s > PATIENCE_S
        if silent:
            self._tell("scheduler_silent", report)
        elif now - self._staffed_s > PATIENCE_S:
            self._tell("workers_lost", report)
        elif self._count:
            self._tell("", report)
        return 0 if silent else self._count

    def _tell(self, event: str, report: Report) -> None:
        if event != self._told:
            self._told = event
            report({"event": event or "back", "scheduler": self._name, "workers": self._count})

    def lost(self) -> FcacheError:
        """Returns the error that ends the job."""
        return FcacheError(
            f"the scheduler at {self._name} is lost: it no longer answers. Every committed shard "
            "is kept. Start a scheduler and workers again; the same command, with their address, "
            "goes on from there."
        )


def _on_worker(
    task: ShardTask, settings: WorkerSettings, topic: str
) -> list[TaskResult] | FcacheError:
    """Runs a task on a dask worker.

    What the user can mend is handed back as a value: trying again would not mend it.
    """
    from distributed import get_worker

    worker = get_worker()

    def report(event: dict[str, Any]) -> None:
        worker.log_event(topic, {**event, "worker": worker.address})

    try:
        return run_task(task, settings, report)
    except FcacheError as error:
        return error
