"""How a frame is resized, cropped, flipped and padded into the canvas of a view.

Sides follow detectron2's ``ResizeShortestEdge`` (``int(x + 0.5)``, the long-side limit applied
after the short side), because the published evaluations of the DVIS family resize that way.

**Canvases are few.** A full view's canvas has sides that are multiples of 32 px up to 1344 px (the
official limit of 1333, padded), of 64 up to 2688, of 128 up to 5376, and so on: a side of at most
``1344 * 2**n`` px has one of ``42 + 21 * n`` values, and above 1344 px padding is less than 5 % of
a side. With ``patch=14`` the multiples are 28, 56, 112 with the same limits, the frame is resized
to them, and a side has one of ``48 + 24 * n`` values. Frames of one view share their short side or
their longest allowed side, so that a view has at most twice as many canvases as a side has values.

**Crops are drawn** once for each (``crop_seed``, video id, draw k) and hold for all frames of the
video. The SHA-256 of the UTF-8 text ``crop:SEED:K:ID`` is read as four big-endian 64-bit numbers
u0..u3; ``u * n >> 64`` makes a number 0..n-1 of each, uniform to within n / 2**64. u0 gives the
short side among the whole numbers of its range, u1 the flip (of 2), u2 the top row and u3 the left
column among those that keep the crop inside the resized frame. Frames are resized, then cropped,
then flipped; a frame that is smaller than the crop along an axis is kept whole along it. The crop
is padded with zeros to multiples of 32 px (``patch=14``: not at all).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from fcache.config import PATCH_14_MULTIPLE, SideRange, ViewGeometry

CANVAS_MULTIPLE = 32  # pixels; the coarsest stride of the pyramid
FINE_SIDE = 1344  # pixels; with every octave above it the multiple doubles


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
    """Returns the placement of a ``source_h`` x ``source_w`` frame (as displayed) in a full view.

    ``patch=16`` keeps the resized sides and pads right and bottom to multiples of 32; ``patch=14``
    moves both sides to the nearest multiple of 28 (at least 28, halves go up) and pads nothing.
    Above 1344 pixels the multiples are coarser, see the module.

    Raises:
        ValueError: a side of the source is below 1, or the view is of crops.
    """
    if view.crop is not None or isinstance(view.short_side, SideRange):
        raise ValueError("a crop view places each draw of a video by itself; call draw_crop")
    return _placed(source_h, source_w, view, view.short_side)


def draw_crop(video_id: str, k: int, source_h: int, source_w: int, view: ViewGeometry) -> Placement:
    """Returns the placement of draw ``k`` of a video in a crop view; the module says how.

    Args:
        video_id: As the manifest calls the video.
        k: Which draw, from 0. Draws do not depend on how many there are.
        source_h: Height of the video's frames as displayed, in pixels.
        source_w: Width, likewise.
        view: Has ``crop``; its ``crop_seed`` seeds the draw.

    Raises:
        ValueError: a side of the source is below 1, or the view is not of crops.
    """
    if view.crop is None:
        raise ValueError("a full view has one placement for all draws; call place")
    digest = hashlib.sha256(f"crop:{view.crop_seed}:{k}:{video_id}".encode()).digest()
    side_u, flip_u, y_u, x_u = (int.from_bytes(digest[i : i + 8], "big") for i in (0, 8, 16, 24))
    short = view.short_side
    if isinstance(short, SideRange):
        short = short.low + _below(short.high - short.low + 1, side_u)
    whole = _placed(source_h, source_w, view, short)
    crop_h = min(view.crop[0], whole.resize_h)
    crop_w = min(view.crop[1], whole.resize_w)
    multiple = 1 if view.patch == 14 else CANVAS_MULTIPLE
    return replace(
        whole,
        crop_y=_below(whole.resize_h - crop_h + 1, y_u),
        crop_x=_below(whole.resize_w - crop_w + 1, x_u),
        crop_h=crop_h,
        crop_w=crop_w,
        canvas_h=_ceil(crop_h, multiple),
        canvas_w=_ceil(crop_w, multiple),
        flip=bool(_below(2, flip_u)),
    )


def _below(count: int, uniform: int) -> int:
    """A number 0..count-1 from a 64-bit one."""
    return uniform * count >> 64


def _placed(source_h: int, source_w: int, view: ViewGeometry, short: int | None) -> Placement:
    """The whole frame in a view whose short side is ``short``, where it has no ``size``."""
    if min(source_h, source_w) < 1:
        raise ValueError(f"a frame of {source_h}x{source_w} pixels has an empty side")
    resize_h, resize_w = view.size or _short_side_sizes(
        source_h, source_w, short or 0, view.long_side_max
    )
    if view.patch == 14:
        resize_h, resize_w = _nearest_canvas(resize_h), _nearest_canvas(resize_w)
        canvas_h, canvas_w = resize_h, resize_w
    else:
        canvas_h, canvas_w = (
            _ceil(side, _multiple(CANVAS_MULTIPLE, side)) for side in (resize_h, resize_w)
        )
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


def _short_side_sizes(
    source_h: int, source_w: int, short_side: int, long_side_max: int | None
) -> tuple[int, int]:
    # The order of the float operations is detectron2's: another order rounds some sides elsewhere.
    short = float(short_side)
    scale = short / min(source_h, source_w)
    if source_h < source_w:
        height, width = short, scale * source_w
    else:
        height, width = scale * source_h, short
    longest = max(height, width)
    if long_side_max is not None and longest > long_side_max:
        shrink = long_side_max / longest
        height, width = height * shrink, width * shrink
    # A strip such as 1x4000 would round to an empty side.
    return max(1, int(height + 0.5)), max(1, int(width + 0.5))


def _multiple(finest: int, side: int) -> int:
    """What a side is a multiple of: ``finest`` up to ``FINE_SIDE``, twice that an octave on."""
    octaves = (-(-side // FINE_SIDE) - 1).bit_length()
    return finest << octaves


def _nearest_canvas(side: int) -> int:
    multiple = _multiple(PATCH_14_MULTIPLE, side)
    return max(1, int(side / multiple + 0.5)) * multiple


def _ceil(side: int, multiple: int) -> int:
    return -(-side // multiple) * multiple
