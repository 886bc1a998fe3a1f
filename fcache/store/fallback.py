"""Reading rows through zarr, for arrays whose codec chain the fast reader does not know."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import zarr

from fcache.errors import CacheCorruptError
from fcache.store.layout import ArraySpec, Bucket
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
        array = zarr.open_array(folder / bucket.name / spec.name, mode="r")
        self._array = array

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
        """
        y, x = slice(None), slice(None)
        if window is not None:
            y = slice(window.y, window.y + window.height)
            x = slice(window.x, window.x + window.width)
        for place, row in enumerate(rows):
            for column, position in enumerate(positions):
                stage = (position,) if self.spec.name == "tokens" else ()
                out[place, column] = np.asarray(self._array[(row, *stage, y, x)])
