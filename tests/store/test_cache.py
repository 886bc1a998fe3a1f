"""Reading clips: windows, orders, memory used again, checksums, threads, forks."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr

from fcache.errors import CacheCorruptError, CacheError, CacheNotFoundError
from fcache.store.cache import Clip, StoreCache
from fcache.store.files import seal
from fcache.store.index import ViewIndex
from fcache.store.layout import SHARD_ROWS
from fcache.store.records import FrameRecord, Item, Name
from fcache.store.writer import RowGroup
from tests.store.making import BUCKET, PLAIN, PYRAMID, arrays, fill, make_cache, request, values


@pytest.fixture(scope="module", params=[PLAIN, PYRAMID], ids=["plain", "pyramid"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cache(tmp_path_factory.mktemp("made"), request.param)[0].path


@pytest.fixture
def cache(made: Path, tmp_path: Path) -> StoreCache:
    shutil.copytree(made, tmp_path / "cache")
    return StoreCache(tmp_path / "cache")


def same(ours: Clip, theirs: Clip) -> bool:
    pairs = zip((*ours.stages, ours.pixels), (*theirs.stages, theirs.pixels), strict=True)
    return all(np.array_equal(one, other) for one, other in pairs)


def flip_bit(cache: StoreCache, video: str, array: int = 0) -> Path:
    """Changes one bit of the first chunk of a video."""
    view = cache.view()
    spec = view.index.layout.arrays(BUCKET)[array]
    row = view.frames(video).rows[0]
    path = view.folder / BUCKET.name / spec.shard_path(row // SHARD_ROWS)
    with path.open("r+b") as file:
        file.seek(100)
        byte = file.read(1)[0]
        file.seek(100)
        file.write(bytes([byte ^ 4]))
    return path


def test_read_returns_what_was_written(cache: StoreCache) -> None:
    view = cache.view()
    for video in cache.videos:
        held = view.frames(video)
        clip = cache.read(video)
        for frame in range(len(held)):
            stages, pixels = values(view.index, held.item, frame)
            for stage, stored in enumerate(stages):
                np.testing.assert_array_equal(clip.stages[stage][frame], stored)
            np.testing.assert_array_equal(clip.pixels[frame], pixels)


def test_videos_come_in_their_order_with_their_frames(cache: StoreCache) -> None:
    assert cache.videos == ["a", "b", "c/d é"]
    held = cache.view().frames("a")
    assert len(held) == 20
    assert held.names == tuple(f"{k:05d}" for k in range(20))
    assert held.source_index == tuple(range(20))
    assert held.pts_us == tuple(40_000 * k for k in range(20))
    assert (held.split, held.valid) == ("train", (40, 90))


@pytest.mark.parametrize("verify", ["first", "always", "never"])
def test_window_read_equals_slice_of_full_read(cache: StoreCache, verify: str) -> None:
    view = cache.view()
    layout = view.index.layout
    coarsest = layout.strides[-1]
    height, width = layout.grid(BUCKET, layout.num_stages - 1)
    full = cache.read("a")
    windows = [
        (y, x, h, w)
        for y in range(height)
        for x in range(width)
        for h in range(1, height - y + 1)
        for w in range(1, width - x + 1)
    ]
    assert (0, 0, height, width) in windows
    for window in windows:
        clip = cache.read("a", [3, 17], window=window, verify=verify)
        for stage, stride in enumerate(layout.strides):
            y, x, h, w = (side * coarsest // stride for side in window)
            expected = full.stages[stage][[3, 17], y : y + h, x : x + w]
            np.testing.assert_array_equal(clip.stages[stage], expected)
        y, x, h, w = (side * coarsest for side in window)
        np.testing.assert_array_equal(clip.pixels, full.pixels[[3, 17], y : y + h, x : x + w])


@pytest.mark.parametrize("window", [(-1, 0, 1, 1), (0, 0, 0, 1), (0, 0, 1, 99), (9, 0, 1, 1)])
def test_window_outside_the_grid_is_refused(
    cache: StoreCache, window: tuple[int, int, int, int]
) -> None:
    with pytest.raises(ValueError, match="leaves the token grid"):
        cache.read("a", [0], window=window)


def test_frames_come_in_the_order_asked_for_repeats_included(cache: StoreCache) -> None:
    full = cache.read("a")
    order = [19, 0, 0, 7, 16, 15, 0, 19]
    clip = cache.read("a", order)
    for stage in range(4):
        np.testing.assert_array_equal(clip.stages[stage], full.stages[stage][order])
    np.testing.assert_array_equal(clip.pixels, full.pixels[order])


def test_no_frames_make_an_empty_clip(cache: StoreCache) -> None:
    clip = cache.read("a", [])
    assert clip.pixels.shape == (0, 64, 96, 3)


@pytest.mark.parametrize("frame", [-1, 20])
def test_frame_outside_the_video_is_refused(cache: StoreCache, frame: int) -> None:
    with pytest.raises(IndexError, match=r"of video 'a': expected 0\.\.19"):
        cache.read("a", [0, frame])


@pytest.mark.parametrize("stages", [[0], [3, 1], [2, 2], [0, 1, 2, 3]])
def test_subset_of_stages_reads_those_in_that_order(cache: StoreCache, stages: list[int]) -> None:
    full = cache.read("a")
    clip = cache.read("a", [5, 2], stages=stages, pixels=False)
    assert clip.pixels is None
    assert len(clip.stages) == len(stages)
    for found, stage in zip(clip.stages, stages, strict=True):
        np.testing.assert_array_equal(found, full.stages[stage][[5, 2]])


@pytest.mark.parametrize("stages", [[], [4], [-1]])
def test_stage_that_is_not_there_is_refused(cache: StoreCache, stages: list[int]) -> None:
    with pytest.raises(ValueError, match=r"expected some of 0\.\.3"):
        cache.read("a", [0], stages=stages, pixels=False)


def test_pixels_are_read_alone(cache: StoreCache) -> None:
    clip = cache.read("a", [5, 2], stages=())
    assert (clip.stages, clip.scales, len(clip.blocks)) == ((), (), 1)
    np.testing.assert_array_equal(clip.pixels, cache.read("a", [5, 2]).pixels)


def test_out_is_filled_in_place(cache: StoreCache) -> None:
    out = cache.read("a", [0, 1, 2])
    places = [block.ctypes.data for block in out.blocks]
    again = cache.read("a", [17, 4, 9], out=out)
    assert [block.ctypes.data for block in again.blocks] == places
    assert same(again, cache.read("a", [17, 4, 9]))
    assert np.shares_memory(again.stages[3], out.blocks[0 if len(out.blocks) == 2 else 3])


def test_out_that_does_not_fit_is_refused(cache: StoreCache) -> None:
    out = cache.read("a", [0, 1, 2])
    with pytest.raises(ValueError, match="this read fills"):
        cache.read("a", [0, 1], out=out)
    with pytest.raises(ValueError, match="this read fills"):
        cache.read("a", [0, 1, 2], out=out, pixels=False)
    with pytest.raises(ValueError, match="this read fills"):
        cache.read("a", [0, 1, 2], out=out, window=(0, 0, 1, 1))


def test_out_with_gaps_between_its_values_is_refused(cache: StoreCache) -> None:
    out = cache.read("a", [0, 1])
    gappy = tuple(np.repeat(block, 2, axis=-1)[..., ::2] for block in out.blocks)
    with pytest.raises(ValueError, match="not contiguous"):
        cache.read("a", [0, 1], out=Clip(out.stages, out.pixels, out.valid, "float16", gappy))


@pytest.mark.parametrize("array", [0, -1], ids=["features", "pixels"])
@pytest.mark.parametrize("window", [None, (0, 0, 1, 1)], ids=["whole", "window"])
def test_flipped_bit_is_found_by_first_and_always_but_not_by_never(
    cache: StoreCache, array: int, window: tuple[int, int, int, int] | None
) -> None:
    path = flip_bit(cache, "a", array)
    for policy in ("first", "always"):
        with pytest.raises(CacheCorruptError, match="fails the checksum of chunk") as caught:
            StoreCache(cache.path).read("a", [0], window=window, verify=policy)
        assert str(path) in str(caught.value)
    StoreCache(cache.path).read("a", [0], window=window, verify="never")
    StoreCache(cache.path).read("b", [0], window=window, verify="always")


@pytest.mark.parametrize("window", [None, (0, 0, 1, 1)], ids=["whole", "window"])
def test_first_checks_a_chunk_once_and_always_each_time(
    cache: StoreCache, window: tuple[int, int, int, int] | None
) -> None:
    cache.read("a", [0], window=window)
    flip_bit(cache, "a")
    cache.read("a", [0], window=window)
    with pytest.raises(CacheCorruptError):
        cache.read("a", [0], window=window, verify="always")


def test_never_does_not_count_as_a_check(cache: StoreCache) -> None:
    flip_bit(cache, "a")
    cache.read("a", [0], verify="never")
    with pytest.raises(CacheCorruptError):
        cache.read("a", [0])


def test_missing_and_cut_files_are_errors_that_name_them(cache: StoreCache) -> None:
    path = flip_bit(cache, "a")
    os.truncate(path, 4000)
    with pytest.raises(CacheCorruptError, match="committed longer"):
        cache.read("a", [0, 15], verify="never")
    path.unlink()
    with pytest.raises(CacheCorruptError, match=r"is missing, but committed"):
        StoreCache(cache.path).read("a", [0])


def read_at_random(cache: StoreCache, whole: dict[str, Clip], seed: int, count: int) -> None:
    # np.array_equal: np.testing is imported at first use, and a fork may copy a held import lock.
    random = np.random.default_rng(seed)
    for _ in range(count):
        video = cache.videos[random.integers(len(cache.videos))]
        order = random.integers(len(whole[video].pixels), size=3)
        clip = cache.read(video, order.tolist(), verify="always")
        for stage in range(4):
            assert np.array_equal(clip.stages[stage], whole[video].stages[stage][order])
        assert np.array_equal(clip.pixels, whole[video].pixels[order])


def test_eight_threads_read_what_one_does(cache: StoreCache) -> None:
    whole = {video: cache.read(video) for video in cache.videos}
    fresh = StoreCache(cache.path)
    fresh._files._limit = 2  # so that files are closed under the readers' hands
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda seed: read_at_random(fresh, whole, seed, 30), range(8)))


def test_child_of_a_fork_reads_while_the_parents_threads_read(cache: StoreCache) -> None:
    whole = {video: cache.read(video) for video in cache.videos}
    stop = threading.Event()

    def keep_reading(seed: int) -> None:
        while not stop.is_set():
            read_at_random(cache, whole, seed, 1)

    with ThreadPoolExecutor(4) as pool:
        readers = [pool.submit(keep_reading, seed) for seed in range(4)]
        codes = []
        try:
            for seed in range(6):
                child = os.fork()
                if child == 0:
                    signal.alarm(60)  # a child that waits for ever ends, and fails the test
                    try:
                        read_at_random(cache, whole, 100 + seed, 10)
                    except BaseException:
                        traceback.print_exc()
                        os._exit(1)
                    os._exit(0)
                codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        finally:
            stop.set()
        for reader in readers:
            reader.result()
    assert codes == [0] * 6


def commit_one_frame_a_shard(index: ViewIndex, item: Item, num_shards: int) -> None:
    """Writes five shards of one frame, and links their files for the others."""
    records = {}
    for shard in range(num_shards):
        frame = FrameRecord(shard * SHARD_ROWS, item.item, shard, f"{shard:05d}", shard, None)
        if shard < 5:
            with RowGroup(index, BUCKET, shard) as group:
                group.put(frame, arrays(index, *values(index, item, shard)), np.ones(4))
                records[shard] = group.commit({item.item: num_shards * SHARD_ROWS}, {})
            continue
        for spec in index.layout.arrays(BUCKET):
            link = index.folder / BUCKET.name / spec.shard_path(shard)
            link.parent.mkdir(parents=True)
            link.hardlink_to(index.folder / BUCKET.name / spec.shard_path(shard % 5))
        part = replace(records[shard % 5], shard=shard, frames=(frame,))
        path = index.index / "parts" / BUCKET.name / f"{shard:08d}.json"
        path.write_bytes(seal(part.to_json()))


def test_many_shards_are_read_through_few_open_files(tmp_path: Path) -> None:
    _, index, items = make_cache(tmp_path / "cache", PLAIN, {"long": 1})
    item = index.extend(items["long"], 600 * SHARD_ROWS)
    commit_one_frame_a_shard(index, item, 600)
    cache = StoreCache(tmp_path / "cache")
    cache.view()._files._limit = 8
    held = cache.view().frames("long")
    assert len(held) == 600
    before = len(os.listdir("/proc/self/fd"))
    clip = cache.read(held, range(599, -1, -1), stages=[2])
    assert len(os.listdir("/proc/self/fd")) <= before + 8
    for place, shard in enumerate(range(599, -1, -1)):
        stages, pixels = values(index, item, shard % 5)
        np.testing.assert_array_equal(clip.stages[0][place], stages[2])
        np.testing.assert_array_equal(clip.pixels[place], pixels)


def test_unknown_video_gets_the_nearest_names(tmp_path: Path) -> None:
    cache, _, _ = make_cache(tmp_path / "cache", PLAIN, {"kitchen_01": 1, "garden": 1})
    with pytest.raises(CacheNotFoundError, match=r"no complete video 'kitchen1'; nearest: kit"):
        cache.read("kitchen1")


def test_video_under_two_selections_asks_which(tmp_path: Path) -> None:
    cache, index, _ = make_cache(tmp_path / "cache", PLAIN, {"a": 4})
    other = request("a", 2, selection={"stride": 2})
    item = index.reserve([other], [Name("a", other.item, "train")])[other.item]
    fill(index, item, 2)
    cache = StoreCache(cache.path)
    with pytest.raises(CacheError, match=r"cached 2 times.*'stride': 1.*'stride': 2"):
        cache.view().frames("a")
    assert len(cache.view().frames("a", item=other.item[:8])) == 2
    assert cache.videos == ["a"]
    with pytest.raises(CacheNotFoundError):
        cache.view().frames("a", item="nothing")


def test_incomplete_video_is_not_listed(tmp_path: Path) -> None:
    _, index, _ = make_cache(tmp_path / "cache", PLAIN, {"a": 4})
    half = request("half", 32)
    item = index.reserve([half], [Name("half", half.item)])[half.item]
    fill(index, item, 32, shards={item.row_of(16) // SHARD_ROWS})
    cache = StoreCache(tmp_path / "cache")
    assert cache.videos == ["a"]
    with pytest.raises(CacheNotFoundError, match="no complete video 'half'"):
        cache.read("half")


def test_reader_opened_earlier_still_reads_after_the_view_grew(cache: StoreCache) -> None:
    before = cache.read("a")
    index = cache.view().index
    more = request("more", 50)
    fill(index, index.reserve([more], [Name("more", more.item)])[more.item], 50)
    index.fold()
    assert same(cache.read("a", verify="always"), before)
    assert "more" not in cache.videos
    assert "more" in StoreCache(cache.path).videos


@pytest.mark.parametrize("sharded", [True, False])
def test_array_written_again_with_another_codec_reads_equal(
    cache: StoreCache, sharded: bool
) -> None:
    before, window = cache.read("a"), cache.read("a", [1, 18], window=(0, 1, 1, 2))
    view = cache.view()
    spec = view.index.layout.arrays(BUCKET)[0]
    folder = view.folder / BUCKET.name / spec.name
    data = zarr.open_array(folder, mode="r")[:]
    shutil.rmtree(folder)
    inner = (1, *spec.chunk_shape) if spec.name != "tokens" else (1, 1, *spec.chunk_shape)
    array = zarr.create_array(
        folder,
        shape=data.shape,
        dtype=data.dtype,
        chunks=inner,
        shards=(SHARD_ROWS, *spec.row_shape) if sharded else None,
        compressors=zarr.codecs.ZstdCodec(level=1),
    )
    array[:] = data
    again = StoreCache(cache.path)
    assert same(again.read("a"), before)
    assert same(again.read("a", [1, 18], window=(0, 1, 1, 2)), window)
    for path in folder.glob("c/0/**/*"):
        if path.is_file():
            path.unlink()
    with pytest.raises(CacheCorruptError, match="is missing, but committed"):
        StoreCache(cache.path).read("a", [0])
