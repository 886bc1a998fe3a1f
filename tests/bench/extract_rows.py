"""Rows of the extraction bench: jobs beside the bare loop, the scheduler, Ray Data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from tests.bench.bare_loop import Spent
from tests.bench.timed_job import TimedJob
from tests.bench.timing import Verdict


@dataclass(frozen=True)
class Timed:
    """What a job took, and the blocks of the bare loop before and after it.

    Attributes:
        job: None for a job that is not fcache's.
    """

    steady: Spent
    bare: Spent
    job: TimedJob | None

    @property
    def speed(self) -> float:
        """Frames a second against the bare loop's."""
        return self.steady.rate / self.bare.rate


def against_bare(what: str, timed: Sequence[Timed], required: float | None = None) -> Verdict:
    """Frames a second over the bare loop's around the job."""
    cpu_s = median(one.steady.frame_cpu_s for one in timed)
    bare_cpu_s = median(one.bare.frame_cpu_s for one in timed)
    note = (
        f"{median(one.steady.rate for one in timed):.3g} of "
        f"{median(one.bare.rate for one in timed):.3g} frames/s; CPU s a frame: "
        f"{bare_cpu_s:.3g} of {cpu_s:.3g} are the bare loop's ({bare_cpu_s / cpu_s:.3f})"
    )
    return Verdict(f"{what} / bare loop", median(one.speed for one in timed), required, note=note)


def scheduler(what: str, timed: Sequence[Timed], required: float | None = None) -> Verdict:
    """The CPU time of a job's own process, client and scheduler, over time on the clock."""
    jobs = [one.job for one in timed if one.job is not None]
    share = median(job.client_share for job in jobs)
    note = f"{1e3 * median(job.client_commit_s for job in jobs):.1f} ms of CPU a commit"
    return Verdict(what, share, required, at_most=True, note=note)


def two_against_one(
    what: str, two: Sequence[Timed], one: Sequence[Timed], limit: float, required: float | None
) -> list[Verdict]:
    """Frames a second of two workers over those of one, and over what the machine lets them do.

    Args:
        what: The case.
        two: Jobs of two workers.
        one: Jobs of one, each of the same round.
        limit: The same ratio of bare loops.
        required: What it must reach.
    """
    found = median(a.steady.rate / b.steady.rate for a, b in zip(two, one, strict=True))
    note = f"two bare loops / one: {limit:.3f}"
    return [
        Verdict(f"{what}: two workers / one", found, required, note=note),
        Verdict(f"{what}: two workers / two bare loops", found / limit),
    ]


def beside_ray(what: str, own: Sequence[Timed], peers: Sequence[Timed]) -> Verdict:
    """Frames a second over Ray Data's, each taken against the bare loop around it."""
    if not peers:
        return Verdict(what, math.nan, note="not run: --ray PYTHON")
    peer = median(one.speed for one in peers)
    note = f"Ray Data / bare loop: {peer:.3f}; {peers[0].steady.rate:.3g} frames/s"
    return Verdict(what, median(one.speed for one in own) / peer, note=note)
