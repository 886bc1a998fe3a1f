"""Where labels stay the same from frame to frame: masks of a bit a pixel."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.integer[Any]]
Mask = NDArray[np.bool_]
Bits = NDArray[np.uint64]  # a mask, a bit a pixel


def bits(mask: Mask) -> Bits:
    """Returns a mask as bits; those beyond its pixels are not set."""
    packed = np.packbits(mask)
    words = np.zeros(-(-len(packed) // 8), np.uint64)
    words.view(np.uint8)[: len(packed)] = packed
    return words


def count(mask: Bits) -> int:
    """Returns how many pixels a mask holds."""
    return int(np.bitwise_count(mask).sum(dtype=np.int64))


class SteadyPixels:
    """Constant pixels of a video's last frames.

    Holds a frame, and two bits a pixel for each frame of the longest clip: where truth, and where
    both labels, are those of the frame before. A clip's constant pixels are the bits that are set
    in all its frames but the first.

    Args:
        longest: Frames of the longest clip.
    """

    def __init__(self, longest: int) -> None:
        self._last: tuple[Labels, Labels] | None = None
        self._steady: deque[tuple[Bits, Bits]] = deque(maxlen=longest - 1)
        self._everywhere: Bits = np.zeros(0, np.uint64)

    @property
    def shape(self) -> tuple[int, ...] | None:
        """[height, width] of the last frame, None before the first."""
        return None if self._last is None else self._last[0].shape

    def add(self, truth: Labels, prediction: Labels) -> None:
        """Adds the next frame."""
        if self._last is None:
            self._everywhere = bits(np.ones(truth.shape, np.bool_))
        else:
            same_truth = bits(truth == self._last[0])
            same_both = bits(prediction == self._last[1])
            same_both &= same_truth
            self._steady.append((same_truth, same_both))
        self._last = truth, prediction

    def constant(self, lengths: Iterable[int]) -> Iterator[tuple[int, tuple[Bits, Bits]]]:
        """Yields numbers of last frames, ascending, and where truth and both are constant in them.

        The masks are overwritten by the next step.
        """
        truth, both = self._everywhere.copy(), self._everywhere.copy()
        backwards = reversed(self._steady)
        num_frames = 1
        for length in sorted(set(lengths)):
            for same_truth, same_both in islice(backwards, length - num_frames):
                truth &= same_truth
                both &= same_both
            num_frames = length
            yield length, (truth, both)

    def clear(self) -> None:
        """Forgets the video."""
        self._last = None
        self._steady.clear()
