"""Small image sets, and where their images lie in a cache."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from fcache.cache import open_cache
from fcache.store.layout import SHARD_ROWS
from tests.sources.media import moving_frames

SIDES = (48, 64)


def make_image(path: Path, sides: tuple[int, int] = SIDES) -> Path:
    """An image that its name and sides decide."""
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = zlib.crc32(path.stem.encode())
    Image.fromarray(moving_frames(1, *sides, seed=seed)[0]).save(path)
    return path


def make_images(folder: Path, names: Iterable[str], sides: tuple[int, int] = SIDES) -> str:
    """A folder of images; returns the pattern that names each by itself."""
    for name in names:
        make_image(folder / f"{name}.png", sides)
    return f"{folder}/*.png"


def rows(cache: Path) -> dict[str, tuple[str, int]]:
    """Bucket and row of each complete image."""
    view = open_cache(cache).view()
    held = {video: view.frames(video) for video in view.videos}
    return {video: (frames.item.bucket.name, frames.rows[0]) for video, frames in held.items()}


def filled(cache: Path) -> Counter[tuple[str, int]]:
    """How many complete images lie in each shard."""
    return Counter((bucket, row // SHARD_ROWS) for bucket, row in rows(cache).values())


def shards(cache: Path) -> set[tuple[str, int]]:
    """Bucket and number of every committed shard."""
    state = open_cache(cache).view().state
    return {(bucket, shard) for bucket, _, shard in list(state.shards.keys())}
