"""Labels brought to the canvas the backbone saw."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from fcache.data.footage import Footage
from fcache.data.label_images import check_size

IGNORE = 255
ENLARGED = 14  # pixels a token; a label has 16, and stored pixels are enlarged by 8/7 to match


def label_on_canvas(
    label: npt.NDArray[Any],  # [height, width] as stored
    video: Footage,
    what: str,
    *,
    window: tuple[int, int, int, int] | None = None,
    stride: int = 16,
    fill: int = IGNORE,
) -> npt.NDArray[Any]:  # [H, W]
    """Returns a label where the cached frame is: resized, cropped, mirrored, padded.

    One step of nearest-neighbour from the label's own size, so that nothing is resampled twice.

    Args:
        label: Class indices or segment ids.
        video: The frames it belongs to.
        what: Names the label in the error.
        window: (y, x, height, width) in tokens; the whole canvas by default.
        stride: Stored pixels of such a token; of 14, the label has 16.
        fill: What stands where there is no frame.

    Raises:
        LabelError: the label's shape contradicts the frame's.
    """
    at: Mapping[str, Any] = video.placement
    check_size((label.shape[0], label.shape[1]), (at["source_h"], at["source_w"]), what)
    bucket = video.bucket
    y, x, height, width = window or (0, 0, bucket.height // stride, bucket.width // stride)
    rows = _axis(label.shape[0], at["resize_h"], at["crop_y"], at["crop_h"], stride == ENLARGED)
    columns = _axis(label.shape[1], at["resize_w"], at["crop_x"], at["crop_w"], stride == ENLARGED)
    token = 16 if stride == ENLARGED else stride
    rows = rows[y * token : (y + height) * token]
    columns = (columns[::-1] if at["flip"] else columns)[x * token : (x + width) * token]
    canvas = np.full((height * token, width * token), fill, label.dtype)
    canvas[: len(rows), : len(columns)] = label.take(rows, 0).take(columns, 1)
    return canvas


@lru_cache(maxsize=1024)
def _axis(
    label: int, resized: int, first: int, count: int, enlarged: bool
) -> npt.NDArray[np.intp]:  # [count], of an enlarged canvas [count * 8 / 7]
    """Which of ``label`` places along an axis lies at each place of a crop of the resized frame."""
    if enlarged:
        # Centres of the enlarged pixels, in sixteenths of a pixel of the resized frame.
        centres = 16 * first + 7 * (2 * np.arange(count * 8 // 7) + 1)
        return np.asarray(centres * label // (16 * resized), np.intp)
    # Pillow's own rounding, as it resizes a whole image.
    ramp = Image.fromarray(np.arange(label, dtype=np.int32)[None])
    found = np.asarray(ramp.resize((resized, 1), Image.Resampling.NEAREST))[0]
    return np.asarray(found[first : first + count], np.intp)
