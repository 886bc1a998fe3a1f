"""How a frame is resized, flipped and padded into the canvas of a view.

Sides follow detectron2's ``ResizeShortestEdge`` (``int(x + 0.5)``, the long-side limit applied
after the short side), because the published evaluations of the DVIS family resize that way.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from fcache.config import ViewGeometry

CANVAS_MULTIPLE = 32  # pixels; the coarsest stride of the pyramid
PATCH_14_MULTIPLE = 28  # pixels; two patches, so that every level has whole tokens


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a source frame lies on the canvas; all sides and offsets in pixels.

    The source is resized to ``resize_h`` x ``resize_w``; of that the crop is kept, mirrored left
    to right where ``flip``, and put at the top left of the canvas. Crop and flip are in pixels of
    the resized frame; a full view crops nothing.
    """

    source_h: int
    source_w: int
    resize_h: int
    resize_w: int
    crop_y: int
    crop_x: int
    crop_h: int
    crop_w: int
    canvas_h: int
    canvas_w: int
    flip: bool


def place(source_h: int, source_w: int, view: ViewGeometry) -> Placement:
    """Returns the placement of a ``source_h`` x ``source_w`` frame (as displayed) in a view.

    ``patch=16`` keeps the resized sides and pads right and bottom to multiples of 32; ``patch=14``
    moves both sides to the nearest multiple of 28 (at least 28, halves go up) and pads nothing.

    Raises:
        ValueError: a side of the source is below 1.
    """
    if min(source_h, source_w) < 1:
        raise ValueError(f"a frame of {source_h}x{source_w} pixels has an empty side")
    resize_h, resize_w = view.size or _short_side_sizes(source_h, source_w, view)
    if view.patch == 14:
        resize_h, resize_w = _nearest_28(resize_h), _nearest_28(resize_w)
        canvas_h, canvas_w = resize_h, resize_w
    else:
        canvas_h, canvas_w = _ceil_32(resize_h), _ceil_32(resize_w)
    return Placement(
        source_h=source_h,
        source_w=source_w,
        resize_h=resize_h,
        resize_w=resize_w,
        crop_y=0,
        crop_x=0,
        crop_h=resize_h,
        crop_w=resize_w,
        canvas_h=canvas_h,
        canvas_w=canvas_w,
        flip=view.flip,
    )


def draw(
    rgb: np.ndarray,  # [source_h, source_w, 3] uint8
    placement: Placement,
) -> np.ndarray:  # [canvas_h, canvas_w, 3] uint8
    """Returns the canvas: PIL bilinear on uint8, crop, flip, zeros right and bottom.

    Raises:
        ValueError: ``rgb`` is not the frame the placement was made for.
    """
    expected = (placement.source_h, placement.source_w, 3)
    if rgb.shape != expected or rgb.dtype != np.uint8:
        raise ValueError(f"rgb is {rgb.dtype} {rgb.shape}; the placement wants uint8 {expected}")
    resized = rgb
    if (placement.resize_h, placement.resize_w) != rgb.shape[:2]:
        size = (placement.resize_w, placement.resize_h)
        resized = np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.BILINEAR))
    bottom = placement.crop_y + placement.crop_h
    right = placement.crop_x + placement.crop_w
    kept = resized[placement.crop_y : bottom, placement.crop_x : right]
    canvas = np.zeros((placement.canvas_h, placement.canvas_w, 3), dtype=np.uint8)
    canvas[: placement.crop_h, : placement.crop_w] = kept[:, ::-1] if placement.flip else kept
    return canvas


def _short_side_sizes(source_h: int, source_w: int, view: ViewGeometry) -> tuple[int, int]:
    # The order of the float operations is detectron2's: another order rounds some sides elsewhere.
    short = float(view.short_side or 0)
    scale = short / min(source_h, source_w)
    if source_h < source_w:
        height, width = short, scale * source_w
    else:
        height, width = scale * source_h, short
    longest = max(height, width)
    if view.long_side_max is not None and longest > view.long_side_max:
        shrink = view.long_side_max / longest
        height, width = height * shrink, width * shrink
    # A strip such as 1x4000 would round to an empty side.
    return max(1, int(height + 0.5)), max(1, int(width + 0.5))


def _nearest_28(side: int) -> int:
    return max(1, int(side / PATCH_14_MULTIPLE + 0.5)) * PATCH_14_MULTIPLE


def _ceil_32(side: int) -> int:
    return -(-side // CANVAS_MULTIPLE) * CANVAS_MULTIPLE
