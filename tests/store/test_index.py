"""Bookkeeping: rows, names, commits, folding, and jobs that do all of it at once."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fcache.errors import CacheCorruptError, CacheError, CacheNotFoundError
from fcache.store import tables as tables_module
from fcache.store.cache import StoreCache, create_root
from fcache.store.files import unseal
from fcache.store.index import ViewIndex
from fcache.store.layout import SHARD_ROWS, Bucket
from fcache.store.records import Item, Name, Outcome, Part
from fcache.store.tables import Tables
from fcache.store.verify import check_metadata, unfinished
from tests.store.making import BUCKET, PLAIN, PYRAMID, fill, make_cache, request, values

OTHER = Bucket(96, 64)


@pytest.fixture
def index(tmp_path: Path) -> ViewIndex:
    create_root(tmp_path / "cache")
    return ViewIndex.create(tmp_path / "cache", PLAIN, {})


def reserve(index: ViewIndex, name: str, num_frames: int, bucket: Bucket = BUCKET) -> Item:
    wanted = request(name, num_frames, bucket)
    return index.reserve([wanted], [Name(name, wanted.item, "train")])[wanted.item]


def rows(item: Item) -> set[tuple[str, int]]:
    found = {(item.bucket.name, first + k) for first, count in item.extents for k in range(count)}
    assert len(found) == item.num_rows
    return found


def tree(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_view_without_bookkeeping_is_empty_and_sound(index: ViewIndex) -> None:
    state = index.load()
    assert (state.items, state.names, state.outcomes) == ({}, [], {})
    assert (state.generation, index.generation()) == (0, 0)
    assert list(check_metadata(index, state)) == []


def test_content_that_changes_back_is_named_last_again(index: ViewIndex) -> None:
    old, new = request("old", 3), request("new", 3)
    for wanted in (old, new, old):
        index.reserve([wanted], [Name("video", wanted.item)])
        assert index.load().names[-1].item == wanted.item
    before = tree(index.folder)
    index.reserve([old], [Name("video", old.item)])
    assert tree(index.folder) == before


def test_selections_of_a_video_do_not_take_each_other_back(index: ViewIndex) -> None:
    every, some = request("a", 3), request("a", 3, selection={"stride": 2})
    for wanted in (every, some):
        index.reserve([wanted], [Name("a", wanted.item)])
    before = tree(index.folder)
    index.reserve([every], [Name("a", every.item)])
    assert tree(index.folder) == before


def test_reserving_twice_changes_nothing(index: ViewIndex) -> None:
    requests = [request("a", 20), request("b", 3, OTHER)]
    names = [Name("a", requests[0].item), Name("b", requests[1].item)]
    first = index.reserve(requests, names)
    before = tree(index.folder)
    assert index.reserve(requests, names) == first
    assert tree(index.folder) == before


def test_rows_are_whole_shards_of_one_video_each(index: ViewIndex) -> None:
    items = [reserve(index, str(number), number) for number in (1, 16, 17, 33)]
    assert [item.num_rows for item in items] == [16, 16, 32, 48]
    assert [item.extents[0][0] for item in items] == [0, 16, 32, 64]
    assert reserve(index, "elsewhere", 5, OTHER).extents == ((0, 16),)


def test_rows_never_move_and_an_item_grows_at_the_end(index: ViewIndex) -> None:
    first, second = reserve(index, "first", 16), reserve(index, "second", 16)
    grown = index.extend(first, 40)
    assert grown.extents == ((0, 16), (32, 32))
    assert [grown.row_of(k) for k in (0, 15, 16, 47)] == [0, 15, 32, 63]
    with pytest.raises(IndexError, match="none for frame 48"):
        grown.row_of(48)
    third = reserve(index, "third", 1)
    assert third.extents == ((64, 16),)
    assert index.extend(first, 48) == grown
    again = index.reserve([request("first", 16)], [])
    assert (again[grown.item], again[second.item]) == (grown, second)


def test_grown_view_reads_frames_old_and_appended(tmp_path: Path) -> None:
    _, index, items = make_cache(tmp_path / "cache", PYRAMID, {"a": 16, "b": 2})
    item = index.extend(items["a"], 20)
    fill(index, item, 20, {item.row_of(16) // SHARD_ROWS})
    cache = StoreCache(tmp_path / "cache")
    held = cache.view().frames("a")
    assert held.rows == (*range(16), 32, 33, 34, 35)
    clip = cache.read("a", verify="always")
    for frame in range(20):
        stages, pixels = values(index, item, frame)
        np.testing.assert_array_equal(clip.stages[2][frame], stages[2])
        np.testing.assert_array_equal(clip.pixels[frame], pixels)


RESERVE_MANY = """
import sys
from pathlib import Path
from fcache.store.index import ViewIndex
from fcache.store.records import Name
from tests.store.making import request
index = ViewIndex(Path(sys.argv[1]))
sys.stdin.readline()
for k in range(12):
    wanted = request(f"{sys.argv[2]} {k}", 5 + k)
    shared = request(f"shared {k}", 20)
    items = index.reserve([wanted, shared], [Name(f"{sys.argv[2]} {k}", wanted.item)])
    index.extend(items[wanted.item], 40)
"""


def test_processes_that_reserve_at_once_get_rows_of_their_own(index: ViewIndex) -> None:
    command = [sys.executable, "-c", RESERVE_MANY, str(index.folder)]
    jobs = [subprocess.Popen([*command, name], stdin=subprocess.PIPE, text=True) for name in "xyz"]
    for job in jobs:
        job.stdin.write("go\n")
        job.stdin.close()
    assert [job.wait(60) for job in jobs] == [0, 0, 0]
    state = index.load()
    assert len(state.items) == 3 * 12 + 12
    assert len(state.names) == 3 * 12
    given = [rows(item) for item in state.items.values()]
    assert len(set.union(*given)) == sum(len(one) for one in given)
    assert list(check_metadata(index, state)) == []


def test_threads_that_reserve_at_once_get_rows_of_their_own(index: ViewIndex) -> None:
    with ThreadPoolExecutor(6) as pool:
        items = list(pool.map(lambda k: reserve(index, str(k), 20), range(18)))
    assert len(set.union(*(rows(item) for item in items))) == 18 * 32


def test_name_of_an_unknown_item_is_refused(index: ViewIndex) -> None:
    with pytest.raises(ValueError, match="'a' names the unknown item nothing"):
        index.reserve([], [Name("a", "nothing")])
    assert index.load().names == []


@pytest.mark.parametrize("video", ["a b", "c/d/é", "漢字", "..", '"quoted"\\', "line\nbreak"])
def test_any_video_id_is_kept_as_it_is(tmp_path: Path, video: str) -> None:
    cache, index, _ = make_cache(tmp_path / "cache", PLAIN, {video: 3})
    assert cache.videos == [video]
    assert cache.read(video).pixels.shape[0] == 3
    index.fold()
    assert StoreCache(tmp_path / "cache").view().frames(video).video_id == video


def test_second_id_for_the_same_item_shares_its_rows(tmp_path: Path) -> None:
    _, index, items = make_cache(tmp_path / "cache", PLAIN, {"a": 3})
    index.reserve([request("a", 3)], [Name("alias", items["a"].item, "val")])
    cache = StoreCache(tmp_path / "cache")
    assert cache.videos == ["a", "alias"]
    assert cache.view().frames("alias").rows == cache.view().frames("a").rows
    assert cache.view().frames("alias").split == "val"


def test_split_that_was_said_last_stands(tmp_path: Path) -> None:
    _, index, items = make_cache(tmp_path / "cache", PLAIN, {"a": 3, "b": 1})
    for split in ("val", "train", "test"):
        index.reserve([], [Name("a", items["a"].item, split)])
    cache = StoreCache(tmp_path / "cache")
    assert cache.videos == ["a", "b"]
    assert cache.view().frames("a").split == "test"


def test_folding_keeps_everything_and_folding_again_changes_nothing(tmp_path: Path) -> None:
    cache, index, items = make_cache(tmp_path / "cache")
    before = {video: cache.read(video) for video in cache.videos}
    reserve(index, "unfinished", 20)
    index.end(Outcome("z", "quarantined", 0, "broken", "z"))
    index.fold()
    assert not list((index.index / "parts").glob("*/*.json"))
    files = tree(index.folder)
    index.fold()
    assert tree(index.folder) == files
    again = StoreCache(tmp_path / "cache")
    assert again.videos == list(before)
    for video, clip in before.items():
        np.testing.assert_array_equal(again.read(video).pixels, clip.pixels)
    state = again.view().state
    assert (state.generation, index.generation()) == (1, 1)
    assert state.outcomes["z"].reason == "broken"
    assert unfinished(index, state) == ["unfinished"]
    assert state.missing(items["a"], "tokens") == []


def test_fold_that_died_before_it_cleaned_up_is_finished_by_the_next(tmp_path: Path) -> None:
    _, index, items = make_cache(tmp_path / "cache", PLAIN, {"a": 40})
    parts = tree(index.index / "parts")
    index.fold()
    for path, data in parts.items():
        path.write_bytes(data)
    for _ in range(2):
        state = index.load()
        assert len(state.tables.frames) == 40
        assert len(state.tables.shards) == 3 * 2
        assert state.outcomes[items["a"].item].num_frames == 40
        index.fold()
    assert len(StoreCache(tmp_path / "cache").view().frames("a")) == 40


def test_reader_never_misses_a_frame_while_others_commit_and_fold(index: ViewIndex) -> None:
    item = reserve(index, "a", 60 * SHARD_ROWS)
    committed = 0
    done = threading.Event()
    stop = threading.Event()

    def commit() -> None:
        nonlocal committed
        for _, shard in item.shards():
            fill(index, item, item.num_rows, {shard})
            committed += 1
        index.end(Outcome("ended alone", "done", 3))
        done.set()
        time.sleep(0.3)  # the end is folded, and must be seen all the while

    def fold() -> None:
        while not stop.is_set():
            index.fold()

    reader = ViewIndex(index.folder)
    with ThreadPoolExecutor(3) as pool:
        jobs = [pool.submit(commit), pool.submit(fold), pool.submit(fold)]
        try:
            while not jobs[0].done():
                ended, at_least = done.is_set(), committed
                state = reader.load()
                assert len(state.tables.shards) >= 2 * at_least
                assert len(state.tables.frames) * 2 == len(state.tables.shards) * SHARD_ROWS
                assert ("ended alone" in state.outcomes) or not ended
        finally:
            stop.set()
        for job in jobs:
            job.result()
    assert index.load().is_complete(item, "tokens")
    assert index.generation() > 2


def test_commit_that_comes_while_folding_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, index, _ = make_cache(tmp_path / "cache", PLAIN, {"a": 3})
    part = Part.from_json(unseal(index.index / "parts" / BUCKET.name / "00000000.json"))
    newer = replace(part, provenance={"by": "a job that took the shard over"})
    job = threading.Thread(target=index.commit, args=[newer])
    save = Tables.save

    def commit_then_save(tables: Tables, folder: Path, items: dict[str, Item]) -> None:
        job.start()
        job.join(0.2)
        save(tables, folder, items)

    monkeypatch.setattr(Tables, "save", commit_then_save)
    index.fold()
    job.join()
    assert set(index.load().tables.shards["provenance"].to_pylist()) == {
        '{"by":"a job that took the shard over"}'
    }


def test_tables_that_are_put_by_while_they_are_read_are_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, index, _ = make_cache(tmp_path / "cache", PLAIN, {"a": 3})
    index.fold()
    reads = []
    load_table = tables_module._load_table

    def fold_twice_then_load(*arguments: Any) -> Any:
        reads.append(arguments)
        if len(reads) == 2:
            for _ in range(2):
                index.end(Outcome("other", "done", 1))
                index.fold()
        return load_table(*arguments)

    monkeypatch.setattr(tables_module, "_load_table", fold_twice_then_load)
    state = ViewIndex(index.folder).load()
    assert len(state.tables.frames) == 3
    assert state.generation == 3


def test_commits_are_seen_whether_folded_or_not(tmp_path: Path) -> None:
    _, index, _ = make_cache(tmp_path / "cache", PLAIN, {"a": 20})
    assert index.is_committed(BUCKET, 1, known=0)
    assert not index.is_committed(BUCKET, 2, known=0)
    assert not index.is_committed(OTHER, 1, known=0)
    index.fold()
    assert index.is_committed(BUCKET, 1, known=0)
    assert not index.is_committed(BUCKET, 2, known=0)


def test_quarantine_hides_an_item_until_it_is_released(tmp_path: Path) -> None:
    cache, index, items = make_cache(tmp_path / "cache", PLAIN, {"a": 3, "b": 3})
    index.end(Outcome(items["a"].item, "quarantined", 0, "the file is cut short"))
    state = index.load()
    assert StoreCache(cache.path).videos == ["b"]
    assert state.outcomes[items["a"].item].reason == "the file is cut short"
    assert unfinished(index, state) == []
    index.fold()
    assert StoreCache(cache.path).videos == ["b"]
    index.release(items["a"].item)
    assert StoreCache(cache.path).videos == ["a", "b"]


def test_end_without_a_commit_record_counts_and_ends_quarantine(index: ViewIndex) -> None:
    item = reserve(index, "a", 33)
    fill(index, item, 32)  # the decoder found 32: the last full shard did not know it
    index.forget(BUCKET, [2])
    parts = tree(index.index / "parts")
    assert len(parts) == 2
    index.end(Outcome(item.item, "quarantined", 0, "a passing fault"))
    index.end(Outcome(item.item, "done", 32))
    for _ in range(2):
        state = index.load()
        assert state.outcomes[item.item] == Outcome(item.item, "done", 32)
        assert state.is_complete(item, "tokens")
        index.fold()
    assert not list((index.index / "ended").glob("*"))


@pytest.mark.parametrize("folded", [False, True])
def test_forget_makes_exactly_those_shards_missing(tmp_path: Path, folded: bool) -> None:
    cache, index, items = make_cache(tmp_path / "cache", PLAIN, {"a": 70, "b": 20})
    if folded:
        index.fold()
    index.forget(BUCKET, [1, 4])
    state = index.load()
    assert state.missing(items["a"], "tokens") == [(16, 1), (64, 4)]
    assert state.missing(items["b"], "tokens") == []
    assert state.outcomes[items["a"].item].num_frames == 70  # shard 4 had told so
    assert StoreCache(cache.path).videos == ["b"]
    fill(index, items["a"], 70, {1, 4})
    assert len(StoreCache(cache.path).read("a").pixels) == 70


def test_frames_beyond_an_items_end_are_not_read(tmp_path: Path) -> None:
    _, index, items = make_cache(tmp_path / "cache", PLAIN, {"a": 40})
    index.end(Outcome(items["a"].item, "done", 20))  # another decoder's opinion
    assert len(StoreCache(tmp_path / "cache").view().frames("a")) == 20


def test_embedded_manifest_is_kept_once(index: ViewIndex) -> None:
    index.embed({"videos": ["a"]}, "f" * 64)
    index.embed({"videos": ["other"]}, "f" * 64)
    assert index.manifests() == [{"videos": ["a"]}]


def test_opening_an_identity_again_finds_the_same_view(tmp_path: Path) -> None:
    create_root(tmp_path / "cache")
    first = ViewIndex.create(tmp_path / "cache", PLAIN, {"by": "first"})
    second = ViewIndex.create(tmp_path / "cache", dict(reversed(PLAIN.items())), {"by": "second"})
    assert second.folder == first.folder
    assert second.attributes["provenance"] == {"by": "first"}
    other = ViewIndex.create(tmp_path / "cache", {**PLAIN, "dtype": "float32"}, {})
    assert other.folder != first.folder


def test_renamed_view_is_refused(index: ViewIndex) -> None:
    renamed = index.folder.with_name("0" * 16)
    index.folder.rename(renamed)
    with pytest.raises(CacheCorruptError, match="a folder is named by its view's identity"):
        ViewIndex(renamed)


def test_folder_without_a_view_is_refused(tmp_path: Path) -> None:
    create_root(tmp_path / "cache")
    with pytest.raises(CacheNotFoundError, match="holds no view"):
        ViewIndex(tmp_path / "cache")
    with pytest.raises(CacheNotFoundError, match="holds no view"):
        ViewIndex(tmp_path)


def test_view_of_a_newer_layout_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create_root(tmp_path / "cache")
    monkeypatch.setattr("fcache.store.index.LAYOUT_VERSION", 2)
    with pytest.raises(CacheError, match="has layout 2; this fcache reads up to 1"):
        ViewIndex.create(tmp_path / "cache", PLAIN, {})
