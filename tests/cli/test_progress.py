"""The time left, against simulated jobs whose end is known, and the lines that tell it."""

from __future__ import annotations

import heapq
import json
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from fcache.cli import output
from fcache.cli.eta import Eta
from fcache.cli.output import Progress

SHARD = 16  # frames
FRAME_S = 0.1  # on the small canvas
LARGE = 2.2  # cost of a frame on the large canvas
GAP_S = 0.05  # between videos: opening, the first frames
SEEDS = range(6)


@dataclass(frozen=True)
class Commit:
    time_s: float
    num_frames: int
    cost: float
    worker: str


Video = list[tuple[int, float]]  # shards: frames, cost of a frame


def mixed_videos(rng: random.Random, num_videos: int, *, by_canvas: bool) -> list[Video]:
    """Videos of 5 to 200 frames on one of two canvases, all of the small one first or mixed."""
    drawn = [(rng.choice([1.0, LARGE]), rng.randint(5, 200)) for _ in range(num_videos)]
    if by_canvas:
        drawn.sort(key=lambda video: video[0])
    return [[(min(SHARD, n - k), cost) for k in range(0, n, SHARD)] for cost, n in drawn]


def simulated_job(
    videos: list[Video], num_workers: int, rng: random.Random, ready_s: float = 0.0
) -> list[Commit]:
    """The commits of a job that hands tasks out as ``fcache extract`` does.

    Each worker has a speed of its own (5 %) that drifts by 10 % over minutes, and each shard takes
    up to 10 % more or less. Workers are ready after up to ``ready_s``, the first at once.
    """
    share = sum(map(len, videos)) // (4 * num_workers)
    tasks: list[list[Video]] = [[]]
    for video in videos:
        if tasks[-1] and sum(map(len, tasks[-1])) + len(video) > min(16, max(1, share)):
            tasks.append([])
        tasks[-1].append(video)
    speed = [1 + rng.uniform(-0.05, 0.05) for _ in range(num_workers)]
    phase = [rng.uniform(0, 2 * math.pi) for _ in range(num_workers)]
    period_s = rng.uniform(60, 600)
    free = [(worker and rng.uniform(0, ready_s), worker) for worker in range(num_workers)]
    commits = []
    while tasks:
        time_s, worker = heapq.heappop(free)
        if len(tasks) <= 2 * num_workers:
            tasks = sorted(([video] for task in tasks for video in task), key=lambda t: -len(t[0]))
        for video in tasks.pop(0):
            time_s += GAP_S
            for num_frames, cost in video:
                drift = 1 + 0.1 * math.sin(phase[worker] + 2 * math.pi * time_s / period_s)
                pace = speed[worker] * drift * (1 + rng.uniform(-0.1, 0.1))
                time_s += num_frames * cost * FRAME_S / pace
                commits.append(Commit(time_s, num_frames, num_frames * cost, str(worker)))
        heapq.heappush(free, (time_s, worker))
    return sorted(commits, key=lambda commit: commit.time_s)


def errors(commits: list[Commit], num_workers: int) -> Iterator[tuple[float, float]]:
    """From 10 % on, at every commit but the last: what the estimate is off, in parts of the whole
    duration and of the time left.
    """
    total, done, end_s = sum(commit.cost for commit in commits), 0.0, commits[-1].time_s
    eta = Eta(total, 0.0)
    for commit in commits[:-1]:
        eta.add(commit.time_s, commit.cost, commit.worker, num_workers)
        done += commit.cost
        left_s = eta.left_s(commit.time_s)
        assert left_s is not None
        off_s = abs(commit.time_s + left_s - end_s)
        if done >= total / 10:
            yield off_s / end_s, off_s / (end_s - commit.time_s)


@pytest.mark.parametrize("by_canvas", [False, True], ids=["mixed", "by_canvas"])
@pytest.mark.parametrize(("num_workers", "num_videos"), [(1, 30), (2, 30), (8, 50), (8, 200)])
@pytest.mark.parametrize("ready_s", [0.0, 20.0])
def test_from_a_tenth_on_the_whole_duration_is_known_within_15_percent(
    num_workers: int, num_videos: int, ready_s: float, by_canvas: bool
) -> None:
    close = total = 0
    for seed in SEEDS:
        rng = random.Random(seed)
        videos = mixed_videos(rng, num_videos, by_canvas=by_canvas)
        for of_all, of_left in errors(
            simulated_job(videos, num_workers, rng, ready_s), num_workers
        ):
            assert of_all <= 0.15
            close += of_left <= 0.15
            total += 1
    # Near the end what is left is little, and depends on which worker has the last video.
    assert close / total >= (0.55 if num_videos < 100 and num_workers == 8 else 0.85)


def test_frames_alone_mislead_where_canvases_differ() -> None:
    rng = random.Random(0)
    commits = simulated_job(mixed_videos(rng, 100, by_canvas=True), 1, rng)
    by_frames = [Commit(c.time_s, c.num_frames, c.num_frames, c.worker) for c in commits]
    assert max(of_all for of_all, _ in errors(by_frames, 1)) > 0.25


def test_nothing_is_said_before_the_first_piece_and_nothing_is_left_after_the_last() -> None:
    eta = Eta(32, 100.0)
    assert eta.left_s(105.0) is None
    eta.add(110.0, 16)
    assert eta.left_s(110.0) == pytest.approx(10.0)
    assert eta.left_s(115.0) == pytest.approx(5.0)  # half of the other piece is done by now
    eta.add(120.0, 16)
    assert eta.left_s(120.0) == 0


def test_workers_at_work_together_are_counted_before_their_first_piece() -> None:
    eta = Eta(8 * 10, 0.0)
    eta.add(10.0, 1, "a", num_workers=8)  # the others are about to end theirs
    assert eta.left_s(10.0) == pytest.approx(90.0)


def test_what_was_done_before_the_start_says_nothing_of_the_pace() -> None:
    eta = Eta(1000, 0.0)
    eta.add(0.0, 800)  # found done
    for second in range(1, 6):
        eta.add(second, 10)
    assert eta.left_s(5.0) == pytest.approx(15.0, rel=0.1)


def test_a_pace_that_changes_is_followed() -> None:
    eta, now_s = Eta(3000, 0.0), 0.0
    for piece in range(200):
        now_s += 1.0 if piece < 100 else 2.0
        eta.add(now_s, 10)
    steady_s = 100 * 1.5  # at the mean pace so far
    left_s = eta.left_s(now_s)
    assert left_s is not None
    assert steady_s * 1.1 < left_s < 200.0


def test_progress_lines_tell_the_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [50.0]
    monkeypatch.setattr(output.time, "monotonic", lambda: now[0])
    monkeypatch.delenv("FCACHE_NO_PROGRESS", raising=False)
    with Progress("extract", 100, cost=280.0) as progress:
        now[0] = 60.0  # the network is loaded
        progress.start()
        for _ in range(5):
            now[0] += 10
            progress.advance(10, 1000, cost=10, worker="a")
        now[0] += 20
        progress.advance(10, 1000, cost=23, worker="a")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert lines[-2]["done"] == 50
    assert lines[-2]["eta_s"] == pytest.approx(230.0)  # by frames it would be 50
    assert lines[-1]["done"] == 60
    assert lines[-1]["eta_s"] == pytest.approx(207 * 0.92, rel=0.05)
    assert lines[-1]["bytes_per_s"] == 75  # 3,000 in the last 40 s


def test_a_part_of_the_work_starts_its_own_count(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(output.time, "monotonic", lambda: now[0])
    monkeypatch.delenv("FCACHE_NO_PROGRESS", raising=False)
    with Progress("probe", 10, "steps") as progress:
        for part, total in (("read", 4), ("fit", 40)):
            for done in range(total):
                now[0] += 2
                progress.move(part, done + 1, total)
                if done == 1:
                    (*_, line) = capsys.readouterr().err.splitlines()
                    assert json.loads(line)["eta_s"] == pytest.approx(2 * (total - 2))
