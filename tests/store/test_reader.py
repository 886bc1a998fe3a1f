"""The fast reader on arrays of every shape: windows, blocks, calls saved, reads in parts."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fcache.errors import CacheCorruptError
from fcache.store import reader as reader_module
from fcache.store.fallback import ZarrReader, is_plain
from fcache.store.layout import SHARD_ROWS, ArraySpec, Bucket
from fcache.store.reader import ArrayReader, OpenFiles, Window
from fcache.store.records import Part
from fcache.store.shard import ShardWriter
from fcache.store.tables import ShardTable, Tables

BUCKET = Bucket(64, 96)
NUM_ROWS = SHARD_ROWS + 3
# Lines of 16,000, 9,600, 44 and 78 bytes: windows whose lines lie far apart and close together.
SPECS = {
    "wide": ArraySpec("stage0", "float32", (5, 8, 500), 1, ("row", "y", "x", "channel")),
    "tokens": ArraySpec("tokens", "float16", (2, 4, 8, 600), 2, ("row", "stage", "y", "x", "c")),
    "scale": ArraySpec("scale", "float16", (4, 19, 22), 4, ("row", "stage", "y", "x")),
    "scale0": ArraySpec("scale0", "float16", (7, 5), 1, ("row", "y", "x")),
    "pixels": ArraySpec("pixels", "uint8", (20, 26, 3), 1, ("row", "y", "x", "channel")),
}


class Made:
    """An array of two shards whose values are random bytes."""

    def __init__(self, folder: Path, spec: ArraySpec) -> None:
        random = np.random.default_rng(7)
        shape = (NUM_ROWS, spec.chunks_per_row, *spec.chunk_shape)
        data = random.bytes(math.prod(shape) * np.dtype(spec.dtype).itemsize)
        self.spec = spec
        self.values = np.frombuffer(data, spec.dtype).reshape(shape)
        self.folder = folder
        self.table = self.write([*range(spec.shard_chunks)])
        self.reader: ArrayReader | ZarrReader = ArrayReader(folder, BUCKET, spec, OpenFiles())

    def write(self, positions: list[int]) -> ShardTable:
        """Writes the given chunks of each shard, in that order."""
        parts = []
        for shard in range(2):
            path = self.path(shard)
            writer = ShardWriter(path, self.spec.shard_chunks)
            chunks = self.values[shard * SHARD_ROWS :][:SHARD_ROWS].reshape(
                -1, *self.spec.chunk_shape
            )
            for position in positions:
                if position < len(chunks):
                    writer.put(position, chunks[position])
            record = writer.finish()
            writer.publish()
            parts.append(Part(BUCKET, shard, {self.spec.name: record}, frames=()))
        return Tables.of_parts(parts).shard_table()

    def path(self, shard: int) -> Path:
        return self.folder / BUCKET.name / self.spec.shard_path(shard)

    def read(
        self,
        rows: list[int],
        window: Window | None = None,
        verify: str = "never",
        positions: list[int] | None = None,
    ) -> np.ndarray:
        positions = list(range(self.spec.chunks_per_row)) if positions is None else positions
        height, width, *tail = self.spec.chunk_shape
        if window is not None:
            height, width = window.height, window.width
        out = np.zeros((len(rows), len(positions), height, width, *tail), self.spec.dtype)
        self.reader.read(self.table, rows, positions, out, verify, window)
        return out


@pytest.fixture(params=SPECS)
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Made:
    return Made(tmp_path, SPECS[request.param])


def same(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and one.tobytes() == other.tobytes()


def windows(spec: ArraySpec) -> list[Window]:
    """Corners, single lines and columns, whole lines, one token, all but a border, everything."""
    height, width = spec.chunk_shape[:2]
    return [
        Window(0, 0, 1, 1),
        Window(height - 1, width - 1, 1, 1),
        Window(0, 0, height // 2, width // 2),
        Window(height // 2, width // 2, height - height // 2, width - width // 2),
        Window(1, 1, height - 2, width - 2),
        Window(0, 1, height, 1),
        Window(2, 0, 1, width),
        Window(1, 0, height - 1, width),
        Window(0, 0, height, width),
    ]


@pytest.mark.parametrize("verify", ["first", "always", "never"])
def test_every_row_in_any_order_is_what_was_written(made: Made, verify: str) -> None:
    order = [3, 18, 0, 1, 2, 17, 3, 16]
    assert same(made.read(order, verify=verify), made.values[order])


@pytest.mark.parametrize("verify", ["first", "always", "never"])
@pytest.mark.parametrize("block_bytes", [100, 17_000, 40_000, 1 << 20])
def test_window_is_the_slice_whatever_the_blocks(
    made: Made, verify: str, block_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_module, "BLOCK_BYTES", block_bytes)
    for window in windows(made.spec):
        y, x = slice(window.y, window.y + window.height), slice(window.x, window.x + window.width)
        found = made.read([17, 2], window, verify)
        assert same(found, made.values[[17, 2]][:, :, y, x]), window


@pytest.mark.parametrize("block_bytes", [100, 17_000, 1 << 20])
def test_flipped_bit_is_found_whatever_the_blocks(
    made: Made, block_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_module, "BLOCK_BYTES", block_bytes)
    path = made.path(0)
    sound = path.read_bytes()
    for byte in (0, made.spec.chunk_bytes // 2, made.spec.chunk_bytes - 1):
        damaged = bytearray(sound)
        damaged[byte] ^= 16
        path.write_bytes(damaged)
        for window in (None, *windows(made.spec)):
            with pytest.raises(CacheCorruptError, match="fails the checksum of chunk 0"):
                made.read([0], window, "always")
        assert same(made.read([1], verify="always"), made.values[[1]])


def count_reads(monkeypatch: pytest.MonkeyPatch, most_bytes: int | None = None) -> list[int]:
    """The number of buffers of every ``preadv`` from here on; each call gives at most so much."""
    real: Callable[..., int] = os.preadv
    calls: list[int] = []

    def preadv(fd: int, buffers: list[memoryview], offset: int) -> int:
        calls.append(len(buffers))
        if most_bytes is not None:
            buffers = [buffers[0][:most_bytes]]
        return real(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", preadv)
    return calls


def test_neighbouring_chunks_come_by_one_call_a_shard(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = count_reads(monkeypatch)
    assert same(made.read([1, 2, 15, 0, 17]), made.values[[1, 2, 15, 0, 17]])
    # Rows 0 to 2 together, 15 if no gap is small enough to bridge, and 17.
    assert len(calls) in (2, 3)


def test_narrow_gaps_between_lines_are_read_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = count_reads(monkeypatch)
    Made(tmp_path / "near", SPECS["pixels"]).read([0, 1], Window(2, 3, 15, 10))
    assert len(calls) == 2
    calls.clear()
    Made(tmp_path / "far", SPECS["wide"]).read([0, 1], Window(1, 2, 3, 2))
    assert len(calls) == 2 * 3


@pytest.mark.parametrize("most_bytes", [1, 1000, 4099])
def test_reads_that_come_in_parts_are_put_together(
    tmp_path: Path, most_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Made(tmp_path, SPECS["scale" if most_bytes == 1 else "tokens"])
    count_reads(monkeypatch, most_bytes)
    for window in (None, *windows(made.spec)):
        for verify in ("always", "never"):
            area = (slice(None), slice(None))
            if window is not None:
                area = (
                    slice(window.y, window.y + window.height),
                    slice(window.x, window.x + window.width),
                )
            found = made.read([0, 18], window, verify)
            assert same(found, made.values[[0, 18]][(slice(None), slice(None), *area)])


def test_more_chunks_than_one_call_may_take_are_all_read(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_module, "MAX_IOVECS", 4)
    calls = count_reads(monkeypatch)
    assert same(made.read([*range(NUM_ROWS)]), made.values)
    assert max(calls) <= 4 + 1  # a chunk comes with the gap before it


def test_chunks_in_another_order_in_the_file_are_found(made: Made) -> None:
    for shard in range(2):
        made.path(shard).unlink()
    made.table = made.write(np.random.default_rng(1).permutation(made.spec.shard_chunks).tolist())
    rows = [18, 5, 0, 16, 1]
    assert same(made.read(rows, verify="always"), made.values[rows])
    assert same(made.read(rows), made.values[rows])


@pytest.mark.parametrize("window", [None, Window(0, 0, 1, 1)])
def test_chunk_that_its_record_lacks_is_an_error(made: Made, window: Window | None) -> None:
    made.table = made.write([*range(made.spec.shard_chunks - 1)])
    with pytest.raises(CacheCorruptError, match=f"has no chunk {made.spec.shard_chunks - 1};"):
        made.read([0, 15], window)


@pytest.mark.parametrize("window", [None, Window(0, 0, 2, 1), Window(1, 0, 2, 2)])
@pytest.mark.parametrize("verify", ["always", "never"])
def test_file_that_ends_early_is_an_error(made: Made, window: Window | None, verify: str) -> None:
    os.truncate(made.path(0), 10)
    with pytest.raises(CacheCorruptError, match="committed longer"):
        made.read([0], window, verify)


def test_some_stages_in_any_order(tmp_path: Path) -> None:
    made = Made(tmp_path, SPECS["scale"])
    found = made.read([17, 4], positions=[3, 0])
    assert same(found, made.values[[17, 4]][:, [3, 0]])
    found = made.read([17, 4], Window(3, 4, 5, 6), positions=[3, 0])
    assert same(found, made.values[[17, 4]][:, [3, 0], 3:8, 4:10])


def test_zarr_reads_the_same_rows_and_windows(made: Made) -> None:
    array = made.folder / BUCKET.name / made.spec.name
    (array / "zarr.json").write_bytes(made.spec.zarr_json(2))
    assert is_plain(made.folder, BUCKET, made.spec)
    rows = [18, 0, 3]
    expected = [made.read(rows, window) for window in (None, *windows(made.spec))]
    made.reader = ZarrReader(made.folder, BUCKET, made.spec)
    for window, one in zip((None, *windows(made.spec)), expected, strict=True):
        assert same(made.read(rows, window), one)


def test_memory_with_gaps_is_refused_and_not_filled(made: Made) -> None:
    shape = (2, made.spec.chunks_per_row, *made.spec.chunk_shape)
    wide = np.zeros((*shape[:-1], 2 * shape[-1]), made.spec.dtype)
    positions = list(range(made.spec.chunks_per_row))
    with pytest.raises((TypeError, ValueError)):
        made.reader.read(made.table, [0, 1], positions, wide[..., ::2], "never")
    assert not wide.any()


def test_no_rows_read_nothing(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = count_reads(monkeypatch)
    assert made.read([]).size == 0
    assert calls == []
