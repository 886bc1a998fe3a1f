"""What loading a clip costs beyond ``View.read``, in processor time of all threads.

    python tests/bench/bench_loader.py [FOLDER]

Clips of one frame at the paper's crop: 4 stages of 38 x 38 tokens with 1536 channels, 18.9 MB with
pixels, and the panoptic label of a 720p frame. ``read`` reads them into one buffer, ``read in
turn`` into as many as a loader has that reads a step of two ahead; ``features`` reads them through
the loader beside labels that cost nothing, ``2 readers`` likewise; ``labels`` makes the targets
alone; ``loader`` does both. The cases take turns, after a round that warms the page cache and
checks the checksums. Wall times of the loaders hold a rest of 0.1 s a round.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import cycle, product
from pathlib import Path

import numpy as np
import torch

from fcache.data.features import CachedFeatures
from fcache.data.loader import ClipLoader
from fcache.data.sampling import ClipRequest, ClipSampler, FrameSampling
from fcache.data.targets import ClipLabels, ClipTargets
from fcache.data.videos import clip_videos
from fcache.store.cache import Allocate, View
from tests.data import clips
from tests.data.clips import Made, PanopticLabels, Placed, blocks, make_view

NUM_STEPS, ROUNDS = 24, 7
REST_S = 0.1
PLACED = Placed((720, 1280), (720, 1280), (60, 400, 604, 604))
VIDEOS = {f"v{k}": Made(4, (PLACED,)) for k in range(6)}


class NoLabels(ClipLabels):
    """Targets without a segment, at no cost."""

    def read(
        self, request: ClipRequest, *, stride: int = 16, allocate: Allocate = np.empty
    ) -> ClipTargets:
        nothing = torch.zeros(0, dtype=torch.int64)
        return ClipTargets(nothing, torch.zeros(0, 1, 608, 608, dtype=torch.bool), nothing)


def make_world(folder: Path) -> tuple[View, ClipLabels]:
    """A view of ViT-g's size and labels of a dozen segments a frame."""
    clips.KINDS["vit_g"] = {
        **clips.KINDS["plain"],
        "backbone": {"kind": "vit", "model": "g", "stages": [{"channels": 1536, "stride": 16}] * 4},
    }
    view = make_view(folder / "cache", VIDEOS, "vit_g")
    labels = PanopticLabels(folder / "labels")
    ids = [0, *range(301, 313)]
    for number, (name, made) in enumerate(VIDEOS.items()):
        for frame in range(made.num_frames):
            label = blocks(720, 1280, ids, 10 * number + frame, cell=80)
            labels.add(name, frame, label, [(one, 10) for one in ids[1:]])
    return view, ClipLabels(labels.reader(), "panoptic")


def make_cases(view: View, labels: ClipLabels) -> dict[str, Callable[[], None]]:
    """What is compared."""
    videos = clip_videos(view, labels.reader, "panoptic")
    sampler = ClipSampler(videos, FrameSampling(), batch=2)
    requests = [request for step in range(NUM_STEPS) for request in sampler.clips(step)]
    source = CachedFeatures(view)

    def read(num_buffers: int) -> Callable[[], None]:
        buffers = cycle([source.empty(requests[:1]) for _ in range(num_buffers)])

        def run() -> None:
            for request in requests:
                source.read(request, next(buffers))

        return run

    def targets() -> None:
        for request in requests:
            labels.read(request)

    def load(of: ClipLabels, num_readers: int) -> Callable[[], None]:
        steps = iter(ClipLoader(view, sampler, of, num_readers=num_readers))

        def run() -> None:
            for _ in range(NUM_STEPS):
                next(steps)
            time.sleep(REST_S)  # readers end the step ahead

        return run

    nothing = NoLabels(labels.reader, "panoptic")
    return {
        "read": read(1),
        "read in turn": read(4),
        "features": load(nothing, 1),
        "2 readers": load(nothing, 2),
        "labels": targets,
        "loader": load(labels, 1),
    }


def main(folder: Path) -> None:
    """Prints processor and wall time of a clip for every case."""
    cases = make_cases(*make_world(folder))
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
    for number in range(ROUNDS + 1):
        for name, case in cases.items():
            wall, cpu = time.perf_counter(), time.process_time()
            case()
            spent = time.process_time() - cpu, time.perf_counter() - wall
            if number:
                taken[name].append(spent)
    num_clips = 2 * NUM_STEPS
    print(f"{num_clips} clips, {ROUNDS} rounds, medians, ms a clip")
    for name, pairs in taken.items():
        cpu_ms, wall_ms = (
            1e3 * statistics.median(one) / num_clips for one in zip(*pairs, strict=True)
        )
        print(f"{name:12} cpu {cpu_ms:7.2f}   wall {wall_ms:7.2f}")
    for name, base in product(("features", "2 readers", "loader"), ("read", "read in turn")):
        ratios = [a[0] / b[0] for a, b in zip(taken[name], taken[base], strict=True)]
        print(f"{name} / {base}, cpu: {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as made:
            main(Path(made))
