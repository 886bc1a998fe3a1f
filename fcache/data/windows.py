"""Token windows: a part of a full view's canvas that features, pixels and labels share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from fcache.data.footage import AnyView, Footage
from fcache.errors import ConfigError
from fcache.store.layout import Bucket

CELL = 32  # pixels; two patches of 16, the coarsest level of the pyramid
Window = tuple[int, int, int, int]  # y, x, height, width on the coarsest stage's token grid


@dataclass(frozen=True, slots=True)
class TokenWindows:
    """Windows of one size, anywhere on the canvas, starting on even tokens.

    A canvas that is smaller along an axis is kept whole along it. With ``patch=14`` a window has
    as many tokens as the same crop has with ``patch=16``, and fewer stored pixels.

    Attributes:
        crop: (height, width), pixels at 16 a token; multiples of 32.
        stride: Stored pixels a token of the coarsest stage.
    """

    crop: tuple[int, int]
    stride: int

    @classmethod
    def of(cls, view: AnyView, crop: tuple[int, int]) -> TokenWindows:
        """Returns the windows of a view.

        Raises:
            ConfigError: a side is no multiple of 32, or the view is of crops.
        """
        for side in crop:
            if side < CELL or side % CELL:
                below = side - side % CELL
                near = ", ".join(str(n) for n in (below, below + CELL) if n > 0)
                raise ConfigError(
                    f"crop={crop[0]}x{crop[1]}: {side} is not a multiple of {CELL} pixels, on "
                    f"which token windows start and end; nearest: {near}."
                )
        if view.identity["view"].get("crop") is not None:
            raise ConfigError(
                f"crop={crop[0]}x{crop[1]} cuts token windows out of a full view, and view "
                f"{view.key} is of crops; leave crop= out, or train on a full view."
            )
        return cls(crop, view.layout.strides[-1])

    def size(self, bucket: Bucket) -> tuple[int, int]:
        """Returns (height, width) of the window on a canvas, in tokens of the coarsest stage."""
        height, width = (self._cells(side) for side in (bucket.height, bucket.width))
        return (
            min(self.crop[0] // CELL, height) * self._cell_tokens,
            min(self.crop[1] // CELL, width) * self._cell_tokens,
        )

    def draw(self, video: Footage, below: Callable[[int], int]) -> tuple[int, int, int, int]:
        """Returns (y, x, height, width) in tokens; at least one pixel of it is of the frame.

        Args:
            video: Whose canvas.
            below: Draws a number 0..n-1.
        """
        bucket, valid = video.bucket, video.valid
        height, width = self.size(bucket)
        y = below(self._starts(bucket.height, height, valid[0]))
        x = below(self._starts(bucket.width, width, valid[1]))
        return y * self._cell_tokens, x * self._cell_tokens, height, width

    def _starts(self, side: int, tokens: int, valid: int) -> int:
        """Number of cells a window of ``tokens`` can start on."""
        free = self._cells(side) - tokens // self._cell_tokens + 1
        return min(free, -(-valid // self._cell_pixels))

    @property
    def _cell_pixels(self) -> int:
        """Stored pixels of a cell: 28 with ``patch=14``."""
        return 28 if self.stride == 14 else CELL

    @property
    def _cell_tokens(self) -> int:
        return self._cell_pixels // self.stride

    def _cells(self, side: int) -> int:
        return side // self._cell_pixels


def cut(maps: Tensor, window: Window | None, scale: int, axis: int) -> Tensor:
    """Returns a window of maps of a canvas; without one the maps as they are.

    Args:
        maps: Of the canvas, or of a larger one at whose top left it lies.
        window: Which part.
        scale: Places of the maps to a token of the coarsest stage, each way.
        axis: Of their rows; columns are the next.
    """
    if window is None:
        return maps
    y, x, height, width = (side * scale for side in window)
    return maps.narrow(axis, y, height).narrow(axis + 1, x, width)
