"""Running an extraction: reserve rows, hand tasks out, survive what happens, tidy up."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fcache.config import ExtractConfig
from fcache.errors import FcacheError, InterruptedJobError, NoSpaceError
from fcache.extract.cluster import open_executor
from fcache.extract.executors import Executor
from fcache.extract.plan import ExtractPlan
from fcache.extract.producer import ProducerSettings
from fcache.extract.stopping import stoppable
from fcache.extract.tasks import ShardTask, make_tasks
from fcache.extract.worker import TaskResult, WorkerSettings
from fcache.manifest import Manifest
from fcache.report import Report
from fcache.store.cache import create_root
from fcache.store.index import ViewIndex
from fcache.store.records import Outcome
from fcache.store.tables import made_with

STALE_TMP_S = 3600.0  # longer than a shard takes anywhere
WAIT_S = 2.0  # between looks at shards that another job writes
POLL_S = 0.5  # between looks for a first worker
MAX_FAILED = 5  # broken-down videos after which a job that has stored nothing gives up


@dataclass(slots=True)
class JobSummary:
    """What an extraction did.

    Attributes:
        num_frames: Frames this job committed.
        size_bytes: Their bytes on disk.
        seconds: Time from the first worker's being ready on: loading the network is no extraction.
        quarantined: Video id and reason of every video that cannot be used.
        failed: Video id and reason of every video that a worker broke down over.
    """

    num_videos: int = 0
    num_frames: int = 0
    size_bytes: int = 0
    seconds: float = 0.0
    quarantined: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

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

    Args:
        plan: What to extract.
        manifest: What the cache keeps as its origin.
        config: The settings the plan was made with.
        scheduler: Where tasks run; see ``open_executor``.
        report: Told of what happens, from any thread.

    Raises:
        NoSpaceError: the disk or the quota does not hold it.
        InterruptedJobError: Ctrl-C; what is committed stays.
        FcacheError: nothing can be extracted as asked.
        ValueError: the plan is of int8 and lacks the channel scales, see ``calibration_job``.
    """
    if plan.layout.compact and plan.calibration is None:
        raise ValueError("a plan of int8 without channel scales; expected a calibrated request's")
    plan.check_space(config.max_bytes)
    index = _prepare(plan, manifest, config)
    job = _Job(plan, index, config, report)
    with index.folding():
        if any(True for _ in plan.todo()):
            with stoppable(job.settings.stop_file, report):
                job.work(scheduler)
    return job.summary


def _prepare(plan: ExtractPlan, manifest: Manifest, config: ExtractConfig) -> ViewIndex:
    """Makes the cache and the view where there is none, and gives rows to what has none."""
    create_root(plan.cache)
    made = {"created_s": round(time.time(), 3), "recipe": config.model_dump(mode="json")}
    scales = plan.calibration.to_json() if plan.calibration else None
    index = ViewIndex.create(plan.cache, plan.identity, made, scales)
    index.embed(manifest.model_dump(mode="json"), manifest.sha256)
    index.sweep(STALE_TMP_S, time.time())
    for rejected in plan.rejected:
        if not rejected.known:
            video_id = rejected.source.video_id
            index.end(Outcome(rejected.item, "quarantined", 0, rejected.reason, video_id))
    items = index.reserve((s.request for s in plan.sources), (s.name for s in plan.sources))
    for planned in plan.todo():
        item = items[planned.request.item]
        index.release(item.item)
        # Asked of the item, not of the plan: another job may have given it rows meanwhile.
        if item.borrowed and not item.num_rows:
            index.end(Outcome(item.item, "done", 0))  # every frame of it is there
    return index


class _Job:
    """One run over a plan: its summary, its workers' settings, its reports."""

    def __init__(
        self, plan: ExtractPlan, index: ViewIndex, config: ExtractConfig, report: Report
    ) -> None:
        self.summary = JobSummary(
            num_videos=len({one.source.video_id for one in plan.sources}),
            quarantined={one.source.video_id: one.reason for one in plan.rejected},
        )
        self.settings = WorkerSettings(
            view=index.folder.absolute(),
            producer=ProducerSettings(
                backbone=config.backbone,
                dtype=config.dtype,
                device=config.device,
                compile=config.compile,
                weights_sha256=plan.identity["backbone"]["weights_sha256"],
                calibration=plan.calibration,
            ),
            selection=config.selection,
            batch=config.batch,
            mix=config.mix,
            stop_file=(
                index.index.absolute() / "claims" / f"{socket.gethostname()}.{os.getpid()}.stop"
            ),
        )
        self._plan = plan
        self._index = index
        self._config = config
        self._report = report
        self._ready_s: float | None = None
        self._failed: set[str] = set()  # items
        self._made_with = made_with(index.load().tables)
        self._told: list[dict[str, list[str]]] = []

    def work(self, scheduler: str) -> None:
        """Hands out tasks until nothing is missing, waiting for shards that other jobs write.

        Raises:
            InterruptedJobError, NoSpaceError: it was stopped before that.
            FcacheError: nothing can be extracted as asked.
        """
        if not self._tasks(1):  # what is not whole waits for frames that others will lend
            return
        config = self._config
        with open_executor(
            scheduler, workers=config.workers, device=config.device, retries=config.retries
        ) as executor:
            self._await_workers(executor, scheduler)
            told = 0
            while tasks := self._tasks(executor.num_workers):
                busy = 0
                for result in executor.run(tasks, self.settings, self._hear):
                    busy += result.status == "busy"
                    self._note(result)
                if self._ready_s is not None:
                    self.summary.seconds = time.monotonic() - self._ready_s
                if self._is_stopped() or not busy:
                    break
                if busy != told:
                    self._report({"event": "waiting", "videos": busy})
                told = busy
                time.sleep(WAIT_S)
        if self._is_stopped() and self._tasks(1):
            self._raise_stopped()

    def _tasks(self, num_workers: int) -> list[ShardTask]:
        """What is missing at this moment, less what has shown to be impossible."""
        state = self._index.load()
        impossible = {
            item for item, outcome in state.outcomes.items() if outcome.status == "quarantined"
        } | self._failed
        left = [one for one in self._plan.todo() if one.request.item not in impossible]
        items = (state.items[one.request.item] for one in left)
        left_out = [item for item in items if state.is_left_out(item, self._index.feature_array)]
        if left_out:
            self._index.renew(left_out)
            state = self._index.load()
        together = self._config.batch if self._config.mix else 1
        return make_tasks(left, state, self._index.feature_array, max(1, num_workers), together)

    def _await_workers(self, executor: Executor, scheduler: str) -> None:
        if not executor.num_workers:
            self._report({"event": "no_workers", "scheduler": scheduler})
            while not executor.num_workers and not self._is_stopped():
                time.sleep(POLL_S)

    def _hear(self, event: dict[str, Any]) -> None:
        """Passes on what workers tell."""
        if event["event"] == "commit":
            self._commit(event)
        elif event["event"] == "ready":
            self._compare(event["provenance"])
            if self._ready_s is None:
                self._ready_s = time.monotonic()
                self._report({"event": "start"})
        else:
            self._report(event)

    def _commit(self, event: dict[str, Any]) -> None:
        """Counts a commit; stops where the quota is reached: a container may promise too little."""
        self.summary.num_frames += event["frames"]
        self.summary.size_bytes += event["bytes"]
        quota = self._config.max_bytes
        if quota is not None and self._plan.cached_bytes + self.summary.size_bytes > quota:
            self.settings.stop_file.touch()
        self._report(event)

    def _compare(self, provenance: Mapping[str, Any]) -> None:
        """Tells where a worker's versions are others than those the view was made with."""
        differing = {
            name: [*sorted(made), found]
            for name, found in provenance.items()
            if (made := self._made_with.get(name)) and found not in made
        }
        if differing and differing not in self._told:
            self._told.append(differing)
            self._report({"event": "provenance", "differences": differing})

    def _note(self, result: TaskResult) -> None:
        summary = self.summary
        if result.status not in {"quarantined", "failed"}:
            return
        if result.status == "failed":
            self._failed.add(result.item)
        named = summary.quarantined if result.status == "quarantined" else summary.failed
        named[result.video_id] = result.reason
        self._report({"event": result.status, "video": result.video_id, "reason": result.reason})
        if len(summary.failed) >= MAX_FAILED and not summary.num_frames:
            raise FcacheError(
                f"{MAX_FAILED} videos failed and none worked, the last by {result.reason}; "
                "--scheduler inline shows where.",
            )

    def _is_stopped(self) -> bool:
        return self.settings.stop_file.exists()

    def _raise_stopped(self) -> None:
        quota = self._config.max_bytes
        if quota is not None and self._plan.cached_bytes + self.summary.size_bytes > quota:
            raise NoSpaceError(
                f"stopped at max_bytes={quota}: the sources hold more frames than they said. "
                "Every committed shard is kept; raise max_bytes= and run the same command."
            )
        raise InterruptedJobError(
            f"stopped after {self.summary.num_frames:,} frames; every committed shard is kept. "
            "The same command goes on from there."
        )
