"""The segmenter on CamVid's real video, from a cache of real Hiera-Tiny features, beside the probe.

    python -m tests.bench.bench_camvid SHARED [--folder DIR] [--recipe camvid] [KEY=VALUE]...

Extracts CamVid with the SAM 2 Hiera-Tiny weights under SHARED, trains the probe (three seeds) and
the segmenter on the same cache, and prints mIoU on the 101 frames of val over the time of training.
``--dtype int8`` does so on the compact cache. ``--live N`` trains the recipe's head twice for N
steps: on the frozen backbone's cached features, and with the backbone in the loop and trained.
What lies in DIR is used again, so a second run goes on where the first was stopped.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.bench.bench_compact import fcache, make

WEIGHTS = "weights/sam2_hiera_tiny_trunk_fp16.safetensors"
SEEDS = (0, 1, 2)


def probe(cache: Path) -> float:
    """Prints the linear head's mIoU per seed; returns the mean."""
    found = [fcache("probe", cache, f"seed={seed}")["miou"] for seed in SEEDS]
    mean = statistics.mean(found)
    print(f"probe       mIoU {', '.join(f'{one:.4f}' for one in found)}, mean {mean:.4f}")
    return mean


def train(cache: Path, run: Path, words: Sequence[str]) -> dict[str, Any]:
    """Trains, or goes on; returns what ``fcache train --json`` prints."""
    began_s, began = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    found = fcache("train", *words, "--cache", cache, "--run", run)
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = ended.ru_utime + ended.ru_stime - began.ru_utime - began.ru_stime
    print(f"{run.name}: {time.monotonic() - began_s:.0f} s on the clock, {cpu_s:.0f} s CPU")
    return found


def curve(run: Path) -> list[tuple[int, float, float]]:
    """Returns step, seconds of training up to it, and mIoU of every validation."""
    found, seconds, last = [], 0.0, 0
    for line in (run / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        if row["kind"] == "train":
            seconds += row["seconds"] * (row["step"] - last)
            last = row["step"]
        elif row["kind"] == "val":
            found.append((row["step"], seconds, row["miou"]))
    return found


def print_curve(name: str, run: Path, baseline: float | None = None) -> None:
    """Prints mIoU over training time, and the lead over the probe."""
    for step, seconds, miou in curve(run):
        lead = "" if baseline is None else f", {100 * (miou - baseline):+.1f} points on the probe"
        print(
            f"{name:<11} step {step:>5,}, {seconds / 60:6.1f} min of steps: mIoU {miou:.4f}{lead}"
        )


def main() -> None:
    """Runs it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shared", type=Path)
    parser.add_argument("words", nargs="*", help="settings of the recipe")
    parser.add_argument("--folder", type=Path, help="where caches and runs go and stay")
    parser.add_argument("--recipe", default="camvid")
    parser.add_argument("--dtype", default="float16", choices=("float16", "int8"))
    parser.add_argument("--live", type=int, metavar="STEPS")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        cache = folder / "camvid-float16"
        make(options.shared, cache, "float16", None)
        if options.dtype == "int8":
            exact, cache = cache, folder / "camvid-int8"
            fcache("copy", exact, cache, "dtype=int8")
        words = [f"recipe={options.recipe}", *options.words]
        if options.live is None:
            baseline = probe(cache)
            run = folder / f"{options.recipe}-{options.dtype}"
            train(cache, run, words)
            print_curve("segmenter", run, baseline)
            return
        end = ["milestones=[]", f"steps={options.live}"]
        live = ["source=live", "backbone.trainable=true", f"weights={options.shared / WEIGHTS}"]
        for name, more in (("frozen", []), ("trained", live)):
            run = folder / f"{options.recipe}-{name}-{options.live}"
            train(cache, run, [*words, *end, *more])
            print_curve(name, run)


if __name__ == "__main__":
    main()
