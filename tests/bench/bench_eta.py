"""How true the time left is that ``fcache extract`` tells, on videos of mixed lengths and canvases.

One whole job for each number of workers; every progress line after 10 % of the frames is held
against when the job really finished. Two errors: of the time left as a part of the whole time, and
as a part of what was really left (while that is at least a tenth of the whole).

    python tests/bench/bench_eta.py [--quick] [--workers 1 2] [KEY=VALUE ...]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # where `tests` is, when run as a script

from tests.bench.timing import Verdict, table
from tests.sources.media import encode, moving_frames

LENGTHS = (8, 200, 17, 33, 96, 5, 64, 150, 24, 12, 80, 48, 3, 120, 40, 10, 56, 28)
SIZES = ((240, 426), (240, 320), (426, 240), (240, 240))  # height, width, taken in turn
SETTINGS = ("model=vit_small_patch14_dinov2", "weights=random:0", "short_side=240")
QUICK = ("model=test_vit", "blocks=[1,2,4,5]", "weights=random:0", "short_side=32")
FROM_SHARE = 0.1  # of the frames
ALLOWED = 0.15


@dataclass(frozen=True, slots=True)
class Told:
    """One progress line: when it came, what was done, and the time left it told."""

    at_s: float
    share: float
    left_s: float


def run(folder: Path, cache: Path, words: Sequence[str]) -> list[Told]:
    """Runs a job and returns what it told; the last is its end."""
    command = [sys.executable, "-m", "fcache", "extract", folder, "--cache", cache, *words]
    told = []
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        assert process.stderr is not None
        for line in process.stderr:
            event = json.loads(line) if line.startswith(b"{") else {}
            if event.get("event") == "progress" and event.get("unit") == "frames":
                share = event["done"] / event["total"]
                left = float("inf") if event["eta_s"] is None else event["eta_s"]
                told.append(Told(time.monotonic(), share, left))
    if process.returncode or not told or told[-1].share != 1:
        raise SystemExit(f"{' '.join(map(str, command))} ended with {process.returncode}")
    return told


def verdicts(name: str, told: Sequence[Told], began_s: float) -> list[Verdict]:
    """Returns the largest errors of the lines that count."""
    whole_s = told[-1].at_s - began_s
    lines = [one for one in told[:-1] if one.share >= FROM_SHARE]
    of_whole, of_left = [], []
    for one in lines:
        left_s = told[-1].at_s - one.at_s
        error_s = abs(one.left_s - left_s)
        of_whole.append(error_s / whole_s)
        if left_s >= whole_s / 10:
            of_left.append(error_s / left_s)
    note = f"{len(lines)} lines, {whole_s:.0f} s"
    return [
        Verdict(f"{name}: error / whole time, largest", max(of_whole), ALLOWED, True, note),
        Verdict(f"{name}: error / time left, largest", max(of_left), note=f"{len(of_left)} lines"),
        Verdict(f"{name}: error / time left, median", sorted(of_left)[len(of_left) // 2]),
    ]


def main() -> int:
    """Runs the bench; 1 if a figure falls short."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("words", nargs="*", metavar="KEY=VALUE")
    asked = parser.parse_args()
    shrink = 8 if asked.quick else 1
    words = [*(QUICK if asked.quick else SETTINGS), *asked.words]
    found: list[Verdict] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "videos"
        folder.mkdir()
        for number, length in enumerate(LENGTHS):
            height, width = (side // shrink * 2 // 2 for side in SIZES[number % len(SIZES)])
            frames = moving_frames(length, height - height % 2, width - width % 2, seed=number)
            encode(folder / f"v{number:02d}.mp4", frames)
        for workers in asked.workers:
            cache = Path(temporary) / f"cache{workers}"
            told = run(folder, cache, [*words, f"workers={workers}"])
            # The first line comes with the first commit: what it took began about that long before.
            began_s = told[0].at_s - told[0].share * (told[-1].at_s - told[0].at_s)
            found += verdicts(f"workers={workers}", told, began_s)
    print(table(found))
    return 0 if asked.quick or all(one.passed for one in found) else 1


if __name__ == "__main__":
    raise SystemExit(main())
