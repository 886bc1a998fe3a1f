"""Other Zarr implementations read what the store writes, bit for bit."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import tensorstore
import zarr

from fcache.store.cache import create_root
from fcache.store.index import ViewIndex
from fcache.store.layout import SHARD_ROWS
from fcache.store.records import FrameRecord, Item
from fcache.store.writer import RowGroup
from tests.store.making import BUCKET, PLAIN, PYRAMID, arrays, make_cache, request, values

LAYOUTS = [
    pytest.param({**layout, "dtype": dtype}, id=f"{name}-{dtype}")
    for name, layout in (("plain", PLAIN), ("pyramid", PYRAMID))
    for dtype in ("float16", "bfloat16", "float32", "int8")
]

READ_WITH_ZARRS = """
import sys, numpy, zarr
import zarrs
zarr.config.set({"codec_pipeline": {"path": "zarrs.ZarrsCodecPipeline", "strict": True}})
bucket, out, *names = sys.argv[1:]
numpy.savez(out, **{name: zarr.open_array(f"{bucket}/{name}", mode="r")[:] for name in names})
"""


def chunks(index: ViewIndex, item: Item, frame: int) -> dict[str, list[np.ndarray]]:
    """The chunks of a frame's row in every array; a pure function of item and frame."""
    made = arrays(index, *values(index, item, frame))
    random = np.random.default_rng(frame)
    for spec in index.layout.arrays(BUCKET):
        if spec.name not in made:  # the token scales of int8
            drawn = random.random((spec.chunks_per_row, *spec.chunk_shape))
            made[spec.name] = list(drawn.astype(spec.dtype))
    return made


def commit(index: ViewIndex, item: Item, num_frames: int) -> None:
    """Writes the row groups of an item."""
    for first, shard in item.shards(num_frames):
        with RowGroup(index, BUCKET, shard) as group:
            last = min(first + SHARD_ROWS, num_frames)
            for frame in range(first, last):
                row = item.row_of(frame)
                record = FrameRecord(row, item.item, frame, f"{frame:05d}", frame, None)
                group.put(record, chunks(index, item, frame), np.ones(4))
            group.commit({item.item: num_frames} if last == num_frames else {}, {})


def expected_arrays(index: ViewIndex, items: list[tuple[Item, int]]) -> dict[str, np.ndarray]:
    """What every row of every array must hold: zero where no frame was put."""
    num_rows = max(first + rows for item, _ in items for first, rows in item.extents)
    specs = index.layout.arrays(BUCKET)
    expected = {spec.name: np.zeros((num_rows, *spec.row_shape), spec.dtype) for spec in specs}
    for item, num_frames in items:
        for frame in range(num_frames):
            for name, stored in chunks(index, item, frame).items():
                expected[name][item.row_of(frame)] = np.stack(stored).reshape(
                    expected[name].shape[1:]
                )
    return expected


def make_with_gaps(
    path: Path, identity: dict[str, object]
) -> tuple[ViewIndex, dict[str, np.ndarray]]:
    """A view with empty slots, a shard that was reserved but never written, and a hole."""
    create_root(path)
    channel_scales = [[1.0] * stage["channels"] for stage in identity["backbone"]["stages"]]
    index = ViewIndex.create(path, identity, {}, {"channel_scales": channel_scales})
    # The container of the last one promised 40 frames.
    requests = [request("a", 20), request("b", 3), request("holed", 40)]
    items = index.reserve(requests, [])
    made = [(items[one.item], length) for one, length in zip(requests, (20, 3, 20), strict=True)]
    for item, num_frames in made:
        commit(index, item, num_frames)
    expected = expected_arrays(index, made)
    assert len(expected["pixels"]) == 6 * SHARD_ROWS
    return index, expected


@pytest.mark.parametrize("identity", LAYOUTS)
def test_zarr_python_reads_every_row_and_zero_in_the_gaps(
    tmp_path: Path, identity: dict[str, object]
) -> None:
    index, rows = make_with_gaps(tmp_path / "cache", identity)
    for name, expected in rows.items():
        found = zarr.open_array(index.folder / BUCKET.name / name, mode="r")
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found[:], expected, name)


@pytest.mark.parametrize("identity", LAYOUTS)
def test_tensorstore_reads_every_row_and_zero_in_the_gaps(
    tmp_path: Path, identity: dict[str, object]
) -> None:
    index, rows = make_with_gaps(tmp_path / "cache", identity)
    for name, expected in rows.items():
        kvstore = {"driver": "file", "path": str(index.folder / BUCKET.name / name)}
        found = tensorstore.open({"driver": "zarr3", "kvstore": kvstore}).result().read().result()
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected, name)


@pytest.mark.parametrize("identity", [LAYOUTS[0], LAYOUTS[3], LAYOUTS[5], LAYOUTS[7]])
def test_zarrs_reads_every_row_and_zero_in_the_gaps(
    tmp_path: Path, identity: dict[str, object]
) -> None:
    index, rows = make_with_gaps(tmp_path / "cache", identity)
    out = tmp_path / "read.npz"
    # In a process of its own: zarrs hangs where a process forks later on.
    subprocess.run(
        [sys.executable, "-c", READ_WITH_ZARRS, index.folder / BUCKET.name, out, *rows],
        check=True,
        timeout=120,
    )
    with np.load(out) as found:
        for name, expected in rows.items():
            np.testing.assert_array_equal(found[name], expected, name)


def test_the_cache_is_a_zarr_hierarchy_of_views_buckets_and_arrays(tmp_path: Path) -> None:
    _, index, _ = make_cache(tmp_path / "cache", PYRAMID)
    root = zarr.open_group(tmp_path / "cache", mode="r")
    assert list(root.group_keys()) == [index.folder.name]
    view = root[index.folder.name]
    assert view.attrs["fcache"]["identity"] == PYRAMID
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # zarr remarks on the index beside the buckets
        assert list(view.group_keys()) == [BUCKET.name]
    assert sorted(view[BUCKET.name].array_keys()) == [
        "pixels",
        "stage0",
        "stage1",
        "stage2",
        "stage3",
    ]


def test_other_readers_notice_a_flipped_bit(tmp_path: Path) -> None:
    _, index, items = make_cache(tmp_path / "cache", PLAIN, {"a": 1})
    shard = items["a"].row_of(0) // SHARD_ROWS
    spec = index.layout.arrays(BUCKET)[0]
    path = index.folder / BUCKET.name / spec.shard_path(shard)
    data = bytearray(path.read_bytes())
    data[spec.chunk_bytes // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="checksum"):
        zarr.open_array(index.folder / BUCKET.name / "tokens", mode="r")[0]
    kvstore = {"driver": "file", "path": str(index.folder / BUCKET.name / "tokens")}
    opened = tensorstore.open({"driver": "zarr3", "kvstore": kvstore}).result()
    with pytest.raises(ValueError, match="digest"):
        opened[0].read().result()
