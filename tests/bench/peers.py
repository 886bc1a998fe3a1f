"""Other libraries that read the same frames, each by its fastest way into memory used again."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy
import tensorstore
import zarr
from zarr.codecs import Crc32cCodec
from zarr.core.buffer import default_buffer_prototype

from tests.bench.vitg import Size

ZARR_BUFFER = default_buffer_prototype().nd_buffer
Values = npt.NDArray[np.generic]


@dataclass(frozen=True)
class Place:
    """Frames of a video, and the part of the token grid that is read of them.

    Attributes:
        frames: Positions in the video.
        window: (y, x, height, width), or None for the whole grid.
    """

    video: int
    frames: tuple[int, ...]
    window: tuple[int, int, int, int] | None

    @property
    def area(self) -> tuple[slice, slice]:
        """The window as slices of the token grid."""
        return self.area_of(1)

    def area_of(self, stride: int) -> tuple[slice, slice]:
        """The window as slices of a grid of ``stride`` cells a token."""
        if self.window is None:
            return slice(None), slice(None)
        y, x, height, width = (side * stride for side in self.window)
        return slice(y, y + height), slice(x, x + width)


Reader = Callable[[Place, Values], None]  # fills the memory with the place's tokens


def open_peers(
    array: Path, first_rows: Sequence[int], folder: Path, size: Size
) -> dict[str, Reader]:
    """Every library's way of reading consecutive frames into given memory.

    Args:
        array: The Zarr array.
        first_rows: Its first row of every video.
        folder: Where copies in other formats go.
        size: The frames.
    """
    zarr.config.set({"threading.max_workers": 1})
    by_zarr = zarr.open_array(array, mode="r")
    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
        by_zarrs = zarr.open_array(array, mode="r")
    by_tensorstore = _open_tensorstore(array)
    tensors = _write_safetensors(folder, size)

    def slices(place: Place) -> tuple[slice, ...]:
        first = first_rows[place.video] + place.frames[0]
        return (slice(first, first + len(place.frames)), slice(None), *place.area)

    def with_zarr(opened: Any) -> Reader:
        def read(place: Place, out: Values) -> None:
            opened.get_basic_selection(slices(place), out=ZARR_BUFFER.from_numpy_array(out))

        return read

    def with_tensorstore(place: Place, out: Values) -> None:
        tensorstore.array(out).write(by_tensorstore[slices(place)]).result()

    def with_safetensors(place: Place, out: Values) -> None:
        # It gives new arrays only: what a clip in one piece of memory costs includes the copy.
        file, area = tensors[place.video], (slice(None), *place.area)
        for frame, target in zip(place.frames, out, strict=True):
            if place.window is None:
                target[...] = file.get_tensor(str(frame))
            else:
                target[...] = file.get_slice(str(frame))[area]

    return {
        "zarr-python": with_zarr(by_zarr),
        "zarrs": with_zarr(by_zarrs),
        "tensorstore": with_tensorstore,
        "safetensors": with_safetensors,
    }


def _open_tensorstore(array: Path, **how: object) -> Any:
    context = tensorstore.Context(
        {
            "data_copy_concurrency": {"limit": 1},
            "file_io_concurrency": {"limit": 1},
            "file_io_sync": False,
            "cache_pool": {"total_bytes_limit": 0},
        }
    )
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(array)}, **how}
    return tensorstore.open(spec, context=context).result()


def _write_safetensors(folder: Path, size: Size) -> list[Any]:
    """One file a video, one tensor a frame."""
    folder.mkdir()
    opened = []
    for video, length in enumerate(size.lengths):
        first = size.first_frame(video)
        path = folder / f"{video}.safetensors"
        tensors = {str(frame): size.tokens(first + frame) for frame in range(length)}
        safetensors.numpy.save_file(tensors, path)
        opened.append(safetensors.safe_open(path, "np"))
    return opened


class ArrayWriter:
    """Another library's sharded array of one shard, written whole."""

    def __init__(
        self,
        folder: Path,
        write: Callable[[Values], object],
        read: Callable[[int], Values],
    ) -> None:
        self._shards = folder / "c"
        self.write = write
        self.read = read

    def clear(self) -> None:
        """Takes the shard away."""
        shutil.rmtree(self._shards, ignore_errors=True)


def create_peers(folder: Path, shape: tuple[int, ...]) -> dict[str, ArrayWriter]:
    """Arrays of other libraries, laid out as ours are; nothing flushes to the disk.

    Args:
        folder: Where they go.
        shape: ``(T, S, h, w, C)`` of float16: the shard.
    """
    inner = (1, 1, *shape[2:])
    zarr.config.set({"threading.max_workers": 1})
    by_zarr = zarr.create_array(
        store=folder / "zarr",
        shape=shape,
        chunks=inner,
        shards=shape,
        dtype="float16",
        compressors=[Crc32cCodec()],
    )
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    sharding = {
        "chunk_shape": inner,
        "codecs": [little, {"name": "crc32c"}],
        "index_codecs": [little, {"name": "crc32c"}],
    }
    metadata = {
        "shape": shape,
        "data_type": "float16",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shape}},
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
    }
    by_tensorstore = _open_tensorstore(folder / "tensorstore", create=True, metadata=metadata)
    return {
        "zarr-python": ArrayWriter(
            folder / "zarr",
            lambda values: by_zarr.__setitem__(slice(None), values),
            lambda frame: np.asarray(by_zarr[frame]),
        ),
        "tensorstore": ArrayWriter(
            folder / "tensorstore",
            lambda values: by_tensorstore.write(values).result(),
            lambda frame: np.asarray(by_tensorstore[frame].read().result()),
        ),
    }


class FlatFile:
    """All tokens one after the other in one file: what a plain read of as many bytes costs."""

    def __init__(self, path: Path, size: Size) -> None:
        self._frame_bytes = size.frame_bytes
        with path.open("wb", buffering=0) as file:
            for frame in range(size.num_frames):
                file.write(size.tokens(frame).reshape(-1).view(np.uint8).data)
            os.fsync(file.fileno())
        self._fd = os.open(path, os.O_RDONLY)

    def read(self, frame: int, out: Values) -> None:
        """Fills ``out`` with the bytes from a frame on, in one piece."""
        data = out.reshape(-1).view(np.uint8).data
        done, start = 0, frame * self._frame_bytes
        while done < len(data):
            done += os.preadv(self._fd, [data[done:]], start + done)
