"""Clips: frames read together, and which part of which array they take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fcache.store.layout import ArraySpec, Bucket, ViewLayout
from fcache.store.reader import Window

Allocate = Callable[[tuple[int, ...], str], npt.NDArray[np.generic]]


@dataclass(frozen=True, slots=True, eq=False)
class Clip:
    """Frames read together. Pass one as ``out=`` to read the next clip into the same memory.

    Attributes:
        stages: Per wanted stage ``[T, h, w, C]`` as stored; bfloat16 comes as its bits in uint16,
            int8 to be multiplied by its scales.
        pixels: ``[T, H, W, 3]`` uint8 canvas, zero outside ``valid``; None if not asked for.
        valid: Height and width of the canvas that the frame covers, pixels.
        logical_dtype: What the values of ``stages`` mean.
        scales: Of int8, the token scales ``[T, h, w]`` float16 of each wanted stage.
        channel_scales: Of int8, the channel scales ``[C]`` float32 of each wanted stage.
        blocks: The memory of all of it.
    """

    stages: tuple[npt.NDArray[np.generic], ...]
    pixels: npt.NDArray[np.uint8] | None
    valid: tuple[int, int]
    logical_dtype: str
    blocks: tuple[npt.NDArray[np.generic], ...]
    scales: tuple[npt.NDArray[np.generic], ...] = ()
    channel_scales: tuple[npt.NDArray[np.float32], ...] = ()

    def floats(self, stage: int) -> npt.NDArray[np.floating[Any]]:
        """Returns the values of a wanted stage, ``[T, h, w, C]``.

        float16 and float32 come as they are stored, without a copy; bfloat16 and int8 as float32.
        """
        values = self.stages[stage]
        if self.logical_dtype == "int8":
            tokens = self.scales[stage].astype(np.float32)[..., None]
            return values.astype(np.float32) * tokens * self.channel_scales[stage]
        if self.logical_dtype == "bfloat16":
            return (values.astype(np.uint32) << 16).view(np.float32)
        return values.view(self.logical_dtype)

    def rows(self, start: int, stop: int) -> Clip:
        """Returns some frames of it, in the same memory."""
        part = slice(start, stop)
        return Clip(
            stages=tuple(stage[part] for stage in self.stages),
            pixels=None if self.pixels is None else self.pixels[part],
            valid=self.valid,
            logical_dtype=self.logical_dtype,
            blocks=tuple(block[part] for block in self.blocks),
            scales=tuple(scale[part] for scale in self.scales),
            channel_scales=self.channel_scales,
        )


@dataclass(frozen=True, slots=True)
class Cut:
    """What a clip takes of one array.

    Attributes:
        positions: Chunks of each row.
        window: Part of each chunk; None for all of it.
    """

    spec: ArraySpec
    positions: tuple[int, ...]
    window: Window | None

    def shape(self, num_frames: int) -> tuple[int, ...]:
        """Shape of the memory it fills: ``[T, positions, h, w, C]``, of scales without C."""
        height, width, *channels = self.spec.chunk_shape
        if self.window is not None:
            height, width = self.window.height, self.window.width
        return (num_frames, len(self.positions), height, width, *channels)

    def allocate(self, num_frames: int) -> npt.NDArray[np.generic]:
        """Memory for a number of frames."""
        return np.empty(self.shape(num_frames), self.spec.dtype)


def plan_cuts(
    layout: ViewLayout,
    bucket: Bucket,
    stages: tuple[int, ...],
    window: tuple[int, int, int, int] | None,
    pixels: bool,
) -> list[Cut]:
    """Returns what a clip takes: features, their scales where there are some, pixels.

    Args:
        layout: The view's.
        bucket: The video's canvas.
        stages: Wanted stage outputs.
        window: (y, x, height, width) on the coarsest stage's token grid, or None.
        pixels: Whether the canvas is wanted; then stages may be none.

    Raises:
        ValueError: nothing is wanted, or a stage or the window is outside.
    """
    if not (stages or pixels) or not set(stages) <= set(range(layout.num_stages)):
        raise ValueError(f"stages={stages}: expected some of 0..{layout.num_stages - 1}")
    specs = {spec.name: spec for spec in layout.arrays(bucket)}
    coarsest = layout.strides[-1]
    if window is not None:
        _check_window(window, layout.grid(bucket, layout.num_stages - 1))

    def scaled(stride: int) -> Window | None:
        return window and Window(*(side * coarsest // stride for side in window))

    cuts = []
    kinds = ("features", "scale")[: 2 if layout.compact else 1]
    for kind in kinds if stages else ():
        if layout.plain:
            name = "tokens" if kind == "features" else kind
            cuts.append(Cut(specs[name], stages, scaled(coarsest)))
        else:
            name = "stage" if kind == "features" else kind
            cuts += [Cut(specs[f"{name}{s}"], (0,), scaled(layout.strides[s])) for s in stages]
    return [*cuts, Cut(specs["pixels"], (0,), scaled(1))] if pixels else cuts


def check_blocks(
    blocks: Sequence[npt.NDArray[np.generic]], num_frames: int, cuts: list[Cut]
) -> None:
    """Refuses memory that a read cannot fill in place.

    Raises:
        ValueError: wrong shapes or dtypes, gaps between values, or read-only.
    """
    expected = [(cut.shape(num_frames), cut.spec.dtype) for cut in cuts]
    got = [(block.shape, str(block.dtype)) for block in blocks]
    if got != expected:
        raise ValueError(f"out= holds {got}, this read fills {expected}")
    if not all(block.flags.c_contiguous and block.flags.writeable for block in blocks):
        raise ValueError("out= has a block that is not contiguous or not writeable")


def _check_window(window: tuple[int, int, int, int], grid: tuple[int, int]) -> None:
    y, x, height, width = window
    inside = min(y, x) >= 0 and y + height <= grid[0] and x + width <= grid[1]
    if not inside or height < 1 or width < 1:
        raise ValueError(
            f"window={window} (y, x, height, width) leaves the token grid of {grid[0]} x {grid[1]}"
        )
