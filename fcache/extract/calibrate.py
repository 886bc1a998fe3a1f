"""Static channel scales: which frames are looked at, and the largest magnitude of each channel.

The largest magnitude does not depend on who looked at which frame, so the work may be divided in
any way; every frame is computed alone, so that no batch decides a bit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch

from fcache.backbones.backbone import Backbone
from fcache.errors import CacheCorruptError, FeatureError
from fcache.extract.quantise import valid_tokens

MAX_FRAMES = 500
TRAIN = "train"
# A channel that is silent in calibration still needs a scale. At a 64th of the median channel, its
# rounding error is a 64th of theirs, and if it wakes at the median magnitude in some later token
# the other channels of that token keep two levels instead of none. On real Hiera weights the
# weakest channel is at half the median, so only dead ones are lifted.
FLOOR = 2.0**-6


@dataclass(frozen=True, slots=True)
class Maxima:
    """The largest magnitude of each channel over some frames.

    Attributes:
        absmax: S of ``[C]`` float32.
        num_frames: How many frames were looked at.
    """

    absmax: tuple[npt.NDArray[np.float32], ...]
    num_frames: int


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """The channel scales of a view. Two of the same values are equal, whatever frames made them.

    Attributes:
        channel_scales: S of ``[C]`` float32, positive.
        num_frames: How many frames they come from.
        sha256: Names the values: the hash of each stage's shape and float32 bytes.

    Raises:
        ValueError: a scale is not a positive number.
    """

    channel_scales: tuple[npt.NDArray[np.float32], ...]
    num_frames: int
    sha256: str = field(init=False)

    def __post_init__(self) -> None:
        digest = hashlib.sha256()
        kept = tuple(np.array(scale, "<f4") for scale in self.channel_scales)
        for scale in kept:
            if scale.ndim != 1 or not (np.isfinite(scale) & (scale > 0)).all():
                raise ValueError(f"channel scales {scale}; expected a positive one a channel")
            scale.setflags(write=False)
            digest.update(f"{json.dumps(list(scale.shape))}\0".encode())
            digest.update(scale.tobytes())
        object.__setattr__(self, "channel_scales", kept)
        object.__setattr__(self, "sha256", digest.hexdigest())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Calibration) and self.sha256 == other.sha256

    def __hash__(self) -> int:
        return hash(self.sha256)

    @classmethod
    def from_maxima(cls, maxima: Maxima) -> Self:
        """Returns the scales of what was seen: the largest magnitudes, lifted to the floor.

        Raises:
            FeatureError: a magnitude is not a number.
        """
        scales = []
        for stage, absmax in enumerate(maxima.absmax):
            if not np.isfinite(absmax).all():
                raise FeatureError(
                    f"calibration, stage {stage}: the features hold NaN or infinity; expected "
                    "finite values. compute_dtype=float32 rules out overflow."
                )
            live = absmax[absmax > 0]
            floor = np.float32(np.median(live) * FLOOR) if len(live) else np.float32(1)
            scales.append(np.maximum(absmax, floor))
        return cls(tuple(scales), maxima.num_frames)

    def to_json(self) -> dict[str, Any]:
        """Returns plain lists; every float32 is written so that it reads back exactly."""
        return {
            "channel_scales": [scale.tolist() for scale in self.channel_scales],
            "num_frames": self.num_frames,
            "sha256": self.sha256,
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Self:
        """Reads what ``to_json`` wrote.

        Raises:
            CacheCorruptError: the values are not those the hash names.
        """
        scales = tuple(np.array(scale, np.float32) for scale in found["channel_scales"])
        read = cls(scales, int(found["num_frames"]))
        if read.sha256 != found["sha256"]:
            raise CacheCorruptError(
                f"the channel scales hash to {read.sha256[:12]}; expected "
                f"{str(found['sha256'])[:12]}, the calibration this view was made with."
            )
        return read


def calibrate_frames(
    backbone: Backbone,
    canvases: Iterable[npt.NDArray[np.uint8]],  # each [H, W, 3], of any sizes
    valid: Iterable[tuple[int, int]],  # (height, width) of each in pixels
) -> Maxima:
    """Returns the largest magnitudes over frames, in tokens that hold a valid pixel."""
    stages = backbone.description.stages
    device = backbone.mean.device
    absmax = [torch.zeros(stage.channels, dtype=torch.float32, device=device) for stage in stages]
    num_frames = 0
    for canvas, area in zip(canvases, valid, strict=True):
        outputs = backbone(torch.from_numpy(canvas[None]).to(device), area)
        for index, (output, stage) in enumerate(zip(outputs, stages, strict=True)):
            [(rows, columns)] = valid_tokens([area], stage.stride)
            seen = output[0, :rows, :columns].abs().amax((0, 1))
            absmax[index] = torch.maximum(absmax[index], seen)
        num_frames += 1
    return Maxima(tuple(seen.cpu().numpy() for seen in absmax), num_frames)


def merge_maxima(parts: Sequence[Maxima]) -> Maxima:
    """Returns the largest magnitudes over all frames of the parts, in whatever order they come.

    Raises:
        ValueError: there are no parts.
    """
    if not parts:
        raise ValueError("no maxima; expected those of at least one frame")
    by_stage = zip(*(part.absmax for part in parts), strict=True)
    absmax = tuple(np.maximum.reduce(list(stage)) for stage in by_stage)
    return Maxima(absmax, sum(part.num_frames for part in parts))


def choose_frames(
    sources: Sequence[tuple[str, str | None, int]],  # (content hash, split, number of frames)
    at_most: int = MAX_FRAMES,
) -> list[tuple[int, tuple[int, ...]]]:
    """Returns which frames to calibrate on: (position in ``sources``, indexes of its frames).

    Of the train split where one is called that, else of all. Sources are taken in the order of
    their hashes, so the choice does not depend on how they are listed; each gets a first frame
    before any gets a second. A source's frames are evenly spaced, a single one is its middle. The
    same content counts once.
    """
    has_train = any(split == TRAIN for _, split, _ in sources)
    chosen: dict[str, int] = {}
    for position, (content, split, num_frames) in enumerate(sources):
        if num_frames > 0 and (split == TRAIN or not has_train):
            chosen.setdefault(content, position)
    order = [chosen[content] for content in sorted(chosen)][:at_most]
    shares = _shares([sources[position][2] for position in order], at_most)
    return [
        (position, _evenly(sources[position][2], share))
        for position, share in zip(order, shares, strict=True)
        if share
    ]


def _shares(sizes: Sequence[int], total: int) -> list[int]:
    """Deals a total out one by one, in rounds, to those that still have room."""
    shares = [0] * len(sizes)
    while total > 0:
        with_room = [index for index, size in enumerate(sizes) if shares[index] < size]
        if not with_room:
            break
        each = max(1, min(total // len(with_room), min(sizes[i] - shares[i] for i in with_room)))
        for index in with_room[: total // each]:
            shares[index] += each
            total -= each
    return shares


def _evenly(size: int, count: int) -> tuple[int, ...]:
    return tuple((2 * index + 1) * size // (2 * count) for index in range(count))
