"""How long commands take on the bookkeeping of large caches, and how much memory: no frame is read.

Each figure is of whole processes, the best of a few: seconds on the clock less what starting Python
and importing the libraries take, and the largest memory with them. What the imports take stands
beside it. Planning reads a manifest that knows every size, length and hash; ``extract`` on the
finished cache finds nothing to do.

    python tests/bench/bench_scale.py [--quick | --size NAME] [--rounds N] [--folder TEMPORARY]

Sizes: ``vipseg`` (84,750 frames in 3,536 videos), ``large`` (10 million in 417,000; 6 GB of disk
and memory, five minutes), ``long`` (10 million in 3,536). Limits for the last two are ten times
those of the first.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # where `tests` is, when run as a script

from tests.bench.timing import Verdict, table

SIZES = {  # videos, frames
    "quick": (20, 500),
    "vipseg": (3_536, 84_750),
    "large": (417_000, 10_000_000),
    "long": (3_536, 10_000_000),
}
LIMITS = {"quick": 1.0, "vipseg": 1.0, "large": 10.0, "long": 10.0}  # times those of VIPSeg
MAX_PARTS = 10_000  # commit records that are written one by one

# In a process of its own: a child's largest memory is never below what its parent has.
MAKE = """
import sys
from pathlib import Path
from tests.bench.synthetic import Size, make_cache
make_cache(Path(sys.argv[1]), Size(*map(int, sys.argv[2:4])), as_parts=sys.argv[4] == "parts")
"""
OPEN = """
import sys, fcache
cache = fcache.open_cache(sys.argv[1])
videos = cache.videos
print(len(videos), len(cache.view().frames(videos[len(videos) // 2])))
"""
FOLD = """
import sys
from pathlib import Path
from fcache.store.index import ViewIndex
(folder,) = Path(sys.argv[1]).glob("*/index")
ViewIndex(folder.parent).fold()
"""
READING = "import fcache, fcache.cli.main, fcache.store.inspect"
EXTRACTING = f"{READING}, fcache.extract.request, fcache.extract.job"


@dataclass(frozen=True, slots=True)
class Run:
    """What a process took.

    Attributes:
        wall_s: Seconds on the clock.
        cpu_s: CPU seconds, of children too.
        peak_mb: Largest resident memory.
        out: What it printed.
    """

    wall_s: float
    cpu_s: float
    peak_mb: float
    out: str


def run(command: Sequence[object]) -> Run:
    """Runs a command of Python's.

    Raises:
        RuntimeError: it failed; says what it complained of.
    """
    env = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "OMP_NUM_THREADS": "1",
        "FCACHE_NO_MEMO": "1",
        "FCACHE_NO_PROGRESS": "1",
    }
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as complaints:
        started_s = time.perf_counter()
        child = subprocess.Popen(
            [sys.executable, *map(str, command)], stdout=out, stderr=complaints, env=env
        )
        _, status, used = os.wait4(child.pid, 0)
        wall_s = time.perf_counter() - started_s
        out.seek(0), complaints.seek(0)
        if status != 0:
            raise RuntimeError(f"{command} failed: {complaints.read()}")
        return Run(wall_s, used.ru_utime + used.ru_stime, used.ru_maxrss / 1e3, out.read())


def best(command: Sequence[object], rounds: int) -> Run:
    """The quickest of several runs: what else the machine does only adds to it."""
    return min((run(command) for _ in range(rounds)), key=lambda one: one.wall_s)


class Bench:
    """Times commands, and collects verdicts.

    Args:
        times: How many times the limits of VIPSeg's size count.
        rounds: Runs of each command.
    """

    def __init__(self, times: float, rounds: int) -> None:
        self.verdicts: list[Verdict] = []
        self._times, self._rounds = times, rounds
        self._imports: dict[str, Run] = {}

    def time(
        self,
        what: str,
        command: Sequence[object],
        limit_s: float | None = None,
        imports: str = READING,
        *,
        once: bool = False,
    ) -> str:
        """Times a command less its imports; returns what it printed.

        Args:
            what: Is printed beside the figures.
            command: As ``run`` takes it.
            limit_s: What it may take for VIPSeg; None if it is only reported.
            imports: What it imports.
            once: Whether it does its work only the first time.
        """
        base = self._imports.get(imports)
        if base is None:
            base = self._imports[imports] = best(["-c", imports], self._rounds)
        taken = best(command, 1 if once else self._rounds)
        note = (
            f"and imports {base.wall_s:.2f} s; CPU {taken.cpu_s - base.cpu_s:.2f} s and "
            f"{base.cpu_s:.2f} s; peak {taken.peak_mb:,.0f} MB, imports {base.peak_mb:,.0f} MB"
        )
        limit_s = limit_s and limit_s * self._times
        seconds = max(0.0, taken.wall_s - base.wall_s)
        self.verdicts.append(Verdict(f"{what}, s", seconds, limit_s, at_most=True, note=note))
        return taken.out


def bench(folder: Path, name: str, rounds: int) -> list[Verdict]:
    """Makes a cache of a size and times commands on it.

    Raises:
        AssertionError: a command tells other figures than the cache has.
    """
    timed, cache = Bench(LIMITS[name], rounds), folder / "cache"
    num_videos, num_frames = SIZES[name]
    has_parts = num_frames // 10 <= MAX_PARTS
    run(["-c", MAKE, folder, num_videos, num_frames, "parts" if has_parts else "tables"])
    words, frames = (folder / "words").read_text().splitlines(), f"{num_frames:,}"
    if has_parts:
        assert frames in timed.time("ls, nothing folded", _fcache("ls", cache))
        timed.time("fold", ["-c", FOLD, cache], once=True)
    command = ["extract", *words, "--cache", folder / "none", "--plan"]
    assert frames in timed.time("plan", _fcache(*command), 5.0, EXTRACTING)
    opened = timed.time("open, list, frames of one", ["-c", OPEN, cache], 1.0)
    assert opened.split()[0] == str(num_videos)
    assert frames in timed.time("ls", _fcache("ls", cache), 1.0)
    assert frames in timed.time("info", _fcache("info", cache), 1.0)
    listed = timed.time("ls --videos", _fcache("ls", cache, "--videos"))
    assert listed.count("complete") == num_videos
    command = ["extract", *words, "--cache", cache]
    assert "nothing to do" in timed.time("extract again", _fcache(*command), None, EXTRACTING)
    return timed.verdicts


def _fcache(*words: object) -> list[object]:
    return ["-m", "fcache", *words]


@contextmanager
def _emptied(folder: Path | None) -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(dir=folder))
    try:
        yield made
    finally:
        shutil.rmtree(made)


def main() -> None:
    """Prints the figures of one size, or of all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tiny cache, which tells nothing")
    parser.add_argument("--size", choices=[name for name in SIZES if name != "quick"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    names = ["quick"] if options.quick else [options.size] if options.size else [*SIZES][1:]
    for name in names:
        with _emptied(options.folder) as folder:
            num_videos, num_frames = SIZES[name]
            print(f"{name}: {num_frames:,} frames in {num_videos:,} videos", flush=True)
            print(table(bench(folder, name, options.rounds)), flush=True)


if __name__ == "__main__":
    main()
