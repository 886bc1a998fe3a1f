"""Label images as arrays, without any conversion that would change a value."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from fcache.data.archive import Place, Zipped
from fcache.errors import LabelError

# 16-bit masks open as "I;16" or, in older Pillow, "I"; a palette's indices are the values.
ONE_CHANNEL_MODES = frozenset({"1", "L", "P", "I;16", "I;16B", "I"})


def read_mask(path: Place) -> np.ndarray:  # [height, width] uint8, uint16 or int32
    """Returns the values of a one-channel label image, read-only; of a palette, the indices.

    Raises:
        LabelError: the file cannot be read, or has several channels.
    """
    with _opened(path) as image:
        if image.mode not in ONE_CHANNEL_MODES:
            raise LabelError(
                f"label '{path}' has mode {image.mode}; expected one channel of category values. "
                "RGB segment ids need format 'panoptic' and their JSON."
            )
        values = _pixels(image, path)
        return values.astype(np.uint8) if values.dtype == np.bool_ else values


def read_segment_ids(path: Place) -> np.ndarray:  # [height, width] int32
    """Returns the segment ids of a panoptic image: R + 256 G + 65536 B, 0 for void.

    Raises:
        LabelError: the file cannot be read, or is not RGB of 8 bits a channel.
    """
    with _opened(path) as image:
        if image.mode not in {"RGB", "RGBA"}:
            raise LabelError(
                f"label '{path}' has mode {image.mode}; expected RGB, the segment id being "
                "R + 256 G + 65536 B."
            )
        # Pillow opens 16-bit RGB as 8-bit and drops half of every value.
        if any(";16" in str(tile[3]) for tile in getattr(image, "tile", ())):
            raise LabelError(f"label '{path}' has 16 bits a channel; expected 8-bit RGB.")
        four = _bytes(image, path, "RGBX" if image.mode == "RGB" else "RGBA")
        ids = np.frombuffer(four, "<u4").astype(np.uint32, copy=False) & 0xFFFFFF
        return ids.view(np.int32).reshape(image.height, image.width)


def label_header(path: Path) -> tuple[tuple[int, int], str]:
    """Returns ((height, width), Pillow mode) without decoding.

    Raises:
        LabelError: the file cannot be read.
    """
    with _opened(path, whole=False) as image:
        return (image.height, image.width), image.mode


def check_size(label: tuple[int, int], image: tuple[int, int], what: str) -> None:
    """Accepts a label of the image's shape at any scale: VSPW's 480p masks fit VIPSeg's 720p.

    Args:
        label: (height, width) of the label, pixels.
        image: (height, width) of the image as displayed, pixels.
        what: Names the label in the error.

    Raises:
        LabelError: the shapes differ by more than the rounding of one side.
    """
    (label_h, label_w), (image_h, image_w) = label, image
    scale_h, scale_w = image_h / label_h, image_w / label_w
    if abs(label_w * scale_h - image_w) <= 1 + scale_h:
        return
    if abs(label_h * scale_w - image_h) <= 1 + scale_w:
        return
    turned = abs(label_h * image_h - label_w * image_w) <= max(label_h, label_w, image_h, image_w)
    why = (
        "the image is shown turned (EXIF or display rotation) and its label is not; "
        "turn the label, or store the image upright"
        if turned
        else "label and image are of different pictures, or one was cropped"
    )
    raise LabelError(
        f"{what} is {label_h}x{label_w} and its image {image_h}x{image_w} (height x width): {why}."
    )


def _opened(path: Place, *, whole: bool = True) -> Image.Image:
    try:
        if whole or isinstance(path, Zipped):
            # From memory: Pillow reads a PNG in some ten pieces.
            return Image.open(io.BytesIO(path.read_bytes()))
        return Image.open(path)
    except UnidentifiedImageError as error:
        raise LabelError(f"label '{path}' is not an image.") from error
    except (OSError, Image.DecompressionBombError) as error:
        raise LabelError(
            f"label '{path}' cannot be read: {getattr(error, 'strerror', None) or error}."
        ) from error


def _pixels(image: Image.Image, path: Place) -> np.ndarray:
    _load(image, path)
    return np.asarray(image)


def _bytes(image: Image.Image, path: Place, layout: str) -> bytes:
    _load(image, path)
    return image.tobytes("raw", layout)


def _load(image: Image.Image, path: Place) -> None:
    try:
        image.load()
    except (OSError, SyntaxError, ValueError) as error:  # Pillow's words for damaged PNG data
        raise LabelError(f"label '{path}' is damaged: {error}.") from error
