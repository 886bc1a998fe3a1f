"""Which frames of a video make a clip.

Random numbers are the raw 64-bit output of PCG64, which NumPy keeps the same for good; the order of
a resumed run does not depend on NumPy's version.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from fcache.errors import ConfigError


class Uniform:
    """Whole numbers drawn uniformly; the same words give the same numbers.

    Args:
        words: What the numbers are for, none negative.
    """

    def __init__(self, *words: int) -> None:
        self._bits = np.random.PCG64(np.random.SeedSequence(words))

    def below(self, count: int) -> int:
        """Returns a number 0..count-1, uniform to within count / 2**64."""
        return int(self._bits.random_raw()) * count >> 64

    def many(self, size: int) -> npt.NDArray[np.uint64]:
        """Returns numbers 0..2**64-1."""
        return np.asarray(self._bits.random_raw(size), np.uint64)


@dataclass(frozen=True, slots=True)
class FrameSampling:
    """Which frames of a video make a clip, the official way.

    ``reference`` draws a reference frame and the others, with replacement, from the frames at most
    ``range_frames`` away from it; sorted. ``consecutive`` draws a start; as in the official code
    the last possible one is never drawn, unless it is the only one. A video shorter than the clip
    is padded by frames drawn from it, at the end and unsorted.

    Attributes:
        num_frames: T.
        range_frames: Of ``reference``.
        reverse: Turn every second ``consecutive`` clip round.
    """

    num_frames: int = 1
    range_frames: int = 0
    kind: Literal["reference", "consecutive"] = "reference"
    reverse: bool = False

    def __post_init__(self) -> None:
        if self.num_frames < 1 or self.range_frames < 0:
            raise ConfigError(
                f"num_frames={self.num_frames}, range_frames={self.range_frames}; expected at "
                "least one frame and no negative range."
            )
        if self.kind == "reference" and self.num_frames > 1 and not self.range_frames:
            raise ConfigError(
                f"num_frames={self.num_frames} with range_frames=0 would repeat one "
                "frame; expected range_frames of at least 1."
            )

    @classmethod
    def official(
        cls, num_frames: int, range_frames: int, *, reverse: bool = False
    ) -> FrameSampling:
        """Returns the sampling that the official settings mean.

        It is ``consecutive`` where the clip is as long as the whole range, ``2 * range + 1``.
        """
        whole = 2 * range_frames + 1 == num_frames
        return cls(num_frames, range_frames, "consecutive" if whole else "reference", reverse)

    def draw(self, length: int, uniform: Uniform) -> tuple[int, ...]:
        """Returns T positions in a video of ``length`` frames."""
        if self.kind == "consecutive":
            return self._consecutive(length, uniform)
        reference = uniform.below(length)
        first = max(0, reference - self.range_frames)
        last = min(length - 1, reference + self.range_frames)
        others = []
        for _ in range(self.num_frames - 1):
            # Any frame of the range but the reference; of a single frame, itself.
            other = first + uniform.below(max(1, last - first))
            others.append(min(other + (other >= reference), last))
        return tuple(sorted([reference, *others]))

    def _consecutive(self, length: int, uniform: Uniform) -> tuple[int, ...]:
        count = min(length, self.num_frames)
        start = uniform.below(max(1, length - count))
        frames = list(range(start, start + count))
        frames += [uniform.below(length) for _ in range(self.num_frames - count)]
        if self.reverse and uniform.below(2):
            frames.reverse()
        return tuple(frames)
