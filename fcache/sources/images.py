"""Still images and folders of frames, through Pillow.

Pixels are the stored samples as 8-bit RGB: EXIF orientation is applied, ICC profiles and gamma are
not, alpha is dropped (colours under it are kept), gray is repeated, 16-bit samples keep their high
byte. Of an animation the first picture counts.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from fcache.errors import SourceError

# fmt: off
IMAGE_SUFFIXES = frozenset({
    ".bmp", ".gif", ".jfif", ".jp2", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif",
    ".tiff", ".webp",
})
# fmt: on
EXIF_ORIENTATION = 0x0112
EXIF_TRANSPOSED = range(5, 9)  # orientations that exchange height and width

# What Pillow's readers raise on damaged files; its PNG reader says SyntaxError for a bad chunk.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    struct.error,
    Image.DecompressionBombError,
)


def frame_files(folder: Path) -> list[Path]:
    """Returns the images of a frame folder, in natural order.

    Natural order compares runs of digits as numbers (``img2`` before ``img10``) and equals
    lexicographic order for zero-padded names. Hidden files, folders and files without an image's
    suffix are left out.

    Raises:
        SourceError: the folder cannot be listed, holds no image, or holds two images of one stem
            (a frame's name is its stem).
    """
    try:
        files = [
            path
            for path in folder.iterdir()
            if path.suffix.lower() in IMAGE_SUFFIXES
            and not path.name.startswith(".")
            and path.is_file()
        ]
    except OSError as error:
        raise SourceError(f"the frame folder cannot be listed: {error.strerror}.") from None
    if not files:
        raise SourceError(
            f"no frames: the folder '{folder.name}' holds no image "
            f"({', '.join(sorted(IMAGE_SUFFIXES))})."
        )
    files.sort(key=_natural_key)
    seen: dict[str, Path] = {}
    for path in files:
        twin = seen.setdefault(path.stem, path)
        if twin is not path:
            raise SourceError(
                f"two files are frame '{path.stem}': '{twin.name}' and '{path.name}'; expected one."
            )
    return files


def image_size(path: Path) -> tuple[int, int]:
    """Returns (height, width) as displayed, from the header alone.

    Raises:
        SourceError: the file is missing, empty or not an image.
    """
    with _opened(path) as image:
        try:
            transposed = image.getexif().get(EXIF_ORIENTATION) in EXIF_TRANSPOSED
        except _DAMAGE as error:
            raise _broken(path, error) from None
        return (image.width, image.height) if transposed else (image.height, image.width)


def read_image(path: Path) -> np.ndarray:  # [height, width, 3] uint8
    """Returns an image as displayed, RGB.

    Raises:
        SourceError: the file is missing, empty, not an image, damaged, or holds samples that have
            no 8-bit meaning (32-bit integers, floats).
    """
    with _opened(path) as image:
        try:
            return _to_rgb(ImageOps.exif_transpose(image), path)
        except _DAMAGE as error:
            raise _broken(path, error) from None


def _opened(path: Path) -> Image.Image:
    try:
        if path.stat().st_size == 0:
            raise SourceError(f"'{path.name}' is empty: zero bytes.")
        return Image.open(path)
    except _DAMAGE as error:
        raise _broken(path, error) from None


def _to_rgb(image: Image.Image, path: Path) -> np.ndarray:
    # Pillow's own conversion of 16-bit gray clips at 255 instead of scaling.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in {"PNG", "PPM"}):
        high = (np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)
        return np.repeat(high[:, :, None], 3, axis=2)
    if image.mode in {"I", "F"}:
        raise SourceError(
            f"'{path.name}' holds 32-bit samples (Pillow mode {image.mode}); expected 8 or 16 bits."
        )
    return np.array(image.convert("RGB"))


def _broken(path: Path, error: Exception) -> SourceError:
    if isinstance(error, FileNotFoundError):
        return SourceError(f"'{path.name}' does not exist.")
    if isinstance(error, UnidentifiedImageError):
        return SourceError(f"'{path.name}' is not an image: Pillow knows no such format.")
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return SourceError(f"'{path.name}' is damaged or unreadable: {reason}.")


def _natural_key(path: Path) -> tuple[list[tuple[int, int, str]], str]:
    # ASCII digits only: int() of other scripts' digits would tie names that differ.
    parts: Iterator[str] = iter(re.split(r"([0-9]+)", path.name))
    key = [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part]
    return key, path.name
