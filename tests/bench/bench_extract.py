"""Extraction beside a bare loop of the same network over frames in memory, and beside Ray Data.

Whole jobs run as ``fcache extract`` runs them, with a scheduler and workers of their own, each
between two blocks of a bare loop in a process of the same environment. Steady states are compared:
a worker's begins with its first commit and ends with its last. What is stored is compared first.
A side of 518 px becomes 532, the nearest multiple of 28: 38 x 38 tokens.

    python tests/bench/bench_extract.py [--quick] [--scale N] [--ray PYTHON] [KEY=VALUE ...]

Settings such as ``device=cuda batch=8`` go to jobs and bare loops alike. A GPU wants ``--scale 20``
for as many times the frames. ``--ray`` names an interpreter that has what ``requirements.txt``
says, and fcache's own dependencies. ``--quick`` takes a tiny network, whose ratios mean nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # where `tests` is, when run as a script

import torch

from fcache.extract.producer import choose_device
from tests.bench.bare_loop import BareLoop, Spent, config_of, job_environment, worker_environment
from tests.bench.extract_rows import (
    Timed,
    against_bare,
    beside_ray,
    scheduler,
    two_against_one,
)
from tests.bench.timed_job import TimedJob, check, extract
from tests.bench.timing import Verdict, table
from tests.sources.media import encode, moving_frames

VIDEO_FRAMES = 24
CORES = len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Case:
    """One network on a number of threads, and how much of it runs.

    Attributes:
        words: Settings, as ``fcache extract`` takes them.
        jobs: Its jobs; see ``JOBS``.
        num_videos: Short videos; the long one has as many frames as all of them.
        bare_frames: Frames of a block of the bare loop.
        rounds: How often each job runs.
        size: Height and width of the videos, pixels.
        counts: Whether its ratios mean something.
    """

    name: str
    words: tuple[str, ...]
    jobs: tuple[str, ...]
    num_videos: int
    bare_frames: int
    rounds: int = 1
    threads: int = 1
    size: tuple[int, int] = (720, 1280)
    counts: bool = True


JOBS = {  # what runs, and on how many workers
    "short videos": 1,
    "one long video": 1,
    "two workers": 2,
    "Ray Data": 0,
}
VIEW = ("size=518x518", "patch=14", "compute_dtype=bfloat16", "weights=random:0")
VIT_S = Case(
    "ViT-S, 1 thread", ("model=vit_small_patch14_dinov2", *VIEW), tuple(JOBS), 4, 24, rounds=2
)
VIT_S_2 = replace(VIT_S, name="ViT-S, 2 threads", jobs=("short videos",), threads=2)
VIT_G = Case("ViT-g, 1 thread", ("model=vit_giant_patch14_dinov2", *VIEW), ("short videos",), 3, 4)
TINY_WORDS = ("model=test_vit", "blocks=[1,2,4,5]", "size=32x32", "weights=random:0")
TINY = Case("tiny ViT", TINY_WORDS, tuple(JOBS), 3, 32, size=(48, 64), counts=False)


@dataclass(frozen=True)
class Bench:
    """A case at work.

    Attributes:
        short: Its short videos.
        long: The long one, as a list; empty where no job takes it.
        ray: An interpreter that has Ray Data.
    """

    case: Case
    folder: Path
    short: list[Path]
    long: list[Path]
    ray: str

    @classmethod
    def make(cls, case: Case, folder: Path, ray: str) -> Bench:
        """Encodes the videos, H.264; each is another."""
        folder.mkdir()
        lengths = [VIDEO_FRAMES] * case.num_videos
        if "one long video" in case.jobs:
            lengths.append(VIDEO_FRAMES * case.num_videos)
        paths = [folder / f"video{seed}.mp4" for seed in range(len(lengths))]
        height, width = case.size
        for seed, (path, length) in enumerate(zip(paths, lengths, strict=True)):
            (large,) = moving_frames(1, height + 64, width + 128, seed=seed)
            starts = ((t % 64, 2 * t % 128) for t in range(length))
            frames = [large[y : y + height, x : x + width] for y, x in starts]
            encode(path, frames, options={"preset": "veryfast"})
        return cls(case, folder, paths[: case.num_videos], paths[case.num_videos :], ray)

    def measure(self) -> dict[str, list[Timed]]:
        """Runs the case's jobs, each between two blocks of the bare loop."""
        case = self.case
        timed: dict[str, list[Timed]] = {name: [] for name in case.jobs}
        os.environ.update(job_environment(case.threads))
        with BareLoop(case.words, [*self.short, *self.long], case.threads) as bare:
            wanted = dict(zip([*self.short, *self.long], bare.digests(), strict=True))
            before = bare.run(case.bare_frames)
            for number in range(case.rounds):
                for name in case.jobs:
                    if name == "Ray Data" and (number or not self.ray):
                        continue
                    steady, job = self.run(name, wanted)
                    after = bare.run(case.bare_frames)
                    timed[name].append(Timed(steady, before + after, job))
                    before = after
        return timed

    def run(self, name: str, wanted: Mapping[Path, str]) -> tuple[Spent, TimedJob | None]:
        """Runs a job into a cache that is gone afterwards; checks what it stored."""
        case, cache = self.case, self.folder / "cache"
        videos = self.long if name == "one long video" else self.short
        firsts = {video.stem: wanted[video] for video in videos}
        try:
            if name == "Ray Data":
                return self.run_ray(cache, list(firsts.values())), None
            job = extract(videos, cache, [*case.words, f"workers={JOBS[name]}"])
            check(job, cache, firsts, case.threads)
            return job.steady, job
        finally:
            shutil.rmtree(cache, ignore_errors=True)

    def run_ray(self, output: Path, firsts: list[str]) -> Spent:
        """Runs the job as a Ray Data pipeline."""
        setup = [self.case.words, [str(video) for video in self.short], VIDEO_FRAMES, str(output)]
        done = subprocess.run(
            [self.ray, str(Path(__file__).with_name("ray_peer.py")), json.dumps(setup)],
            env={
                **os.environ,
                **worker_environment(self.case.threads),
                "PYTHONPATH": str(Path(__file__).parents[2]),  # its workers import from there
            },
            check=True,
            stdout=subprocess.PIPE,
        )
        num_frames, wall_s, found = json.loads(done.stdout)
        assert found == firsts, "Ray Data: other features"
        return Spent(num_frames, wall_s, math.nan)

    def bare_scaling(self) -> float:
        """Frames a second of two bare loops at once, over those of one of them."""
        case = self.case
        with ExitStack() as stack:
            loops = [BareLoop(case.words, self.short, case.threads, gpu) for gpu in range(2)]
            for loop in loops:
                stack.enter_context(loop)
                loop.digests()  # warms it up
            alone = loops[0].run(case.bare_frames)
            for loop in loops:
                loop.start(case.bare_frames)
            return sum(loop.wait().rate for loop in loops) / alone.rate

    def rows(self) -> Iterator[Verdict]:
        """Measures, and yields the rows of the table."""
        case, timed = self.case, self.measure()
        # Where the network has every core, decoding and writing take part of its time.
        has_spare_core = case.threads < CORES or is_on_gpu(case.words)
        for name in ("short videos", "one long video"):
            if name in timed:
                required = 0.95 if case.counts and has_spare_core else None
                yield against_bare(f"{case.name}: {name}", timed[name], required)
        for name in ("short videos", "two workers"):
            if name in timed:
                what, required = f"{case.name}: scheduler, {name}", 0.01 if case.counts else None
                yield scheduler(what, timed[name], required)
        if "two workers" in timed:
            # Two more cores decode and write.
            required = 1.9 if case.counts and (CORES >= 4 or is_on_gpu(case.words)) else None
            two, one = timed["two workers"], timed["short videos"]
            yield from two_against_one(case.name, two, one, self.bare_scaling(), required)
        if "Ray Data" in timed:
            what = f"{case.name}: short videos / Ray Data"
            yield beside_ray(what, timed["short videos"], timed["Ray Data"])


def is_on_gpu(words: Sequence[str]) -> bool:
    """Whether a case runs on a GPU."""
    return choose_device(config_of(words).device).type == "cuda"


def cases(quick: bool, scale: int, words: Sequence[str]) -> Iterator[Case]:
    """Yields what is measured."""
    on_gpu = is_on_gpu([*VIT_S.words, *words])
    # A CPU takes seconds a frame: a few of each video.
    giant = VIT_G if on_gpu else replace(VIT_G, words=(*VIT_G.words, "max_frames=4"))
    for case in (TINY,) if quick else (VIT_S, giant) if on_gpu else (VIT_S, VIT_S_2, giant):
        one_gpu = on_gpu and torch.cuda.device_count() == 1
        yield replace(
            case,
            words=(*case.words, *words),
            jobs=tuple(name for name in case.jobs if not (one_gpu and name == "two workers")),
            num_videos=case.num_videos * scale,
            bare_frames=case.bare_frames * scale,
        )


def main() -> None:
    """Measures every case and prints one table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("words", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--scale", type=int, default=1)
    parser.add_argument("--ray", default="", metavar="PYTHON")
    parser.add_argument("--folder", type=Path, default=None)
    options = parser.parse_args()
    os.environ["FCACHE_NO_MEMO"] = "1"  # its inputs are gone afterwards
    verdicts = []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for number, case in enumerate(cases(options.quick, options.scale, options.words)):
            bench = Bench.make(case, Path(folder) / str(number), options.ray)
            verdicts += list(bench.rows())
            print(verdicts[-1].row(), file=sys.stderr)
    print(table(verdicts))


if __name__ == "__main__":
    main()
