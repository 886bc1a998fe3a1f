"""How fast a disk takes what is written, measured in the folder where a cache will lie."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

PIECE_BYTES = 1 << 20
MOST_BYTES = 256 << 20
MOST_S = 2.0
FREE_SHARE = 100  # at most one part in so many of the free space


@dataclass(frozen=True, slots=True)
class DiskSpeed:
    """What a disk takes; ``bytes_per_s`` is None where that cannot be measured, for a reason."""

    bytes_per_s: float | None
    reason: str = ""


def nearest_folder(path: Path) -> Path:
    """Returns the absolute path of a folder, or of the nearest one above it that is there."""
    folder = path.absolute()
    while not folder.is_dir():
        folder = folder.parent
    return folder


def free_bytes(path: Path) -> int:
    """Returns the free bytes of the disk a path lies on, or will lie on once it is made."""
    return shutil.disk_usage(nearest_folder(path)).free


def measure_disk(path: Path) -> DiskSpeed:
    """Returns how fast the disk below a path takes data, from writing for up to two seconds.

    The file has no name and is gone at once. Batches of doubling size are each brought to the disk
    before the next is begun; the first is not counted. A disk with a large cache of its own may be
    slower in the long run.

    Args:
        path: The cache, there or not: its folder, or the nearest one above that is there.
    """
    folder = nearest_folder(path)
    try:
        allowed = min(MOST_BYTES, shutil.disk_usage(folder).free // FREE_SHARE)
        if allowed < 3 * PIECE_BYTES:
            least = 3 * PIECE_BYTES * FREE_SHARE
            return DiskSpeed(None, f"less than {least / 1e6:.0f} MB are free")
        descriptor = _open_unnamed(folder)
        try:
            return DiskSpeed(_write_rate(descriptor, allowed))
        finally:
            os.close(descriptor)
    except OSError as error:
        return DiskSpeed(None, f"'{folder}': {error.strerror}")


def _open_unnamed(folder: Path) -> int:
    """A file to write to, of which no name is left."""
    try:
        return os.open(folder, os.O_TMPFILE | os.O_WRONLY, 0o600)
    except OSError:
        # Not every file system has them; where nothing can be written at all, this says so.
        descriptor, name = tempfile.mkstemp(prefix=".fcache-", dir=folder)
        os.unlink(name)
        return descriptor


def _write_rate(descriptor: int, allowed: int) -> float:
    """Bytes per second, batch after batch while there is room and time for the next."""
    piece = memoryview(os.urandom(PIECE_BYTES))  # a file system may compress, or look for zeros
    batches: list[tuple[int, float]] = []  # bytes, seconds
    num_pieces, left, spent_s = 1, allowed // PIECE_BYTES, 0.0
    while num_pieces <= left:
        began_s = time.perf_counter()
        for _ in range(num_pieces):
            _write_all(descriptor, piece)
        os.fsync(descriptor)
        took_s = time.perf_counter() - began_s
        batches.append((num_pieces * PIECE_BYTES, took_s))
        spent_s += took_s
        left -= num_pieces
        num_pieces *= 2
        if spent_s + 2 * took_s > MOST_S:
            break
    counted = batches[1:] or batches  # the first made the file too
    return sum(size for size, _ in counted) / max(sum(took_s for _, took_s in counted), 1e-9)


def _write_all(descriptor: int, data: memoryview) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
