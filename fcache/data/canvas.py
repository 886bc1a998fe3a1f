"""Labels and stored values brought to the canvas the backbone saw."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from fcache.data.label_images import check_size
from fcache.store.cache import VideoFrames

IGNORE = 255


def label_on_canvas(
    label: npt.NDArray[np.uint8],  # [height, width] as stored
    video: VideoFrames,
    what: str,
) -> npt.NDArray[np.uint8]:  # [H, W]
    """Returns a label where the cached frame is: resized, cropped, mirrored, padded with 255.

    One step of nearest-neighbour from the label's own size, so that nothing is resampled twice.

    Args:
        label: Class indices, 255 for none.
        video: The cached frames it belongs to.
        what: Names the label in the error.

    Raises:
        LabelError: the label's shape contradicts the frame's.
    """
    at: Mapping[str, Any] = video.item.placement
    check_size((label.shape[0], label.shape[1]), (at["source_h"], at["source_w"]), what)
    image = Image.fromarray(label).resize(
        (at["resize_w"], at["resize_h"]), Image.Resampling.NEAREST
    )
    resized = np.asarray(image)
    top, left = at["crop_y"], at["crop_x"]
    crop = resized[top : top + at["crop_h"], left : left + at["crop_w"]]
    bucket = video.item.bucket
    canvas = np.full((bucket.height, bucket.width), IGNORE, np.uint8)
    canvas[: at["crop_h"], : at["crop_w"]] = crop[:, ::-1] if at["flip"] else crop
    return canvas
