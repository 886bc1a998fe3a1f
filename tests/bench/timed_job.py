"""An extraction that takes the time at every commit, of itself and of its workers."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fcache.cache import open_cache
from fcache.extract.job import run_job
from fcache.extract.request import plan_request, read_request
from tests.bench.bare_loop import Spent, digest, worker_environment
from tests.extract.running import workers_of

Shard = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Stamp:
    """What was known when the job heard of a commit; CPU seconds since each process began."""

    shard: Shard
    num_frames: int
    at_s: float
    client_cpu_s: float
    workers_cpu_s: float


@dataclass(slots=True)
class TimedJob:
    """An extraction that has run.

    Attributes:
        num_workers: Its workers.
        stamps: Its commits, in the order heard.
        makers: Process id of the worker that made a shard.
        environments: Of each worker, by process id.
    """

    num_workers: int
    stamps: list[Stamp] = field(default_factory=list)
    makers: dict[Shard, int] = field(default_factory=dict)
    environments: dict[int, dict[str, str]] = field(default_factory=dict)

    def hear(self, event: Mapping[str, Any]) -> None:
        """Takes the time at a commit."""
        if event["event"] != "commit":
            return
        at_s, client_cpu_s = time.monotonic(), time.process_time()
        if len(self.environments) < self.num_workers:
            self.environments = {pid: environment_of(pid) for pid in workers_of(os.getpid())}
        shard, workers_cpu_s = (
            (event["bucket"], event["shard"]),
            sum(map(cpu_of, self.environments)),
        )
        self.stamps.append(Stamp(shard, event["frames"], at_s, client_cpu_s, workers_cpu_s))

    @property
    def steady(self) -> Spent:
        """From each worker's first commit to its last; the clock's seconds as of them together.

        Raises:
            ValueError: no worker has made two shards.
        """
        rate = 0.0
        for pid in set(self.makers.values()):
            own = [stamp for stamp in self.stamps if self.makers[stamp.shard] == pid]
            if len(own) > 1:
                rate += sum(s.num_frames for s in own[1:]) / (own[-1].at_s - own[0].at_s)
        if not rate:
            raise ValueError(f"{len(self.stamps)} commits: too few to tell a steady state")
        num_frames = sum(stamp.num_frames for stamp in self.stamps[1:])
        cpu_s = self.stamps[-1].workers_cpu_s - self.stamps[0].workers_cpu_s
        return Spent(num_frames, num_frames / rate, cpu_s)

    @property
    def client_share(self) -> float:
        """CPU time of the job's own process, scheduler included, over time on the clock."""
        first, last = self.stamps[0], self.stamps[-1]
        return (last.client_cpu_s - first.client_cpu_s) / (last.at_s - first.at_s)

    @property
    def client_commit_s(self) -> float:
        """CPU time of the job's own process for a commit."""
        first, last = self.stamps[0], self.stamps[-1]
        return (last.client_cpu_s - first.client_cpu_s) / (len(self.stamps) - 1)


def extract(videos: Sequence[Path], cache: Path, words: Sequence[str]) -> TimedJob:
    """Runs a job as the command line does, in processes of its own; returns how it went."""
    request = read_request([*map(str, videos), *words])
    plan, manifest = plan_request(request, cache)
    job = TimedJob(request.config.workers)
    run_job(plan, manifest, request.config, scheduler="local", report=job.hear)
    shards = open_cache(cache).view().index.load().tables.shards
    columns = (shards[name].to_pylist() for name in ("bucket", "shard", "provenance"))
    for bucket, shard, provenance in zip(*columns, strict=True):
        job.makers[bucket, shard] = json.loads(provenance)["pid"]
    return job


def check(job: TimedJob, cache: Path, wanted: Mapping[str, str], threads: int) -> None:
    """Raises AssertionError if workers had another environment, or other features are stored.

    Args:
        job: The job.
        cache: What it made.
        wanted: The ``digest`` of the first frame of each video.
        threads: Of the network.
    """
    for environment in job.environments.values():
        found = {name: environment.get(name) for name in worker_environment(threads)}
        assert found == worker_environment(threads)
    view = open_cache(cache).view()
    for video, expected in wanted.items():
        stages = view.read(video, [0], pixels=False, verify="always").stages
        assert digest([stage[0] for stage in stages]) == expected, f"{video}: other features"


def environment_of(pid: int) -> dict[str, str]:
    """The environment a process was started in."""
    text = Path(f"/proc/{pid}/environ").read_text()
    return dict(entry.split("=", 1) for entry in text.split("\0") if "=" in entry)


def cpu_of(pid: int) -> float:
    """CPU seconds of a process, all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
