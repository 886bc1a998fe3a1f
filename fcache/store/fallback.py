"""Reading rows through zarr, for arrays whose codec chain the fast reader does not know."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import zarr

from fcache.errors import CacheCorruptError
from fcache.store.layout import STAGED, ArraySpec, Bucket
from fcache.store.reader import VerifyPolicy, Window
from fcache.store.tables import ShardTable


def is_plain(folder: Path, bucket: Bucket, spec: ArraySpec) -> bool:
    """Whether an array's chunks are raw bytes with crc32c, as this package writes them.

    Raises:
        CacheCorruptError: the array's ``zarr.json`` is missing or unreadable.
    """
    path = folder / bucket.name / spec.name / "zarr.json"
    try:
        codecs = json.loads(path.read_bytes())["codecs"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CacheCorruptError(f"'{path}' describes no Zarr array: {error!r}.") from error
    return bool(codecs == json.loads(spec.zarr_json(0))["codecs"])


class ZarrReader:
    """Reads rows of one array with zarr-python, which checks every checksum there is."""

    def __init__(self, folder: Path, bucket: Bucket, spec: ArraySpec) -> None:
        self.spec = spec
        self._path = folder / bucket.name / spec.name
        self._array = zarr.open_array(self._path, mode="r")

    def read(
        self,
        table: ShardTable,
        rows: Sequence[int],
        positions: Sequence[int],
        out: npt.NDArray[np.generic],
        verify: VerifyPolicy,
        window: Window | None = None,
    ) -> None:
        """Fills ``out`` with rows of the array; see ``ArrayReader.read``.

        Zarr finds chunks by the shard's own index and checks every checksum, so ``table`` and
        ``verify`` have nothing to say.

        Raises:
            CacheCorruptError: a file is missing, or fails its checksum.
        """
        y, x = slice(None), slice(None)
        if window is not None:
            y = slice(window.y, window.y + window.height)
            x = slice(window.x, window.x + window.width)
        for place, row in enumerate(rows):
            path = self._file_of(row)
            # Zarr reads a missing file as zeros; a committed row has one.
            if not path.exists():
                raise CacheCorruptError(f"'{path}' is missing, but committed.")
            for column, position in enumerate(positions):
                stage = (position,) if self.spec.name in STAGED else ()
                try:
                    out[place, column] = np.asarray(self._array[(row, *stage, y, x)])
                except (ValueError, RuntimeError) as error:  # what zarr's codecs raise
                    raise CacheCorruptError(f"'{path}' cannot be decoded: {error}") from error

    def _file_of(self, row: int) -> Path:
        rows = (self._array.shards or self._array.chunks)[0]
        coordinates = (row // rows, *(0 for _ in self.spec.row_shape))
        return self._path / self._array.metadata.encode_chunk_key(coordinates)
