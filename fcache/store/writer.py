"""Writing one row group: the shard files of 16 frames, and the record that makes them exist."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from fcache.errors import FeatureError
from fcache.store.index import ViewIndex
from fcache.store.layout import SHARD_ROWS, Bucket
from fcache.store.records import FrameRecord, Part
from fcache.store.shard import ShardWriter

# int8 has its scales: what their product with 127 can be is checked where they are made.
RANGES = {"float16": 65504.0, "bfloat16": 3.38e38, "float32": 3.4e38, "int8": 3.4e38}


class RowGroup:
    """The files of one shard, open for writing until ``commit``.

    Nothing is visible before ``commit``, and nothing stays behind without it.
    """

    def __init__(self, index: ViewIndex, bucket: Bucket, shard: int) -> None:
        self.bucket = bucket
        self.shard = shard
        self._index = index
        self._specs = index.layout.arrays(bucket)
        self._started_s = time.time()
        self._frames: list[FrameRecord] = []
        self._rows: set[int] = set()
        self._largest = np.zeros(index.layout.num_stages, np.float64)
        self._writers: dict[str, ShardWriter] = {}
        folder = index.folder / bucket.name
        try:
            for spec in self._specs:
                path = folder / spec.shard_path(shard)
                self._writers[spec.name] = ShardWriter(path, spec.shard_chunks)
        except BaseException:
            self.discard()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.discard()

    def put(
        self,
        frame: FrameRecord,
        arrays: Mapping[str, Sequence[npt.NDArray[np.generic]]],
        largest: npt.NDArray[np.float64],  # [S] largest magnitude before the cast
    ) -> None:
        """Appends one frame.

        Args:
            frame: Its record.
            arrays: The chunks of its row in every array, in the stored dtype: for ``tokens`` and
                ``scale`` one a stage, else one.
            largest: Magnitudes, checked against the stored type.

        Raises:
            FeatureError: a value is not a number or outside the stored type's range.
            ValueError: shapes or dtypes are not the view's.
            NoSpaceError: the disk or quota is full.
        """
        check_range(largest, self._index.layout.dtype, frame)
        chunks = list(self._chunks(frame.row, arrays, largest))
        for name, position, values in chunks:
            self._writers[name].put(position, values)
        self._frames.append(frame)
        self._rows.add(frame.row)
        self._largest = np.maximum(self._largest, largest)

    def commit(
        self,
        ended: Mapping[str, int],
        provenance: Mapping[str, Any],
        stats: Mapping[str, Any] | None = None,
    ) -> Part:
        """Publishes the files, then the record without which they do not exist.

        Args:
            ended: Items whose last own frame is in this group, with their number of own frames.
            provenance: Who made it, with what.
            stats: What else a look at the values told.

        Raises:
            ValueError: the group holds no frame.
            NoSpaceError: the disk or quota is full.
        """
        if not self._frames:
            raise ValueError(f"row group {self.shard} of {self.bucket.name} holds no frame")
        arrays = {name: writer.finish() for name, writer in self._writers.items()}
        for writer in self._writers.values():
            writer.publish()
        part = Part(
            bucket=self.bucket,
            shard=self.shard,
            arrays=arrays,
            frames=tuple(self._frames),
            ended=dict(ended),
            stats={"largest": [float(value) for value in self._largest], **(stats or {})},
            provenance={
                **provenance,
                "started_s": round(self._started_s, 3),
                "committed_s": round(time.time(), 3),
            },
        )
        self._index.commit(part)
        return part

    def discard(self) -> None:
        """Removes what is not published."""
        for writer in self._writers.values():
            writer.discard()

    @property
    def frames(self) -> tuple[FrameRecord, ...]:
        """Frames put so far."""
        return tuple(self._frames)

    def _chunks(
        self,
        row: int,
        arrays: Mapping[str, Sequence[npt.NDArray[np.generic]]],
        largest: npt.NDArray[np.float64],
    ) -> Iterator[tuple[str, int, npt.NDArray[np.generic]]]:
        """Yields (array, position in the shard, values) of each chunk of a row.

        Raises:
            ValueError: they do not fit.
        """
        num_stages = self._index.layout.num_stages
        if row // SHARD_ROWS != self.shard or row in self._rows:
            raise ValueError(f"row {row} is not in shard {self.shard}, or was put before")
        wanted = {spec.name: spec.chunks_per_row for spec in self._specs}
        got = {name: len(chunks) for name, chunks in arrays.items()}
        if got != wanted or largest.shape != (num_stages,):
            raise ValueError(
                f"a frame has the chunks {wanted} and {num_stages} magnitudes, got {got} and "
                f"{largest.size}"
            )
        for spec in self._specs:
            first = row % SHARD_ROWS * spec.chunks_per_row
            for position, values in enumerate(arrays[spec.name], start=first):
                if values.shape != spec.chunk_shape or values.dtype != spec.dtype:
                    raise ValueError(
                        f"{spec.name} takes {spec.dtype} {spec.chunk_shape}, "
                        f"got {values.dtype} {values.shape}"
                    )
                yield spec.name, position, values


def check_range(largest: npt.NDArray[np.float64], dtype: str, frame: FrameRecord) -> None:
    """Refuses values that the stored type cannot hold.

    Raises:
        FeatureError: names the frame, the stage and the value.
    """
    limit = RANGES[dtype]
    for stage, value in enumerate(largest.tolist()):
        where = f"frame {frame.index} ('{frame.frame_name}'), stage {stage}"
        if not np.isfinite(value):
            raise FeatureError(
                f"{where}: the features hold NaN or infinity; expected finite values. "
                "Nothing of this shard is stored; compute_dtype=float32 rules out overflow."
            )
        if value > limit:
            raise FeatureError(
                f"{where}: the features reach {value:.4g}, {dtype} holds up to {limit:.4g}. "
                "Nothing of this shard is stored; dtype=bfloat16 or dtype=float32 has the range."
            )
