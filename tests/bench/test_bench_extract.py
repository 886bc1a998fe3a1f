"""The extraction bench runs, compares what is stored, and counts a steady state rightly."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench.bare_loop import BareLoop, config_of, job_environment
from tests.bench.bench_extract import TINY, Bench
from tests.bench.timed_job import Stamp, TimedJob, check, extract

SCRIPT = Path(__file__).with_name("bench_extract.py")


def stamp(shard: int, num_frames: int, at_s: float, cpu_s: float) -> Stamp:
    return Stamp(("32x32", shard), num_frames, at_s, cpu_s / 100, cpu_s)


def test_quick_bench_prints_a_row_for_every_requirement(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--quick", "--folder", str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    rows = done.stdout.splitlines()[1:]
    told = [row.removeprefix("tiny ViT: ").split("  ")[0] for row in rows]
    assert told == [
        "short videos / bare loop",
        "one long video / bare loop",
        "scheduler, short videos",
        "scheduler, two workers",
        "two workers / one",
        "two workers / two bare loops",
        "short videos / Ray Data",
    ]
    assert "not run" in rows[-1]
    assert not list(tmp_path.iterdir())


def test_features_that_differ_stop_the_bench(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in job_environment(1).items():
        monkeypatch.setenv(name, value)
    bench = Bench.make(TINY, tmp_path / "bench", ray="")
    words = [*TINY.words, "workers=1"]
    with BareLoop(words, bench.short, 1) as bare:
        firsts = dict(zip([video.stem for video in bench.short], bare.digests(), strict=True))
    job = extract(bench.short, tmp_path / "cache", words)
    check(job, tmp_path / "cache", firsts, 1)
    firsts["video1"] = firsts["video0"]
    with pytest.raises(AssertionError, match="video1: other features"):
        check(job, tmp_path / "cache", firsts, 1)


def test_steady_state_leaves_out_each_workers_first_shard() -> None:
    stamps = [stamp(0, 16, 10, 5), stamp(1, 16, 11, 6), stamp(2, 16, 14, 13), stamp(3, 8, 13, 15)]
    one = TimedJob(1, stamps[:1] + stamps[2:3], dict.fromkeys((s.shard for s in stamps), 77))
    assert (one.steady.num_frames, one.steady.wall_s, one.steady.cpu_s) == (16, 4, 8)
    makers = {s.shard: 77 + number % 2 for number, s in enumerate(stamps)}
    two = TimedJob(2, stamps, makers)
    assert two.steady.rate == pytest.approx(16 / 4 + 8 / 2)
    assert two.steady.frame_cpu_s == pytest.approx(10 / 40)
    with pytest.raises(ValueError, match="too few"):
        _ = TimedJob(1, stamps[:1], makers).steady


def test_bare_loop_computes_in_the_batches_of_a_job(tmp_path: Path) -> None:
    bench = Bench.make(TINY, tmp_path / "bench", ray="")
    words = [*TINY.words, "batch=16"]
    with BareLoop(words, bench.short, 1) as bare:
        assert bare.run(17).num_frames == 16 + 8  # a video of 24 frames ends with half a batch
    assert config_of(words).batch == 16
