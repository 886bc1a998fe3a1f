"""Who gets which rows: no row twice, images sixteen to a shard, rows that never move."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fcache.store.cache import create_root
from fcache.store.index import ViewIndex
from fcache.store.layout import Bucket
from fcache.store.records import Item, ItemRequest, Name
from fcache.store.rows import FreeRows
from tests.store.making import BUCKET, PLAIN, fill, request

OTHER = Bucket(96, 64)


def image(name: str, bucket: Bucket = BUCKET) -> ItemRequest:
    return replace(request(name, 1, bucket), packed=True)


@pytest.fixture
def index(tmp_path: Path) -> ViewIndex:
    create_root(tmp_path / "cache")
    return ViewIndex.create(tmp_path / "cache", PLAIN, {})


def reserve(index: ViewIndex, *requests: ItemRequest) -> list[Item]:
    items = index.reserve(requests, [Name(one.content, one.item) for one in requests])
    return [items[one.item] for one in requests]


def test_images_fill_a_shard_row_by_row_and_then_the_next() -> None:
    rows = FreeRows({})
    taken = [rows.take(image(f"i{n}")) for n in range(35)]
    assert taken == [((n, 1),) for n in range(35)]
    assert rows.take(request("v", 3)) == ((48, 16),)


def test_a_video_between_images_lies_behind_the_shard_they_fill() -> None:
    rows = FreeRows({BUCKET: 32})
    assert rows.take(image("a")) == ((32, 1),)
    assert rows.take(request("v", 17)) == ((48, 32),)
    assert rows.take(image("b")) == ((33, 1),)


def test_buckets_are_filled_apart() -> None:
    rows = FreeRows({BUCKET: 16})
    assert rows.take(image("a")) == ((16, 1),)
    assert rows.take(image("b", OTHER)) == ((0, 1),)


def test_a_video_of_which_every_frame_is_borrowed_gets_no_row() -> None:
    rows = FreeRows({BUCKET: 16})
    assert rows.take(replace(request("v", 0), borrowed=((0, 3),))) == ()
    assert rows.take(request("w", 0)) == ((16, 16),)


def test_every_reservation_of_images_begins_a_shard(index: ViewIndex) -> None:
    first = reserve(index, image("a"), image("b"))
    second = reserve(index, image("a"), image("c"), image("d"))
    assert [item.row_of(0) for item in first] == [0, 1]
    assert [item.row_of(0) for item in second] == [0, 16, 17]


def test_images_left_out_of_their_shard_get_rows_of_another(index: ViewIndex) -> None:
    first, second, third = reserve(index, image("a"), image("b"), image("c"))
    fill(index, first, 1)
    state = index.load()
    assert [state.is_left_out(one, "tokens") for one in (first, second, third)] == [
        False,
        True,
        True,
    ]
    index.renew([second, third])
    items = index.load().items
    assert [items[one.item].row_of(0) for one in (first, second, third)] == [0, 16, 17]


def test_an_image_that_two_jobs_move_is_moved_once(index: ViewIndex) -> None:
    first, second = reserve(index, image("a"), image("b"))
    fill(index, first, 1)
    index.renew([second])
    moved = index.load().items[second.item]
    fill(index, moved, 1)
    index.renew([second])  # the other job looked before the first had moved it
    assert index.load().items[second.item] == moved
    assert index.load().is_complete(moved, "tokens")


def test_an_image_whose_commit_is_taken_back_tells_its_end_again(index: ViewIndex) -> None:
    (first, second) = reserve(index, image("a"), image("b"))
    fill(index, first, 1)
    index.fold()
    assert index.load().is_done(first)
    index.forget(BUCKET, [0])
    state = index.load()
    assert not state.is_done(first)
    assert not state.is_left_out(second, "tokens")
    assert state.missing(first, "tokens") == [(0, 0)]


def test_items_of_every_kind_read_back_as_they_were_written(index: ViewIndex) -> None:
    lender = request("v", 20)
    made = reserve(
        index,
        image("a"),
        lender,
        replace(request("w", 3), draw=0),
        replace(request("x", 0), borrowed=((0, 17), (2, 19)), selection={"stride": 2}),
    )
    for item in made:
        assert index.load().items[item.item] == item
