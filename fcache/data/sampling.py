"""Which clips a training step sees: a pure function of (seed, step).

Every epoch is a seeded permutation of the videos, each with one of its crops, or with a crop that
is the epoch's alone where crops are drawn afresh. Clips of one geometry are gathered in that order,
and whenever there are enough for a micro-batch they become the next one; what is left at the end of
an epoch comes first in the next. So every video comes once an epoch, a geometry comes as often as
its share of the clips, and nothing depends on how many threads read or on how many ranks train.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, islice, repeat
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fcache.data.footage import Footage
from fcache.data.frame_sampling import FrameSampling as FrameSampling, Uniform
from fcache.data.videos import ClipVideo
from fcache.data.windows import TokenWindows
from fcache.errors import ConfigError

EPOCH, CLIP = 0, 1  # what a stream of random numbers is for


@dataclass(frozen=True, slots=True, eq=False)
class ClipRequest:
    """One clip to be read.

    Attributes:
        video: The frames it comes from: of a view of crops, one crop's.
        frames: T positions among them.
        window: (y, x, height, width) on the coarsest stage's token grid; None for the canvas.
        epoch: How often the video came before.
    """

    video: Footage
    frames: tuple[int, ...]
    window: tuple[int, int, int, int] | None = None
    epoch: int = 0

    @property
    def draw(self) -> int | None:
        """Which crop of the video, in a view of crops."""
        return self.video.draw

    @property
    def frame_names(self) -> tuple[str, ...]:
        """The names of the frames, which labels join by."""
        return tuple(self.video.names[frame] for frame in self.frames)

    @property
    def name(self) -> str:
        """What errors and logs call the clip; no two clips of a run have the same."""
        crop = "" if self.draw is None else f" crop {self.draw}"
        window = "" if self.window is None else f" window {','.join(map(str, self.window))}"
        return (
            f"video '{self.video.video_id}'{crop} frames {','.join(self.frame_names)}{window} "
            f"epoch {self.epoch}"
        )


class Clips(Protocol):
    """What a loader reads: the clips of every step."""

    @property
    def batch(self) -> int:
        """Clips of a step, over all ranks."""
        ...

    def clips(self, step: int) -> tuple[ClipRequest, ...]:
        """Returns the clips of a step."""
        ...


class ClipSampler:
    """Draws the clips of every step of a run.

    Args:
        videos: What clips are drawn from; their order does not matter.
        sampling: Which frames.
        batch: Clips of a step, over all ranks.
        micro_batch: Clips that share a geometry; consecutive ones of a step.
        seed: Of the run.
        windows: Cuts a part of each canvas.

    Raises:
        ConfigError: no video, or a batch that micro-batches do not fill.
    """

    def __init__(
        self,
        videos: Sequence[ClipVideo],
        sampling: FrameSampling,
        *,
        batch: int,
        micro_batch: int = 1,
        seed: int = 0,
        windows: TokenWindows | None = None,
    ) -> None:
        if not videos:
            raise ConfigError("there is no video to draw clips from; expected at least one.")
        if min(batch, micro_batch) < 1 or batch % micro_batch:
            raise ConfigError(
                f"batch={batch} is not filled by micro-batches of micro_batch={micro_batch} clips; "
                "expected a multiple of it."
            )
        self.videos = tuple(sorted(videos, key=lambda video: video.video_id))
        self.sampling = sampling
        self.batch = batch
        self.micro_batch = micro_batch
        self.seed = seed
        self.windows = windows
        self._num_draws = np.array([len(video.draws) for video in self.videos], np.uint64)
        self._is_fresh = any(video.afresh for video in self.videos)
        self._known: dict[object, int] = {}  # geometries, numbered as they come
        self._codes = self._geometries()
        # Of every epoch begun: its first micro-batch, and the clips that others left it.
        self._starts = [0]
        self._left: list[list[npt.NDArray[np.int64]]] = [[]]
        self._epochs: dict[int, npt.NDArray[np.int64]] = {}

    @property
    def steps_per_epoch(self) -> float:
        """Steps in which every video comes once."""
        return len(self.videos) / self.batch

    def clips(self, step: int) -> tuple[ClipRequest, ...]:
        """Returns the clips of a step, ``batch`` of them, whatever was asked for before."""
        per_step = self.batch // self.micro_batch
        groups = [
            self._micro_batch(number) for number in range(step * per_step, (step + 1) * per_step)
        ]
        return tuple(self._request(*clip) for group in groups for clip in group.tolist())

    def _geometries(self) -> npt.NDArray[np.int64]:  # [videos, most draws]
        """The number of the geometry of each video's draws."""
        codes = np.zeros((len(self.videos), int(self._num_draws.max())), np.int64)
        for row, video in enumerate(self.videos):
            for k, draw in enumerate(video.draws):
                codes[row, k] = self._code(draw)
        return codes

    def _code(self, frames: Footage) -> int:
        """The number of the geometry of clips of some frames."""
        bucket = frames.bucket
        geometry = bucket if self.windows is None else self.windows.size(bucket)
        return self._known.setdefault(geometry, len(self._known))

    def _drawn(self, epoch: int, row: int, draw: int) -> Footage:
        """The frames that a clip of an epoch comes from."""
        video = self.videos[row]
        return video.draws[draw] if video.afresh is None else video.afresh(epoch)

    def _micro_batch(self, number: int) -> npt.NDArray[np.int64]:  # [micro_batch, 3]
        """The (epoch, video, draw) of each clip of a micro-batch, counted from the run's start."""
        while self._starts[-1] <= number:
            self._epoch(len(self._starts) - 1)
        epoch = bisect_right(self._starts, number) - 1
        clips: npt.NDArray[np.int64] = self._epoch(epoch)[number - self._starts[epoch]]
        return clips

    def _epoch(self, epoch: int) -> npt.NDArray[np.int64]:  # [micro-batches, micro_batch, 3]
        """The micro-batches that become full in an epoch, in the order they do."""
        if epoch in self._epochs:
            return self._epochs[epoch]
        uniform = Uniform(self.seed, EPOCH, epoch)
        count, size = len(self.videos), self.micro_batch
        order = np.argsort(uniform.many(count), kind="stable")
        draws = ((uniform.many(count) >> np.uint64(32)) * self._num_draws) >> np.uint64(32)
        drawn = draws.astype(np.int64)[order]
        stream = np.stack([np.full(count, epoch), order, drawn], axis=1)
        codes = self._codes[order, drawn]
        if self._is_fresh and size > 1:  # one clip is of one geometry whatever it is
            codes = np.array([self._code(self._drawn(*clip)) for clip in stream.tolist()])
        full, groups, left = [], [], []
        nothing = np.zeros((0, 3), np.int64)
        for code, before in enumerate(
            islice(chain(self._left[epoch], repeat(nothing)), len(self._known))
        ):
            places = np.flatnonzero(codes == code)
            clips = np.concatenate([before, stream[places]])
            num_full = len(clips) // size
            groups.append(clips[: num_full * size].reshape(num_full, size, 3))
            full.append(places[size - len(before) - 1 :: size][:num_full])
            left.append(clips[num_full * size :])
        made = np.concatenate(groups)[np.argsort(np.concatenate(full))]
        if epoch == len(self._starts) - 1:
            self._starts.append(self._starts[-1] + len(made))
            self._left.append(left)
        # A step may reach over the end of an epoch, and what is read ahead may be in the next.
        self._epochs = {e: kept for e, kept in self._epochs.items() if abs(e - epoch) < 2}
        self._epochs[epoch] = made
        return made

    def _request(self, epoch: int, row: int, draw: int) -> ClipRequest:
        frames, labelled = self._drawn(epoch, row, draw), self.videos[row].labelled[draw]
        uniform = Uniform(self.seed, CLIP, epoch, row)
        chosen = self.sampling.draw(len(labelled), uniform)
        return ClipRequest(
            frames,
            tuple(labelled[position] for position in chosen),
            None if self.windows is None else self.windows.draw(frames, uniform.below),
            epoch,
        )


class ClipsInOrder:
    """Clips in a given order, such as those of a validation.

    Args:
        requests: What is read, once.
        batch: Clips of a step; the last step has what is left.
    """

    def __init__(self, requests: Sequence[ClipRequest], batch: int = 1) -> None:
        self.requests = tuple(requests)
        self.batch = batch

    @property
    def num_steps(self) -> int:
        """Steps in which everything is read."""
        return -(-len(self.requests) // self.batch)

    def clips(self, step: int) -> tuple[ClipRequest, ...]:
        """Returns the clips of a step."""
        return self.requests[step * self.batch : (step + 1) * self.batch]
