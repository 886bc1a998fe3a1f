"""The bare loop: the same network over frames in memory, what an extraction is held against.

It runs in a process of its own, in the environment of fcache's workers, and stays between blocks:
an extraction is timed between two of them. Outputs are cast to the stored type and dropped.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))  # where `tests` is, when run as a script

from fcache.config import ExtractConfig, load_recipe, resolve, split_overrides
from fcache.extract.cluster import KEEP_MEMORY
from fcache.sources.decode import decode
from fcache.sources.geometry import draw, place
from fcache.store.layout import SHARD_ROWS

Batch = tuple[np.ndarray, tuple[int, int]]  # canvases [B, H, W, 3] and their valid (height, width)


@dataclass(frozen=True, slots=True)
class Spent:
    """What a number of frames took: seconds on the clock, CPU seconds of all threads."""

    num_frames: int
    wall_s: float
    cpu_s: float

    @property
    def rate(self) -> float:
        """Frames a second."""
        return self.num_frames / self.wall_s

    @property
    def frame_cpu_s(self) -> float:
        """CPU seconds a frame."""
        return self.cpu_s / self.num_frames

    def __add__(self, other: Spent) -> Spent:
        return Spent(
            self.num_frames + other.num_frames,
            self.wall_s + other.wall_s,
            self.cpu_s + other.cpu_s,
        )


def job_environment(threads: int) -> dict[str, str]:
    """What the command line and its user set for a job."""
    return {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": str(threads)}


def worker_environment(threads: int) -> dict[str, str]:
    """What a worker of such a job runs with, as far as it changes the network's speed."""
    return {**job_environment(threads), **{name: str(n) for name, n in KEEP_MEMORY.items()}}


def config_of(words: Sequence[str]) -> ExtractConfig:
    """The settings of an extraction, without its sources."""
    return resolve(ExtractConfig, load_recipe("extract"), split_overrides(words)[1])


def batches(video: Path, config: ExtractConfig) -> Iterator[Batch]:
    """Yields a video's frames on their canvases, in the batches that an extraction computes."""
    frames = [frame.rgb for frame in decode(video, "video", config.selection) if frame]
    at = place(*frames[0].shape[:2], config.geometry)
    canvases = np.stack([draw(frame, at) for frame in frames])
    for first in range(0, len(canvases), SHARD_ROWS):
        shard = canvases[first : first + SHARD_ROWS]
        for start in range(0, len(shard), config.batch):
            yield shard[start : start + config.batch], (at.crop_h, at.crop_w)


def digest(stages: Sequence[np.ndarray]) -> str:
    """Names the bits of one frame's stage outputs, each ``[h, w, C]`` in the stored type."""
    joined = hashlib.sha256()
    for stage in stages:
        joined.update(np.ascontiguousarray(stage).tobytes())
    return joined.hexdigest()


class BareLoop:
    """The process of a bare loop.

    Args:
        words: Settings, as ``fcache extract`` takes them.
        videos: What its frames are taken from.
        threads: Of the network.
        gpu: Which of several it takes.
    """

    def __init__(
        self, words: Sequence[str], videos: Sequence[Path], threads: int, gpu: int = 0
    ) -> None:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        name = visible[gpu] if gpu < len(visible) and visible[gpu] else str(gpu)
        self._process = subprocess.Popen(
            [sys.executable, __file__, json.dumps([list(words), [str(v) for v in videos]])],
            env={**os.environ, **worker_environment(threads), "CUDA_VISIBLE_DEVICES": name},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def digests(self) -> list[str]:
        """Computes the first batch of each video; returns the ``digest`` of its first frame."""
        self._ask("digests", 0)
        return list(self._answer())

    def start(self, num_frames: int) -> None:
        """Begins to compute at least so many frames, in whole batches."""
        self._ask("run", num_frames)

    def wait(self) -> Spent:
        """What the frames begun took."""
        return Spent(*self._answer())

    def run(self, num_frames: int) -> Spent:
        """What at least so many frames take."""
        self.start(num_frames)
        return self.wait()

    def _ask(self, what: str, num_frames: int) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([what, num_frames]) + "\n")
        self._process.stdin.flush()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the bare loop ended with code {self._process.wait()}")
        return json.loads(answer)


def serve() -> None:
    """Runs in the child: answers questions until its parent has no more."""
    import torch

    from fcache.backbones.build import load
    from fcache.extract.producer import TORCH_DTYPES, choose_device

    words, videos = json.loads(sys.argv[1])
    config = config_of(words)
    device = choose_device(config.device)
    backbone = load(config.backbone, device=device, compile=config.compile, keep_hash=False)
    in_memory = [list(batches(Path(video), config)) for video in videos]
    endless = cycle([batch for video in in_memory for batch in video])

    def compute(batch: Batch) -> list[torch.Tensor]:
        canvases, valid = batch
        outputs = backbone(torch.from_numpy(canvases).to(device), [valid] * len(canvases))
        return [stage.to(TORCH_DTYPES[config.dtype]) for stage in outputs]

    def spend(num_frames: int) -> tuple[int, float, float]:
        done, wall_s, cpu_s = 0, time.perf_counter(), time.process_time()
        while done < num_frames:
            batch = next(endless)
            compute(batch)
            done += len(batch[0])
        if device.type == "cuda":
            torch.cuda.synchronize()
        return done, time.perf_counter() - wall_s, time.process_time() - cpu_s

    with torch.inference_mode():
        for line in sys.stdin:
            what, num_frames = json.loads(line)
            answer: Any
            if what == "run":
                answer = spend(num_frames)
            else:
                firsts = (compute(video[0]) for video in in_memory)
                answer = [digest([stage[0].cpu().numpy() for stage in out]) for out in firsts]
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()
