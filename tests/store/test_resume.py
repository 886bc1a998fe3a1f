"""Samples of a cache, and a verify that goes on where it was stopped."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest

from fcache.errors import ConfigError
from fcache.store.cache import StoreCache
from fcache.store.index import ViewIndex
from fcache.store.layout import SHARD_ROWS
from fcache.store.records import Name
from fcache.store.repair import examine
from fcache.store.resume import ShardPass, forget_progress, open_passes
from fcache.store.root import view_folders
from fcache.store.scrub import Sample, check_shards
from tests.store.making import BUCKET, PLAIN, PYRAMID, fill, make_cache, request
from tests.store.test_verify import flip, shard_file


@pytest.fixture
def index(tmp_path: Path) -> ViewIndex:
    """Six shards, twelve files."""
    _, index, _ = make_cache(tmp_path / "cache", PLAIN, {"a": 60, "b": 20})
    return index


def passes_of(cache: Path, sample: Sample | None = None, *, resume: bool) -> list[ShardPass]:
    views = [examine(folder, repair=False) for folder in view_folders(cache)]
    return open_passes(views, sample, resume=resume)[0]


def stop_after(one: ShardPass, count: int) -> None:
    """Reads that many files and is interrupted."""
    assert len(list(islice(one.run(), count))) == count
    one.save()


def resumed(index: ViewIndex) -> ShardPass:
    (one,) = passes_of(index.folder.parent, resume=True)
    return one


def keys(one: ShardPass) -> list[tuple[str, str, int]]:
    return [checked.key for checked in one.run()]


@pytest.mark.parametrize(
    ("amount", "count"),
    [("5%", 1), ("50%", 6), ("51%", 7), ("100%", 12), ("0.1%", 1), ("1", 1), ("99", 12)],
)
def test_sample_has_as_many_files_as_it_says(index: ViewIndex, amount: str, count: int) -> None:
    (one,) = passes_of(index.folder.parent, Sample(amount, 0), resume=False)
    assert len(one.keys) == len(keys(one)) == count
    assert one.num_committed == 12


@pytest.mark.parametrize("amount", ["0", "-3", "0%", "101%", "x", "", "%", "1.5", "nan%"])
def test_sample_that_is_none_is_refused(amount: str) -> None:
    with pytest.raises(ConfigError, match="expected a share such as 5%"):
        Sample(amount, 0)


def test_sample_is_drawn_from_all_views_and_stays_the_same_by_its_seed(tmp_path: Path) -> None:
    make_cache(tmp_path, PLAIN, {"a": 60})
    _, index, _ = make_cache(tmp_path, PYRAMID, {"a": 60})

    def draw(seed: int) -> set[tuple[str, tuple[str, str, int]]]:
        passes = passes_of(tmp_path, Sample("9", seed), resume=False)
        return {(one.index.folder.name, key) for one in passes for key in one.keys}

    assert draw(1) == draw(1)
    assert len(draw(1)) == 9
    drawn = [draw(seed) for seed in range(40)]
    assert {len(one & other) for one in drawn for other in drawn if one is not other} != {9}
    assert {view for one in drawn for view, _ in one} == {*(p.name for p in view_folders(tmp_path))}
    assert len(set.union(*drawn)) == 4 * 2 + 4 * 5  # every file has its chance
    before = draw(7)
    wanted = request("more", 20)
    fill(index, index.reserve([wanted], [Name("more", wanted.item)])[wanted.item], 20)
    assert len(draw(7) & before) >= 5  # files that came later take a few places at most


def test_interrupted_verify_reads_only_the_rest_and_keeps_its_findings(index: ViewIndex) -> None:
    flip(shard_file(index, -1, 0), 5)
    (one,) = passes_of(index.folder.parent, resume=False)
    stop_after(one, 7)
    rest = resumed(index)
    assert rest.num_done == 7
    assert rest.findings == one.findings
    assert [(f.shard, f.videos, f.path) for f in rest.findings] == [
        (0, ("a",), shard_file(index, -1, 0))
    ]
    assert keys(rest) == one.keys[7:]
    assert rest.num_done == 12
    rest.save()
    assert keys(resumed(index)) == []
    forget_progress([rest])
    assert keys(resumed(index)) == one.keys


def test_moved_cache_is_gone_on_with(index: ViewIndex, tmp_path: Path) -> None:
    flip(shard_file(index, -1, 0), 5)
    (one,) = passes_of(index.folder.parent, resume=False)
    stop_after(one, 7)
    index.folder.parent.rename(tmp_path / "moved")
    moved = ViewIndex(tmp_path / "moved" / index.folder.name)
    assert [one.path for one in resumed(moved).findings] == [shard_file(moved, -1, 0)]


def test_killed_verify_has_kept_what_it_said_it_keeps(
    index: ViewIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fcache.store.resume.SAVE_S", 0)
    (one,) = passes_of(index.folder.parent, resume=False)
    assert len(list(islice(one.run(), 5))) == 5
    assert keys(resumed(index)) == one.keys[5:]


def test_shards_made_again_meanwhile_are_read_again(index: ViewIndex) -> None:
    flip(shard_file(index, -1, 1), 5)
    (one,) = passes_of(index.folder.parent, resume=False)
    stop_after(one, 11)
    assert [finding.shard for finding in one.findings] == [1]
    item = next(item for item in index.load().items.values() if item.row_of(0) == 0)
    index.forget(BUCKET, [1])
    fill(index, item, 60, {1})
    rest = resumed(index)
    assert rest.findings == []
    assert keys(rest) == [(BUCKET.name, "pixels", 1), (BUCKET.name, "tokens", 1), one.keys[11]]


def test_shards_committed_meanwhile_are_read_and_those_folded_are_not_read_twice(
    index: ViewIndex,
) -> None:
    (one,) = passes_of(index.folder.parent, resume=False)
    stop_after(one, 12)
    wanted = request("more", 3)
    fill(index, index.reserve([wanted], [Name("more", wanted.item)])[wanted.item], 3)
    index.fold()
    assert keys(resumed(index)) == [(BUCKET.name, "pixels", 6), (BUCKET.name, "tokens", 6)]


def test_sample_is_gone_on_with(index: ViewIndex) -> None:
    (one,) = passes_of(index.folder.parent, Sample("50%", 3), resume=False)
    stop_after(one, 2)
    rest = resumed(index)
    assert (rest.sample, rest.keys) == (Sample("50%", 3), one.keys)
    assert keys(rest) == one.keys[2:]


def test_damaged_progress_starts_over(index: ViewIndex) -> None:
    (one,) = passes_of(index.folder.parent, resume=False)
    stop_after(one, 5)
    flip(index.index / "verify.json", 30)
    assert keys(resumed(index)) == one.keys


def test_progress_that_cannot_be_kept_is_said_once_and_stops_nothing(
    index: ViewIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fcache.store.resume.SAVE_S", 0)
    (one,) = passes_of(index.folder.parent, resume=False)
    (index.index / "verify.json").mkdir()  # nobody, not even root, writes a file over a folder
    assert keys(one) == one.keys
    assert "verify.json" in one.unsaved
    assert list(index.index.glob(".verify*")) == []


def test_files_come_in_order_however_many_threads_read_them(index: ViewIndex) -> None:
    state = index.load()
    every = [checked.key for checked in check_shards(index, state)]
    assert every == sorted(state.shards.keys())
    some = every[::-3]
    assert [checked.key for checked in check_shards(index, state, some)] == some
    assert sum(checked.size_bytes for checked in check_shards(index, state)) == sum(
        path.stat().st_size for path in index.folder.glob("*/*/c/**/*") if path.is_file()
    )
    assert StoreCache(index.folder.parent).videos == ["a", "b"]
    assert len(every) == 2 * (80 // SHARD_ROWS + 1)
