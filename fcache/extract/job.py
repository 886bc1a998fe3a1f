"""Running an extraction: reserve rows, hand tasks out, survive what happens, tidy up."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

from fcache.config import ExtractConfig
from fcache.errors import InterruptedJobError
from fcache.extract.cluster import Executor, open_executor
from fcache.extract.plan import ExtractPlan, make_tasks
from fcache.extract.producer import ProducerSettings
from fcache.extract.worker import TaskResult, WorkerSettings
from fcache.manifest import Manifest
from fcache.store.cache import create_root
from fcache.store.index import ViewIndex
from fcache.store.records import Outcome

STALE_TMP_S = 3600.0  # longer than a shard takes anywhere
WAIT_S = 2.0  # between looks at shards that another job writes

Report = Callable[[dict[str, Any]], None]


@dataclass(slots=True)
class JobSummary:
    """What an extraction did.

    Attributes:
        quarantined: Video id and reason of every video that cannot be used.
        seconds: Time the workers were at work, start-up excluded.
    """

    num_videos: int = 0
    num_frames: int = 0
    size_bytes: int = 0
    seconds: float = 0.0
    quarantined: dict[str, str] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Frames per second."""
        return self.num_frames / self.seconds if self.seconds > 0 else 0.0


def run_job(
    plan: ExtractPlan,
    manifest: Manifest,
    config: ExtractConfig,
    *,
    scheduler: str,
    report: Report,
) -> JobSummary:
    """Extracts what a plan says is missing.

    Every commit is atomic: after a crash, a kill or Ctrl-C the same command goes on.

    Raises:
        NoSpaceError: the disk or the quota does not hold it.
        InterruptedJobError: Ctrl-C; what is committed stays.
        FcacheError: nothing can be extracted as asked.
    """
    plan.check_space(config.max_bytes)
    create_root(plan.cache)
    made = {"created_s": round(time.time(), 3), "recipe": config.model_dump(mode="json")}
    index = ViewIndex.create(plan.cache, plan.identity, made)
    index.embed(manifest.model_dump(mode="json"), manifest.sha256)
    index.sweep(STALE_TMP_S, time.time())
    summary = JobSummary(num_videos=len(plan.sources))
    for rejected in plan.rejected:
        summary.quarantined[rejected.source.video_id] = rejected.reason
        index.end(
            Outcome(rejected.item, "quarantined", 0, rejected.reason, rejected.source.video_id)
        )
    index.reserve((s.request for s in plan.sources), (s.name for s in plan.sources))
    for planned in plan.todo():
        index.release(planned.request.item)
    if any(True for _ in plan.todo()):
        settings = WorkerSettings(
            view=index.folder,
            producer=ProducerSettings(
                backbone=config.backbone,
                dtype=config.dtype,
                device=config.device,
                compile=config.compile,
                weights_sha256=plan.identity["backbone"]["weights_sha256"],
            ),
            selection=config.selection,
            batch=config.batch,
            stop_file=index.index / "claims" / f"{socket.gethostname()}.{os.getpid()}.stop",
        )
        with _stoppable(settings.stop_file, report) as stopped:
            try:
                _work(plan, index, config, settings, scheduler, report, summary)
            finally:
                index.fold()
        if stopped.is_set():
            raise InterruptedJobError(
                f"stopped after {summary.num_frames:,} frames; every committed shard is kept. "
                "The same command goes on from there."
            )
    return summary


def _work(
    plan: ExtractPlan,
    index: ViewIndex,
    config: ExtractConfig,
    settings: WorkerSettings,
    scheduler: str,
    report: Report,
    summary: JobSummary,
) -> None:
    """Hands out tasks until nothing is missing, waiting for shards that other jobs write."""

    def commit(event: dict[str, Any]) -> None:
        summary.num_frames += event["frames"]
        summary.size_bytes += event["bytes"]
        report(event)

    workers = config.workers
    with open_executor(
        scheduler, workers=workers, device=config.device, retries=config.retries
    ) as executor:
        settings = replace(settings, threads=_threads(executor, config, scheduler))
        report({"event": "start", "workers": executor.num_workers})
        started = time.monotonic()
        while True:
            state = index.load()
            fresh = replace(plan, generation=index.generation())
            tasks = [
                task
                for task in make_tasks(fresh, state.items, state)
                if task.item.item not in _ended_badly(state.outcomes)
            ]
            busy = 0
            for result in executor.run(tasks, settings, commit):
                busy += result.status == "busy"
                _note(result, summary, report)
            summary.seconds = time.monotonic() - started
            if not busy or settings.stop_file.exists():
                return
            report({"event": "waiting", "tasks": busy})
            time.sleep(WAIT_S)


def _note(result: TaskResult, summary: JobSummary, report: Report) -> None:
    if result.status == "quarantined":
        summary.quarantined[result.video_id] = result.reason
        report({"event": "quarantine", "video": result.video_id, "reason": result.reason})
    elif result.status == "done":
        report({"event": "task", "video": result.video_id})


def _ended_badly(outcomes: dict[str, Outcome]) -> set[str]:
    return {item for item, outcome in outcomes.items() if outcome.status == "quarantined"}


def _threads(executor: Executor, config: ExtractConfig, scheduler: str) -> int:
    """CPU threads of a worker's network: the cores shared out, where they are all ours."""
    if scheduler != "local" or config.workers < 2:
        return 0
    cores = len(os.sched_getaffinity(0))
    return max(1, cores // executor.num_workers)


@contextmanager
def _stoppable(stop_file: Path, report: Report) -> Iterator[threading.Event]:
    """Ctrl-C once: workers finish the shard at hand. Twice: at once. Nothing committed is lost."""
    stopped = threading.Event()

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        stopped.set()
        stop_file.parent.mkdir(parents=True, exist_ok=True)
        stop_file.touch()
        report({"event": "stopping"})

    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return
    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, before)
        stop_file.unlink(missing_ok=True)
