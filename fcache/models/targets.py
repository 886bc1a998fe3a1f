"""What a prediction is compared with: the segments of one image."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Targets:
    """The segments of one image, one frame, or one clip whose frames are stacked vertically.

    A video frame lists every segment of its clip: one that is absent there keeps its class and has
    an empty mask, as in the official training.
    """

    classes: Tensor  # [N] int64, class indices
    masks: Tensor  # [N, height, width] bool or uint8, at the padded full resolution
    extent: tuple[float, float] = (1.0, 1.0)
    """The valid part of width and height; loss points are drawn inside it."""
