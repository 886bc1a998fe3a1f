"""Maps as PNGs of the official encodings, and what their JSON says of each segment."""

from __future__ import annotations

import colorsys
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import find_objects

from fcache.manifest import Category
from fcache.models.panoptic import PredictedSegment

Color = tuple[int, int, int]
VOID: Color = (0, 0, 0)
SPREAD = 61  # shades each way along a band, of segments beside their category's colour
_STEP = 100_003  # a prime: visits the SPREAD ** 3 shades in an order that looks like chance
_GOLDEN = 0.618033988749895


class SegmentColors:
    """Gives segments ids that are colours: of their category, or near it where that is taken.

    Ids are a function of the segments and their order alone. Every stuff category has a colour of
    its own, which things do not take: two categories of VIPSeg share one.

    Args:
        categories: In model order.
    """

    def __init__(self, categories: Sequence[Category]) -> None:
        self._base = [_base(category) for category in categories]
        self._taken = {VOID}
        self._shades = {color: _shades(color) for color in self._base}
        self._stuff = {
            index: self._free(self._base[index])
            for index, category in enumerate(categories)
            if not category.isthing
        }

    def ids(self, segments: Sequence[PredictedSegment]) -> NDArray[np.int32]:  # [segments + 1]
        """Returns R + 256 G + 65536 B for each segment number; of no segment, 0."""
        colors = [VOID]
        for segment in segments:
            shared = self._stuff.get(segment.category)
            colors.append(self._free(self._base[segment.category]) if shared is None else shared)
        bands = np.array(colors, np.int32)
        ids: NDArray[np.int32] = (bands << np.array([0, 8, 16], np.int32)).sum(1, dtype=np.int32)
        return ids

    def _free(self, base: Color) -> Color:
        color = next(shade for shade in self._shades[base] if shade not in self._taken)
        self._taken.add(color)
        return color


def write_ids(path: Path, ids: NDArray[np.int32]) -> None:
    """Writes a panoptic PNG: 8-bit RGB."""
    bands = np.ascontiguousarray(ids, "<i4").view(np.uint8).reshape(*ids.shape, 4)[..., :3]
    Image.fromarray(np.ascontiguousarray(bands)).save(path, format="PNG")


def write_categories(
    path: Path, indices: NDArray[np.uint8], categories: Sequence[Category]
) -> None:
    """Writes a semantic PNG: category ids under a palette of the categories' colours.

    Read its indices, as the official evaluators do: turned into grey they are other numbers.
    """
    table = np.array([category.id for category in categories], np.uint8)
    image = Image.fromarray(table[indices], mode="P")
    palette = np.zeros((256, 3), np.uint8)
    for category in categories:
        palette[category.id] = _base(category)
    image.putpalette(palette.tobytes())
    image.save(path, format="PNG")


def segment_rows(
    numbers: NDArray[np.int32],  # [height, width], 0 for none
    segments: Sequence[PredictedSegment],
    ids: NDArray[np.int32],  # [segments + 1] of each number
    categories: Sequence[Category],
) -> list[dict[str, Any]]:
    """Returns what a JSON lists of the segments that a frame shows, in the order of the segments.

    ``bbox`` is COCO's: x, y, width and height in pixels.
    """
    areas = np.bincount(numbers.ravel(), minlength=len(segments) + 1)
    boxes = find_objects(numbers, max_label=len(segments))
    rows = []
    for number, (segment, box) in enumerate(zip(segments, boxes, strict=True), 1):
        if box is not None:
            y, x = box
            rows.append(
                {
                    "id": int(ids[number]),
                    "category_id": categories[segment.category].id,
                    "iscrowd": 0,
                    "area": int(areas[number]),
                    "bbox": [x.start, y.start, x.stop - x.start, y.stop - y.start],
                }
            )
    return rows


def _base(category: Category) -> Color:
    """The category's colour; one that follows from its id where the manifest has none."""
    if category.color != VOID:
        return category.color
    red, green, blue = colorsys.hsv_to_rgb(category.id * _GOLDEN % 1, 0.75, 0.9)
    return round(255 * red), round(255 * green), round(255 * blue)


def _shades(base: Color) -> Iterator[Color]:
    """Yields a colour, then those around it, then all others."""
    yield base
    for number in range(1, SPREAD**3):
        place = number * _STEP % SPREAD**3
        offsets = (place % SPREAD, place // SPREAD % SPREAD, place // SPREAD**2)
        red, green, blue = (
            min(max(band + offset - SPREAD // 2, 0), 255)
            for band, offset in zip(base, offsets, strict=True)
        )
        yield red, green, blue
    for number in count(1):
        yield number & 255, number >> 8 & 255, number >> 16 & 255
