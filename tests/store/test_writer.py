"""Writing row groups: whole or not at all, whatever happens; and at no needless cost."""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from fcache.errors import FeatureError, NoSpaceError
from fcache.store.cache import StoreCache, create_root
from fcache.store.index import ViewIndex
from fcache.store.layout import SHARD_ROWS, Bucket
from fcache.store.records import FrameRecord, Item
from fcache.store.shard import check_shard
from fcache.store.verify import check_metadata, check_shards
from fcache.store.writer import RowGroup
from tests.disks import small_disk
from tests.store.making import BUCKET, PLAIN, PYRAMID, arrays, fill, make_cache, request, values

NUM_FRAMES = 70


def new_view(path: Path, identity: dict[str, object] = PLAIN) -> tuple[ViewIndex, Item]:
    create_root(path)
    index = ViewIndex.create(path, identity, {})
    wanted = request("a", NUM_FRAMES)
    return index, index.reserve([wanted], [])[wanted.item]


def frame_of(item: Item, frame: int) -> FrameRecord:
    return FrameRecord(item.row_of(frame), item.item, frame, f"{frame:05d}", frame, None)


def files_below(folder: Path, pattern: str = "**/*") -> list[Path]:
    return sorted(path for path in folder.glob(pattern) if path.is_file())


def sums(index: ViewIndex) -> dict[str, str]:
    """sha256 of every file below a ``c/``, by its path in the view."""
    return {
        str(path.relative_to(index.folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files_below(index.folder, "*/*/c/**/*")
    }


def resume(index: ViewIndex, item: Item) -> None:
    """Does what a job does: makes the shards that are missing."""
    missing = {shard for _, shard in index.load().missing(item, index.feature_array)}
    fill(index, item, NUM_FRAMES, missing)


def work_until_killed(path: str) -> None:
    """What a killed child runs: makes whatever is missing, again and again."""
    print("begun", flush=True)
    while True:
        index, item = new_view(Path(path), PYRAMID)
        resume(index, item)
        index.fold()
        index.forget(BUCKET, range(5))


def test_killed_writers_leave_no_torn_shard_and_the_cache_ends_up_the_same(tmp_path: Path) -> None:
    whole, item = new_view(tmp_path / "whole", PYRAMID)
    fill(whole, item, NUM_FRAMES)
    expected = sums(whole)
    assert len(expected) == 5 * 5
    chance = random.Random(20)
    hit_while_writing = 0
    command = [sys.executable, "-m", "tests.store.test_writer", str(tmp_path / "killed")]
    for _ in range(15):
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert child.stdout.readline() == "begun\n"
        time.sleep(chance.uniform(0, 0.15))
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        child.stdout.close()
        if not (tmp_path / "killed" / whole.folder.name / "zarr.json").exists():
            continue
        index = ViewIndex(tmp_path / "killed" / whole.folder.name)
        found = sums(index)
        final = {path: value for path, value in found.items() if not path.endswith(".tmp")}
        hit_while_writing += final != found
        assert final.items() <= expected.items()
        state = index.load()
        assert [one for checked in check_shards(index, state) for one in checked.findings] == []
    assert hit_while_writing >= 3, "too few kills hit a writer at work: the test proves little"
    index, item = new_view(tmp_path / "killed", PYRAMID)
    index.sweep(older_than_s=-1, now_s=time.time())
    resume(index, item)
    assert sums(index) == expected
    assert list(check_metadata(index, index.load())) == []
    assert index.load().is_complete(item, index.feature_array)


def test_exception_in_a_row_group_leaves_nothing(tmp_path: Path) -> None:
    index, item = new_view(tmp_path / "cache")
    before = files_below(index.folder)

    def fail() -> None:
        with RowGroup(index, BUCKET, 0) as group:
            group.put(frame_of(item, 0), arrays(index, *values(index, item, 0)), np.ones(4))
            assert len(files_below(index.folder, "**/.*.tmp")) == 2
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert files_below(index.folder) == before


def test_row_group_without_commit_leaves_nothing(tmp_path: Path) -> None:
    index, item = new_view(tmp_path / "cache")
    before = files_below(index.folder)
    with RowGroup(index, BUCKET, 0) as group:
        group.put(frame_of(item, 0), arrays(index, *values(index, item, 0)), np.ones(4))
    assert files_below(index.folder) == before


def test_sweep_removes_old_temporary_files_and_only_those(tmp_path: Path) -> None:
    _, index, _ = make_cache(tmp_path / "cache")
    before = files_below(index.folder)
    old = index.folder / BUCKET.name / "tokens/c/0/0/0/0/.0.123456789abc.tmp"
    fresh = index.index / "parts" / ".x.json.123456789abc.tmp"
    for path in (old, fresh):
        path.write_bytes(b"left over")
    os.utime(old, (time.time() - 1000, time.time() - 1000))
    assert index.sweep(older_than_s=500, now_s=time.time()) == 1
    assert files_below(index.folder) == sorted([*before, fresh])


@pytest.mark.parametrize("spare_bytes", [0, 5_000, 30_000, 90_000])
def test_full_disk_stops_with_nothing_half_written_and_resumes(
    tmp_path: Path, spare_bytes: int
) -> None:
    with small_disk(tmp_path / "disk", 8_000_000):
        index, item = new_view(tmp_path / "disk" / "cache")
        fill(index, item, NUM_FRAMES, {0})
        ballast = tmp_path / "disk" / "ballast"
        free = os.statvfs(ballast.parent)
        ballast.write_bytes(bytes(free.f_bavail * free.f_frsize - spare_bytes))
        with pytest.raises(NoSpaceError, match=r"Free space and run the same command again"):
            resume(index, item)
        assert files_below(index.folder, "**/.*.tmp") == []
        state = index.load()
        assert [one for checked in check_shards(index, state) for one in checked.findings] == []
        assert len(state.missing(item, "tokens")) >= 3
        ballast.unlink()
        resume(index, item)
        assert index.load().is_complete(item, "tokens")
        whole, item = new_view(tmp_path / "whole")
        fill(whole, item, NUM_FRAMES)
        assert sums(index) == sums(whole)


def test_file_size_limit_counts_as_no_space(tmp_path: Path) -> None:
    index, item = new_view(tmp_path / "cache")
    before = files_below(index.folder)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    try:
        with pytest.raises(NoSpaceError):
            fill(index, item, NUM_FRAMES)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert files_below(index.folder) == before
    fill(index, item, NUM_FRAMES)
    assert index.load().is_complete(item, "tokens")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_are_refused_and_named(tmp_path: Path, value: float) -> None:
    index, item = new_view(tmp_path / "cache")
    with RowGroup(index, BUCKET, 0) as group:
        group.put(frame_of(item, 0), arrays(index, *values(index, item, 0)), np.ones(4))
        with pytest.raises(FeatureError, match=r"frame 1 \('00001'\), stage 2: .* NaN or infinity"):
            group.put(
                frame_of(item, 1),
                arrays(index, *values(index, item, 1)),
                np.array([1, 1, value, 1]),
            )


@pytest.mark.parametrize(
    ("dtype", "fits", "exceeds"), [("float16", 65504.0, 65600.0), ("bfloat16", 3.3e38, 3.4e38)]
)
def test_values_outside_the_stored_range_are_refused_and_named(
    tmp_path: Path, dtype: str, fits: float, exceeds: float
) -> None:
    index, item = new_view(tmp_path / "cache", {**PLAIN, "dtype": dtype})
    with RowGroup(index, BUCKET, 0) as group:
        group.put(
            frame_of(item, 0), arrays(index, *values(index, item, 0)), np.array([1, 1, 1, fits])
        )
        with pytest.raises(FeatureError, match=rf"frame 1 .*stage 3: .* {dtype} holds up to"):
            group.put(
                frame_of(item, 1),
                arrays(index, *values(index, item, 1)),
                np.array([1, 1, 1, exceeds]),
            )


@pytest.mark.parametrize("identity", [PLAIN, PYRAMID], ids=["plain", "pyramid"])
def test_values_of_another_shape_or_type_are_refused_before_anything_is_written(
    tmp_path: Path, identity: dict[str, object]
) -> None:
    index, item = new_view(tmp_path / "cache", identity)
    stages, pixels = values(index, item, 0)
    wrong = {
        "a stage too few": (stages[:3], pixels, np.ones(4)),
        "a stage too many": ([*stages, stages[0]], pixels, np.ones(4)),
        "a magnitude too few": (stages, pixels, np.ones(1)),
        "another grid": ([*stages[:3], stages[3][:1]], pixels, np.ones(4)),
        "another dtype": ([*stages[:3], stages[3].astype(np.float32)], pixels, np.ones(4)),
        "another canvas": (stages, pixels[:-1], np.ones(4)),
        "signed pixels": (stages, pixels.view(np.int8), np.ones(4)),
    }
    for number, (what, arguments) in enumerate(wrong.items()):
        with RowGroup(index, BUCKET, number % 5) as group:
            frame = frame_of(item, number % 5 * SHARD_ROWS)
            with pytest.raises(ValueError, match=r"takes|a frame has"):
                group.put(frame, arrays(index, *arguments[:2]), arguments[2])
            written = sum(p.stat().st_size for p in files_below(index.folder, "**/.*.tmp"))
            assert written == 0, what


def test_row_of_another_shard_and_row_put_twice_are_refused(tmp_path: Path) -> None:
    index, item = new_view(tmp_path / "cache")
    with RowGroup(index, BUCKET, 0) as group:
        group.put(frame_of(item, 3), arrays(index, *values(index, item, 3)), np.ones(4))
        for frame in (3, 16):
            with pytest.raises(ValueError, match="is not in shard 0, or was put before"):
                group.put(
                    frame_of(item, frame), arrays(index, *values(index, item, frame)), np.ones(4)
                )


def test_empty_row_group_is_not_committed(tmp_path: Path) -> None:
    index, _ = new_view(tmp_path / "cache")
    with RowGroup(index, BUCKET, 0) as group, pytest.raises(ValueError, match="holds no frame"):
        group.commit({}, {})
    assert len(index.load().tables.shards) == 0


def test_record_tells_the_files_the_frames_and_the_largest_value(tmp_path: Path) -> None:
    index, item = new_view(tmp_path / "cache")
    with RowGroup(index, BUCKET, 0) as group:
        for frame, largest in ((5, 2.0), (0, 7.5)):
            sizes = np.array([1, largest, 1, 1])
            group.put(frame_of(item, frame), arrays(index, *values(index, item, frame)), sizes)
        part = group.commit({}, {"who": "test"})
    assert part.stats == {"largest": [1.0, 7.5, 1.0, 1.0]}
    assert [frame.index for frame in part.frames] == [5, 0]
    for spec in index.layout.arrays(BUCKET):
        path, record = index.folder / BUCKET.name / spec.shard_path(0), part.arrays[spec.name]
        assert list(check_shard(path, record, spec.shard_chunks)) == []
        assert all(offset % 4096 == 0 for _, offset, _, _ in record.chunks)
        slots = {position // spec.chunks_per_row for position, _, _, _ in record.chunks}
        assert slots == {0, 5}
    shards = index.load().tables.shards
    assert json.loads(shards["provenance"][0].as_py())["who"] == "test"


LARGE = {
    **PLAIN,
    "backbone": {**PLAIN["backbone"], "stages": [{"channels": 384, "stride": 16}] * 4},
}
LARGE_BUCKET = Bucket(608, 608)  # the 604 crop of the recipes: 1.1 MB a chunk at 384 channels


def write_large(path: Path, written: list[int], peaks: list[int]) -> None:
    """Writes one row group of realistic chunks and notes what it cost."""
    create_root(path)
    index = ViewIndex.create(path, LARGE, {})
    wanted = request("large", 16, LARGE_BUCKET)
    item = index.reserve([wanted], [])[wanted.item]
    stages, pixels = values(index, item, 0)
    chunk_bytes = max(stages[0].nbytes, pixels.nbytes)
    tracemalloc.start()
    begin = _bytes_written()
    with RowGroup(index, LARGE_BUCKET, 0) as group:
        for frame in range(16):
            group.put(frame_of(item, frame), arrays(index, stages, pixels), np.ones(4))
        part = group.commit({}, {})
    written += [_bytes_written() - begin, 16 * (4 * stages[0].nbytes + pixels.nbytes)]
    peaks += [tracemalloc.get_traced_memory()[1], chunk_bytes]
    tracemalloc.stop()
    assert part.size_bytes < 1.01 * written[1]


def _bytes_written() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["wchar"])


def test_writing_holds_at_most_two_chunks_and_writes_each_byte_once(tmp_path: Path) -> None:
    written: list[int] = []
    peaks: list[int] = []
    write_large(tmp_path / "cache", written, peaks)
    assert written[0] / written[1] <= 1.01
    assert peaks[0] <= 2 * peaks[1]


def test_files_of_a_killed_publish_are_replaced_by_whole_ones(tmp_path: Path) -> None:
    index, item = new_view(tmp_path / "cache")
    fill(index, item, NUM_FRAMES, {0})
    part = index.index / "parts" / BUCKET.name / "00000000.json"
    part.unlink()  # as if killed between the files and their record
    assert not StoreCache(tmp_path / "cache").view().state.is_complete(item, "tokens")
    resume(index, item)
    assert [one for c in check_shards(index, index.load()) for one in c.findings] == []
    assert index.load().is_complete(item, "tokens")


if __name__ == "__main__":
    work_until_killed(sys.argv[1])
