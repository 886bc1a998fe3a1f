"""Where things lie in a cache, and what shape they have: pure arithmetic.

``<cache>/<key>/<H>x<W>/{tokens | stage0..stage3, pixels}`` are Zarr v3 arrays with a row per frame;
the compact tier adds the token scales, ``scale`` or ``scale0..scale3``.
A *chunk* is the inner readable unit (one frame, one stage); a *shard* is one file of 16 rows. ``H``
and ``W`` are the sides of the padded canvas in pixels. Bookkeeping lies in ``<cache>/<key>/index``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

LAYOUT_VERSION = 1
SHARD_ROWS = 16
ALIGN_BYTES = 4096  # chunk offsets are multiples of it, so that direct I/O can target them
EMPTY = 2**64 - 1  # offset and size of a missing chunk in a shard's index
CRC_BYTES = 4

# numpy and zarr-python know no bfloat16: its bits are stored as uint16.
STORED_AS = {
    "float16": "float16",
    "float32": "float32",
    "bfloat16": "uint16",
    "int8": "int8",
    "uint8": "uint8",
}
ITEM_BYTES = {"float16": 2, "uint16": 2, "float32": 4, "int8": 1, "uint8": 1}
STAGED = {"tokens", "scale"}  # arrays with a stage axis behind the row


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """One Zarr array of a bucket.

    Attributes:
        name: ``tokens``, ``stage0``..``stage3``, ``scale``, ``scale0``..``scale3`` or ``pixels``.
        logical_dtype: What the values mean; ``bfloat16`` is stored as ``uint16``.
        row_shape: Shape of one row: ``(S, h, w, C)``, ``(h, w, C)``, ``(S, h, w)``, ``(h, w)`` or
            ``(H, W, 3)``.
        chunks_per_row: Inner chunks of one row: S for ``tokens`` and ``scale``, else 1.
        dims: Zarr dimension names, the row first.
    """

    name: str
    logical_dtype: str
    row_shape: tuple[int, ...]
    chunks_per_row: int
    dims: tuple[str, ...]

    @property
    def dtype(self) -> str:
        """The Zarr data type."""
        return STORED_AS[self.logical_dtype]

    @property
    def chunk_shape(self) -> tuple[int, ...]:
        """Shape of one inner chunk without its row axis, the stage axis dropped."""
        return self.row_shape[1:] if self.name in STAGED else self.row_shape

    @property
    def chunk_bytes(self) -> int:
        """Payload bytes of one inner chunk, without its checksum."""
        return math.prod(self.chunk_shape) * ITEM_BYTES[self.dtype]

    @property
    def shard_chunks(self) -> int:
        """Inner chunks of a full shard."""
        return SHARD_ROWS * self.chunks_per_row

    def shard_path(self, shard: int) -> PurePosixPath:
        """Path of a shard file below the bucket, as Zarr's default chunk keys spell it."""
        return PurePosixPath(self.name, "c", str(shard), *("0" for _ in self.row_shape))

    def zarr_json(self, num_shards: int) -> bytes:
        """The array's ``zarr.json`` for a number of shards."""
        inner = (1, 1, *self.chunk_shape) if self.name in STAGED else (1, *self.chunk_shape)
        little = {"name": "bytes", "configuration": {"endian": "little"}}
        values = {"name": "bytes"} if ITEM_BYTES[self.dtype] == 1 else little
        sharding = {
            "chunk_shape": list(inner),
            "codecs": [values, {"name": "crc32c"}],
            "index_codecs": [little, {"name": "crc32c"}],
            "index_location": "end",
        }
        return document(
            {
                "zarr_format": 3,
                "node_type": "array",
                "shape": [num_shards * SHARD_ROWS, *self.row_shape],
                "data_type": self.dtype,
                "chunk_grid": {
                    "name": "regular",
                    "configuration": {"chunk_shape": [SHARD_ROWS, *self.row_shape]},
                },
                "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
                "fill_value": 0,
                "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
                "attributes": {"fcache": {"logical_dtype": self.logical_dtype}},
                "dimension_names": list(self.dims),
                "storage_transformers": [],
            }
        )


@dataclass(frozen=True, slots=True, order=True)
class Bucket:
    """A padded canvas size in pixels; the arrays of a bucket share it."""

    height: int
    width: int

    @property
    def name(self) -> str:
        """The folder's name, ``<H>x<W>``."""
        return f"{self.height}x{self.width}"

    @classmethod
    def parse(cls, name: str) -> Bucket:
        """Reads a folder's name."""
        height, _, width = name.partition("x")
        return cls(int(height), int(width))


@dataclass(frozen=True, slots=True)
class ViewLayout:
    """What a view stores per frame, whatever the bucket.

    Attributes:
        plain: True for a plain ViT (one ``tokens`` array), False for a pyramid.
        channels: Channels of each stage output.
        strides: Canvas pixels per token of each stage output.
        dtype: Stored value type: float16, bfloat16, float32, or int8 with token scales.
    """

    plain: bool
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str

    @classmethod
    def of(cls, identity: Mapping[str, Any]) -> ViewLayout:
        """Reads the layout out of a view's identity."""
        stages = identity["backbone"]["stages"]
        return cls(
            plain=identity["backbone"]["kind"] == "vit",
            channels=tuple(stage["channels"] for stage in stages),
            strides=tuple(stage["stride"] for stage in stages),
            dtype=identity["dtype"],
        )

    @property
    def num_stages(self) -> int:
        """Number of stage outputs."""
        return len(self.channels)

    def grid(self, bucket: Bucket, stage: int) -> tuple[int, int]:
        """Token grid (h, w) of a stage."""
        return bucket.height // self.strides[stage], bucket.width // self.strides[stage]

    @property
    def compact(self) -> bool:
        """Whether values are int8 with a scale for each token."""
        return self.dtype == "int8"

    def arrays(self, bucket: Bucket) -> tuple[ArraySpec, ...]:
        """Every array of a bucket: features, their scales where compact, pixels last."""
        specs = [
            self._features(bucket, stage) for stage in range(1 if self.plain else self.num_stages)
        ]
        if self.compact:
            specs += [_scales_of(spec) for spec in specs]
        pixels = (bucket.height, bucket.width, 3)
        return (*specs, ArraySpec("pixels", "uint8", pixels, 1, ("row", "y", "x", "channel")))

    def _features(self, bucket: Bucket, stage: int) -> ArraySpec:
        shape = (*self.grid(bucket, stage), self.channels[stage])
        if self.plain:
            dims = ("row", "stage", "y", "x", "channel")
            count = self.num_stages
            return ArraySpec("tokens", self.dtype, (count, *shape), count, dims)
        return ArraySpec(f"stage{stage}", self.dtype, shape, 1, ("row", "y", "x", "channel"))

    def frame_bytes(self, bucket: Bucket) -> int:
        """Bytes one frame takes on disk, alignment and checksums included."""
        return sum(
            (math.ceil((spec.chunk_bytes + CRC_BYTES) / ALIGN_BYTES) * ALIGN_BYTES)
            * spec.chunks_per_row
            for spec in self.arrays(bucket)
        )


def _scales_of(features: ArraySpec) -> ArraySpec:
    """The array of token scales beside an array of features."""
    name = "scale" + features.name.removeprefix("tokens").removeprefix("stage")
    shape, dims = features.row_shape[:-1], features.dims[:-1]
    return ArraySpec(name, "float16", shape, features.chunks_per_row, dims)


def group_json(attributes: Mapping[str, Any]) -> bytes:
    """The ``zarr.json`` of a group."""
    return document({"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)})


def document(content: Mapping[str, Any]) -> bytes:
    """JSON text as every ``zarr.json`` here is spelt; ``verify`` compares byte for byte."""
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def num_shards(num_frames: int) -> int:
    """Shards that hold a number of frames."""
    return math.ceil(num_frames / SHARD_ROWS)
