"""The benches run, and notice when what they time gives other values. No time is asserted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.bench.bench_eta import Told, verdicts
from tests.bench.bench_read import PATTERNS, PEERS, Bench as ReadBench
from tests.bench.bench_write import Bench as WriteBench
from tests.bench.peers import ArrayWriter, FlatFile
from tests.bench.timing import Timing, Verdict, alternate, table
from tests.bench.vitg import QUICK, make_view, name_of

FOLDER = Path(__file__).parent


def run(bench: str, folder: Path, *options: str) -> list[str]:
    """Lines that a bench prints in quick mode, in a process of its own."""
    command = [sys.executable, FOLDER / bench, "--quick", "--folder", folder, *options]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=120)
    assert list(folder.iterdir()) == []  # what it wrote is gone
    return done.stdout.splitlines()


def test_bench_read_times_every_pattern_against_the_limit_and_the_peers(tmp_path: Path) -> None:
    lines = run("bench_read.py", tmp_path)
    for pattern in PATTERNS:
        for verify in ("never", "always"):
            assert any(line.startswith(f"{pattern.name}, verify={verify} / ") for line in lines)
        peers = [] if pattern.scattered else list(PEERS)
        assert [
            name for name in PEERS if any(f"{pattern.name} / {name}" in li for li in lines)
        ] == peers


def test_bench_write_prints_speed_memory_and_volume(tmp_path: Path) -> None:
    text = "\n".join(run("bench_write.py", tmp_path, "--rounds", "1"))
    for what in ("page cache", "fsync on both", "memory beyond", "bytes written", "bytes on disk"):
        assert what in text
    for peer in ("zarr-python", "tensorstore"):
        assert f"shard / {peer}" in text


def test_bench_eta_holds_each_line_against_when_the_job_really_ended() -> None:
    told = [Told(2, 0.05, 99), Told(20, 0.2, 90), Told(60, 0.6, 40), Told(99, 0.99, 3)]
    whole, left, middle = verdicts("job", [*told, Told(100, 1, 0)], began_s=0)
    assert whole.found == pytest.approx(0.1)  # at 20 s: 90 s told, 80 s true
    assert left.found == pytest.approx(0.125)  # the line at 99 s is too near the end to count
    assert middle.found == pytest.approx(0.125)
    assert whole.passed


def read_bench(folder: Path) -> ReadBench:
    view = make_view(folder / "cache", QUICK)
    videos = [view.frames(name_of(video)) for video in range(len(QUICK.lengths))]
    return ReadBench(QUICK, view, videos, FlatFile(folder / "flat", QUICK), {})


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern.name)
def test_bench_read_stops_at_a_reader_that_gives_other_values(pattern, tmp_path: Path) -> None:
    bench = read_bench(tmp_path)
    place = pattern.draw(QUICK, 0)
    out = bench.read(place, "never")
    right = out.blocks[0].copy()

    def sound(_place, memory) -> None:
        memory[...] = right

    def unsound(_place, memory) -> None:
        memory[...] = right
        memory.view(np.uint16)[-1, -1, -1, -1, -1] ^= 1

    bench.check(place, {"sound": sound}, out)
    with pytest.raises(AssertionError, match="unsound"):
        bench.check(place, {"sound": sound, "unsound": unsound}, out)


def test_bench_write_stops_at_a_writer_that_writes_other_values(tmp_path: Path) -> None:
    bench = WriteBench(tmp_path, QUICK)
    kept: list[np.ndarray] = []

    def read(frame: int) -> np.ndarray:
        return kept[-1][frame] if frame < 15 else -kept[-1][frame]

    bench.check({"sound": ArrayWriter(tmp_path, kept.append, lambda frame: kept[-1][frame])})
    with pytest.raises(AssertionError, match="unsound"):
        bench.check({"unsound": ArrayWriter(tmp_path, kept.append, read)})


def test_clips_are_drawn_by_their_seed_inside_their_video() -> None:
    for pattern in PATTERNS:
        drawn = [pattern.draw(QUICK, seed) for seed in range(30)]
        assert drawn == [pattern.draw(QUICK, seed) for seed in range(30)]
        assert len(set(drawn)) > 5
        for place in drawn:
            assert len(place.frames) == pattern.num_frames
            assert 0 <= min(place.frames) <= max(place.frames) < QUICK.lengths[place.video]


def test_every_case_runs_every_round_in_changing_order() -> None:
    calls: list[tuple[str, int]] = []
    rests: list[int] = []
    cases = {name: lambda number, name=name: calls.append((name, number)) for name in "abc"}
    taken = alternate(cases, 6, warm_up=2, between=lambda: rests.append(len(calls)))
    assert [len(timing.cpu_s) for timing in taken.values()] == [6, 6, 6]
    assert sorted(calls) == sorted((name, number) for name in "abc" for number in range(8))
    assert rests == list(range(1, 25))
    orders = {tuple(name for name, number in calls if number == k) for k in range(8)}
    assert len(orders) > 1


def test_speed_is_the_median_of_the_rounds_own_ratios() -> None:
    slow, fast = (
        Timing((4.0, 8.0, 100.0), (6.0, 9.0, 1.0)),
        Timing((2.0, 2.0, 50.0), (2.0, 3.0, 1.0)),
    )
    assert fast.cpu_speed_against(slow) == 2.0
    assert slow.cpu_speed_against(fast) == 0.5
    assert fast.wall_speed_against(slow) == 3.0
    assert (slow.cpu_ms, slow.wall_ms) == (8000.0, 6000.0)


def test_table_says_what_passes_and_what_falls_short() -> None:
    rows = [
        Verdict("speed", 0.9, 0.9),
        Verdict("speed too", 0.899, 0.9),
        Verdict("memory", 2.0, 2, at_most=True),
        Verdict("memory too", 2.1, 2, at_most=True),
        Verdict("beside", 3.0, note="no matter"),
    ]
    words = [line.split() for line in table(rows).splitlines()[1:]]
    assert [line[-1] for line in words] == ["pass", "short", "pass", "short", "matter"]
