"""Writing one row group: the shard files of 16 frames, and the record that makes them exist."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from fcache.errors import FeatureError
from fcache.store.index import ViewIndex
from fcache.store.layout import SHARD_ROWS, ArraySpec, Bucket
from fcache.store.records import FrameRecord, Part
from fcache.store.shard import ShardWriter


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
        stages: list[npt.NDArray[np.generic]],  # S of [h, w, C], stored dtype
        pixels: npt.NDArray[np.uint8],  # [H, W, 3]
        largest: npt.NDArray[np.float64],  # [S] largest magnitude before the cast
    ) -> None:
        """Appends one frame.

        Raises:
            FeatureError: a value is not a number or outside the stored type's range.
            ValueError: shapes or dtypes are not the view's.
            NoSpaceError: the disk or quota is full.
        """
        check_range(largest, self._index.layout.dtype, frame)
        slot = frame.row % SHARD_ROWS
        if frame.row // SHARD_ROWS != self.shard:
            raise ValueError(f"row {frame.row} is not in shard {self.shard}")
        for spec in self._specs:
            writer = self._writers[spec.name]
            for position, values in _chunks(spec, stages, pixels):
                if values.shape != spec.chunk_shape or values.dtype != spec.dtype:
                    raise ValueError(
                        f"{spec.name} takes {spec.dtype} {spec.chunk_shape}, "
                        f"got {values.dtype} {values.shape}"
                    )
                writer.put(slot * spec.chunks_per_row + position, values)
        self._frames.append(frame)
        self._largest = np.maximum(self._largest, largest)

    def commit(self, ended: Mapping[str, int], provenance: Mapping[str, Any]) -> Part:
        """Publishes the files, then the record without which they do not exist.

        Args:
            ended: Items whose last frame is in this group, with their number of frames.
            provenance: Who made it, with what.
        """
        arrays = {name: writer.finish() for name, writer in self._writers.items()}
        for writer in self._writers.values():
            writer.publish()
        part = Part(
            bucket=self.bucket,
            shard=self.shard,
            arrays=arrays,
            frames=tuple(self._frames),
            ended=dict(ended),
            stats={"largest": [float(value) for value in self._largest]},
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
    def num_frames(self) -> int:
        """Frames put so far."""
        return len(self._frames)


def _chunks(
    spec: ArraySpec,
    stages: list[npt.NDArray[np.generic]],
    pixels: npt.NDArray[np.uint8],
) -> list[tuple[int, npt.NDArray[np.generic]]]:
    if spec.name == "pixels":
        return [(0, pixels)]
    if spec.name == "tokens":
        return list(enumerate(stages))
    return [(0, stages[int(spec.name.removeprefix("stage"))])]


def check_range(largest: npt.NDArray[np.float64], dtype: str, frame: FrameRecord) -> None:
    """Refuses values that the stored type cannot hold.

    Raises:
        FeatureError: names the frame, the stage and the value.
    """
    limit = {"float16": 65504.0, "bfloat16": 3.38e38, "float32": 3.4e38}[dtype]
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
