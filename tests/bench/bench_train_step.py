"""What a training step costs: off the cache, with the backbone in the loop, and from memory.

    python tests/bench/bench_train_step.py FOLDER [--model M] [--cases cache,live,memory,eager]

The segmenter of ``segmenter_vipseg`` takes steps of one 604 crop. A rendered set is extracted once
into FOLDER, with random weights; a later call finds it there. Cases, in turns:

- ``cache``: stage outputs are read by the loader's threads.
- ``live``: the backbone runs in the loop, on the cache's pixels, rounded as the cache is.
- ``memory``: the same stage outputs from memory.
- ``eager``: from memory, with the chain of ``grid_sample`` in place of our op.

Each case first takes step 0 from the same weights: the losses of the first three must be equal to
the last bit, the eager one's nearly. Then medians of processor and wall time a step, and the most
memory this process ever held; ``--cases memory`` tells that of a step alone. ``--reading`` takes no
steps: it tells what their batches cost off the cache and from memory, which is all that differs.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fcache.config import SegmenterConfig, load_recipe
from fcache.data.features import CachedFeatures, Features
from fcache.data.sampling import ClipRequest
from fcache.demo.scene import render_set
from fcache.models import deformable
from fcache.store.cache import Allocate, Clip, View
from fcache.train.build import build_segmenter, segmenter_stage
from fcache.train.data import TrainData, open_data, train_loader
from fcache.train.distributed import World
from fcache.train.optimizer import MultiStep, make_optimizer
from fcache.train.source import open_source
from fcache.train.step import TrainStep
from tests.bench.deform_attn_rivals import Shape, eager
from tests.bench.timing import Timing, alternate, median_ratio, timed
from tests.extract.making import extract

REST_S = 0.3  # for readers to end the steps ahead
BATCHES, ROUNDS = 8, 7  # of --reading
NEARLY = 1e-3  # of a loss, whose attention rounds elsewhere
CASES = ("cache", "live", "memory", "eager")


@dataclass(frozen=True)
class Work:
    """What is timed.

    Attributes:
        model: Whose stage outputs.
        view: Of the extraction.
        changes: To the recipe.
        size: (height, width) of the rendered videos.
    """

    model: str
    view: Mapping[str, Any]
    changes: Mapping[str, Any]
    size: tuple[int, int]

    def config(self, source: str) -> SegmenterConfig:
        """The recipe of a case."""
        live = {"source": "live", "live_rounded": True} if source == "live" else {}
        usual = {"amp": "none", "checkpointing": False, "device": "cpu", "val_split": "train"}
        changes = {"batch": 1, "milestones": [], **usual, **self.changes, **live}
        return SegmenterConfig.model_validate({**load_recipe("segmenter_vipseg"), **changes})


PAPER = {"short_side": "720", "crop": "604", "crops": "1", "dtype": "float16", "blocks": "none"}


class InMemory:
    """The features of a view, read once."""

    whole = False

    def __init__(self, view: View) -> None:
        self.cached = CachedFeatures(view)
        self.mean, self.std, self.stride = self.cached.mean, self.cached.std, self.cached.stride
        self.clips = {video: view.read(video) for video in view.videos}

    def empty(self, requests: Sequence[ClipRequest], allocate: Allocate = np.empty) -> Clip:
        """Memory for clips, of which nothing is used."""
        return self.cached.empty(requests, allocate)

    def read(self, request: ClipRequest, out: Clip) -> None:
        """Fills in the pixels; stage outputs stay where they are."""
        assert out.pixels is not None
        whole = self.clips[request.video.video_id]
        assert whole.pixels is not None
        out.pixels[...] = whole.pixels[list(request.frames)]

    def stages(
        self, clip: Clip, requests: Sequence[ClipRequest], pixels: Tensor, dtype: torch.dtype
    ) -> list[Tensor]:
        """The stage outputs, in ``dtype`` as the loop asks for them."""
        [request] = requests
        held = self.clips[request.video.video_id]
        return [torch.from_numpy(s[list(request.frames)]).to(dtype) for s in held.stages]


class Case:
    """Steps of one source, with a model of their own."""

    def __init__(self, name: str, work: Work, data: TrainData, stack: ExitStack) -> None:
        self.name = name
        config = work.config(name)
        module = build_segmenter(config, data.view.layout, len(data.categories))
        stage = segmenter_stage(config, module, data.categories)
        self.step = TrainStep(
            stage,
            make_optimizer(stage.groups()),
            MultiStep((), 1.0),
            clip_norm=config.clip_norm,
        )
        loader = train_loader(data, config, World(), self._features(config, data), 0)
        stack.enter_context(loader)
        self.batches = stack.enter_context(closing(iter(loader)))  # type: ignore[type-var]

    def __call__(self, _round: int = 0) -> float:
        """Takes a step; returns its loss."""
        batch = next(self.batches)
        with eager_attention() if self.name == "eager" else ExitStack():
            return self.step(batch.step, batch.micro_batches).losses["loss"]

    def _features(self, config: SegmenterConfig, data: TrainData) -> Features:
        assert isinstance(data.view, View)
        if self.name in {"memory", "eager"}:
            return InMemory(data.view)
        return open_source(config, data, torch.device("cpu")).features(data.view)


@contextmanager
def eager_attention() -> Iterator[None]:
    """Deformable attention by ``grid_sample``, as other projects fall back to."""
    ours = deformable.ms_deform_attn

    def theirs(
        value: Tensor,
        level_shapes: Sequence[tuple[int, int]],
        reference_points: Tensor,
        offsets: Tensor,
        logits: Tensor,
    ) -> Tensor:
        shape = Shape("", tuple(level_shapes), (), value.shape[2], value.shape[3])
        return eager(shape, safe=False)(value, reference_points, offsets, logits)

    deformable.ms_deform_attn = theirs
    try:
        yield
    finally:
        deformable.ms_deform_attn = ours


def open_work(work: Work, folder: Path) -> TrainData:
    """Renders and extracts what is not there, and opens it."""
    cache = folder / work.model
    if not cache.exists():
        if not (folder / "set").exists():
            height, width = work.size
            counts = {"num_train": 1, "num_val": 1, "num_frames": 2, "fps": 2, "seed": 1}
            render_set(folder / "set", height=height, width=width, **counts)
        extract(folder / "set" / "manifest.toml", cache, model=work.model, first=1, **work.view)
    # One video trains and validates: the set has two, and the first was extracted.
    return open_data(cache, work.config("cache"))


def check_losses(
    cases: Mapping[str, Callable[[], float]],
) -> tuple[dict[str, float], dict[str, Timing]]:
    """Takes each case's first step; returns the losses, and what it took.

    Raises:
        ValueError: the losses are not the same.
    """
    losses: dict[str, float] = {}
    took: dict[str, Timing] = {}
    for name, case in cases.items():
        cpu_s, wall_s = timed(lambda _, name=name, case=case: losses.update({name: case()}), 0)
        took[name] = Timing((cpu_s,), (wall_s,))
    first = next(iter(losses.values()))
    for name, loss in losses.items():
        equal = abs(loss - first) <= NEARLY * first if name == "eager" else loss == first
        if not equal:
            raise ValueError(f"losses of the first step differ: {losses}")
    return losses, took


def report(work: Work, timings: Mapping[str, Timing], losses: Mapping[str, float]) -> str:
    """The figures, a line a case, and their ratios to the first."""
    lines = [f"{work.model}: the losses of the first step agree: {losses}"]
    for name, timing in timings.items():
        lines.append(
            f"{name:8} cpu {timing.cpu_ms / 1e3:8.2f} s   wall {timing.wall_ms / 1e3:8.2f} s   "
            f"{1e3 / timing.wall_ms:.3f} steps/s   ({len(timing.cpu_s)} steps)"
        )
    pairs = [("cache", "memory"), ("live", "cache"), ("eager", "memory")]
    for one, other in pairs:
        if one in timings and other in timings:
            cpu = median_ratio(timings[one].cpu_s, timings[other].cpu_s)
            wall = median_ratio(timings[one].wall_s, timings[other].wall_s)
            lines.append(f"{one} / {other}: {cpu:.3f} in cpu time, {wall:.3f} on the clock")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    lines.append(f"largest memory of the process: {peak:.2f} GB")
    return "\n".join(lines)


def run(work: Work, folder: Path, names: Sequence[str], rounds: int) -> str:
    """Times the cases; returns the figures."""
    with ExitStack() as stack:
        data = open_work(work, folder)
        cases = {name: Case(name, work, data, stack) for name in names}
        losses, first = check_losses(cases)
        if not rounds:
            return report(work, first, losses)
        timings = alternate(cases, rounds, warm_up=0, between=lambda: time.sleep(REST_S))
        return report(work, timings, losses)


def reading(work: Work, folder: Path) -> str:
    """Times the batches of steps that nobody takes; returns the figures."""
    with ExitStack() as stack:
        data = open_work(work, folder)
        assert isinstance(data.view, View)
        config = work.config("cache")

        def batches(features: Features) -> Callable[[int], None]:
            loader = stack.enter_context(train_loader(data, config, World(), features, 0))
            steps = iter(loader)

            def read(_round: int) -> None:
                for _ in range(BATCHES):
                    next(steps).micro_batches[0].to("cpu")
                time.sleep(REST_S)

            return read

        cases = {"cache": CachedFeatures(data.view), "memory": InMemory(data.view)}
        timings = alternate({name: batches(of) for name, of in cases.items()}, ROUNDS)
    told = (f"{name} {timing.cpu_ms / BATCHES:.1f} ms" for name, timing in timings.items())
    return f"{work.model}: a batch alone, cpu: {', '.join(told)} ({ROUNDS} x {BATCHES})"


def main(words: Sequence[str]) -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="vit_small_patch14_dinov2")
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--rounds", type=int, default=5, help="0: the first step is what is told.")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--reading", action="store_true", help="Time the batches alone.")
    parser.add_argument("--make", action="store_true", help="Only extract what is timed later.")
    given = parser.parse_args(words)
    work = Work(given.model, PAPER, {"checkpointing": given.checkpointing}, (640, 704))
    if given.reading:
        print(reading(work, given.folder))
        return
    if given.make:
        open_work(work, given.folder)
        return
    print(run(work, given.folder, given.cases.split(","), given.rounds))


if __name__ == "__main__":
    main(sys.argv[1:])
