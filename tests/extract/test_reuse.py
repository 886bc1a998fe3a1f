"""Partial re-use: of what a view holds already nothing is computed again, and nothing is lost."""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fcache.cache import open_cache
from fcache.errors import CacheError
from fcache.extract import job
from fcache.extract.request import plan_request, read_request
from fcache.manifest import Manifest, Video
from fcache.sources.content import content_hash
from fcache.store.index import ViewIndex
from fcache.store.inspect import list_videos, summarise
from fcache.store.verify import unfinished
from tests.extract.making import (
    assert_same,
    assert_sound,
    expected,
    extract,
    make_video,
    plan_of,
    shard_hashes,
    stored,
    tree,
    words,
)
from tests.sources.media import moving_frames

EVEN = [f"{number:03d}" for number in range(10, 50, 2)]  # 20 frames, more than a shard


def make_frames(
    folder: Path, names: Iterable[str], sides: tuple[int, int] = (48, 64), salt: str = ""
) -> Path:
    """A folder of frames, each decided by its name and the salt; adds to what is there."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        seed = zlib.crc32(f"{name}{salt}".encode())
        Image.fromarray(moving_frames(1, *sides, seed=seed)[0]).save(folder / f"{name}.png")
    return folder


def names_of(cache: Path, video: str, **which) -> tuple[str, ...]:
    return open_cache(cache).view().frames(video, **which).names


@pytest.mark.parametrize(
    "added",
    [["005"], ["013", "027"], ["049", "050"], ["001", "011", "031", "033", "060"]],
    ids=["front", "middle", "end", "everywhere"],
)
def test_a_folder_that_grew_computes_its_new_frames_alone(tmp_path: Path, added: list[str]) -> None:
    folder, cache = make_frames(tmp_path / "v", EVEN), tmp_path / "cache"
    assert extract(folder, cache).num_frames == 20
    before = shard_hashes(cache)
    make_frames(folder, added)
    plan = plan_of(folder, cache)
    assert (plan.num_frames, plan.todo_frames, plan.borrowed_frames) == (
        20 + len(added),
        len(added),
        20,
    )
    assert extract(folder, cache).num_frames == len(added)
    assert before.items() <= shard_hashes(cache).items()
    assert names_of(cache, "v") == tuple(sorted([*EVEN, *added]))
    held = open_cache(cache).view().frames("v")
    assert held.source_index == tuple(range(20 + len(added)))
    assert_same(stored(cache, "v"), expected(folder, "frames"))
    assert_sound(cache)
    # Neither the table of videos nor the sums count a frame twice.
    view = open_cache(cache).view()
    rows = [(row.video_id, row.state, row.num_frames) for row in list_videos(view)]
    assert rows == [("v", "complete", 20 + len(added))]
    assert summarise(view).num_frames == 20 + len(added)
    whole = tree(cache)
    assert extract(folder, cache).num_frames == 0
    assert tree(cache) == whole


def test_a_folder_that_grew_again_and_again_borrows_from_all_before(tmp_path: Path) -> None:
    folder, cache = make_frames(tmp_path / "v", EVEN), tmp_path / "cache"
    extract(folder, cache)
    for name in ("013", "000", "099"):
        make_frames(folder, [name])
        assert extract(folder, cache).num_frames == 1
    assert_same(stored(cache, "v"), expected(folder, "frames"))
    (folder / "013.png").unlink()
    (folder / "016.png").unlink()
    assert extract(folder, cache).num_frames == 0
    assert len(names_of(cache, "v")) == 21
    assert_same(stored(cache, "v"), expected(folder, "frames"))
    assert_sound(cache)


def test_a_frame_replaced_under_its_name_is_computed_and_comes_back_when_it_does(
    tmp_path: Path,
) -> None:
    folder, cache = make_frames(tmp_path / "v", EVEN), tmp_path / "cache"
    extract(folder, cache)
    make_frames(folder, ["014"], salt="other")
    assert extract(folder, cache).num_frames == 1
    assert_same(stored(cache, "v"), expected(folder, "frames"))
    # Back again, beside a frame that is new: both contents of '014' are there to choose from.
    make_frames(folder, ["014", "099"])
    assert extract(folder, cache).num_frames == 1
    assert_same(stored(cache, "v"), expected(folder, "frames"))
    assert_sound(cache)


def test_a_frame_renamed_is_another_for_labels_join_by_name(tmp_path: Path) -> None:
    folder, cache = make_frames(tmp_path / "v", EVEN), tmp_path / "cache"
    extract(folder, cache)
    (folder / "014.png").rename(folder / "015.png")
    assert extract(folder, cache).num_frames == 1
    assert "015" in names_of(cache, "v")
    assert "014" not in names_of(cache, "v")


def make_source(kind: str, tmp_path: Path) -> Path:
    if kind == "video":
        return make_video(tmp_path / "v.mp4", 50)
    return make_frames(tmp_path / "v", [f"{number:03d}" for number in range(50)])


@pytest.mark.parametrize("kind", ["video", "frames"])
def test_some_frames_first_and_then_all_computes_those_that_lack(tmp_path: Path, kind: str) -> None:
    source, cache = make_source(kind, tmp_path), tmp_path / "cache"
    assert extract(source, cache, stride=3).num_frames == 17
    assert extract(source, cache).num_frames == 33
    with pytest.raises(CacheError, match="cached 2 times"):
        open_cache(cache).view().frames("v")
    assert_whole(cache, source, kind, {"": 50, "stride": 17})
    assert summarise(open_cache(cache).view()).num_frames == 50


@pytest.mark.parametrize("kind", ["video", "frames"])
def test_all_frames_first_and_then_some_computes_nothing(tmp_path: Path, kind: str) -> None:
    source, cache = make_source(kind, tmp_path), tmp_path / "cache"
    assert extract(source, cache).num_frames == 50
    before = shard_hashes(cache)
    plan = plan_of(source, cache, stride=3)
    assert (plan.num_frames, plan.todo_frames, plan.todo_bytes) == (17, 0, 0)
    assert extract(source, cache, stride=3).num_frames == 0
    assert extract(source, cache, stride=7, max_frames=3).num_frames == 0
    assert shard_hashes(cache) == before
    assert_whole(cache, source, kind, {"": 50, "stride": 17, "max_frames": 3})
    assert [row.state for row in list_videos(open_cache(cache).view())] == ["complete"] * 3


def assert_whole(cache: Path, source: Path, kind: str, lengths: dict[str, int]) -> None:
    """Every selection of the video reads back equal to a direct call."""
    view = open_cache(cache).view()
    found = {}
    for item, _ in view.catalogue.items("v"):
        held = view.frames("v", item=item.item)
        chosen = {key: value for key, value in item.selection.items() if key != "reuse"}
        clip = view.read(held)
        floats = [clip.floats(stage) for stage in range(4)]
        assert_same((clip.pixels, floats), expected(source, kind, **chosen))
        found[max(item.selection, default="") if len(item.selection) < 2 else "max_frames"] = len(
            held
        )
    assert found == lengths
    assert_sound(cache)


def test_a_promise_of_fewer_frames_than_are_there_does_not_end_the_video(tmp_path: Path) -> None:
    path, cache = make_source("video", tmp_path), tmp_path / "cache"
    video = Video(
        id="v", path=str(path), kind="video", sha256=content_hash(path, "video"),
        num_frames=5, height=48, width=64,
    )  # fmt: skip
    Manifest(name="m", videos=(video,)).write(tmp_path / "m.toml")
    extract(tmp_path / "m.toml", cache, stride=3)
    assert extract(tmp_path / "m.toml", cache).num_frames == 33
    assert_whole(cache, path, "video", {"": 50, "stride": 17})


def test_a_selection_by_time_of_a_video_is_computed(tmp_path: Path) -> None:
    """Which frames it takes is known only once they are decoded."""
    source, cache = make_source("video", tmp_path), tmp_path / "cache"
    extract(source, cache)
    assert extract(source, cache, fps=6).num_frames == 13


def test_some_frames_of_a_video_whose_last_shard_is_lost_end_where_the_video_does(
    tmp_path: Path,
) -> None:
    source, cache = make_video(tmp_path / "v.mp4", 40), tmp_path / "cache"
    extract(source, cache)
    (view,) = open_cache(cache).views
    view.index.forget(view.frames("v").item.bucket, [2])
    # 16 of the 20 are there; that the last four lack must not pass for the video's end.
    assert extract(source, cache, stride=2).num_frames == 4
    view = open_cache(cache).view()
    assert len(view.frames("v")) == 20
    assert_same(stored(cache, "v"), expected(source, stride=2))


def test_a_file_that_was_damaged_lends_its_sound_part(tmp_path: Path) -> None:
    folder, cache = make_frames(tmp_path / "v", EVEN), tmp_path / "cache"
    good = (folder / "048.png").read_bytes()
    (folder / "048.png").write_bytes(good[:100])
    assert list(extract(folder, cache).quarantined) == ["v"]
    (folder / "048.png").write_bytes(good)
    assert extract(folder, cache).num_frames == 4  # the shard that was committed is not made again
    assert_same(stored(cache, "v"), expected(folder, "frames"))
    assert [row.state for row in list_videos(open_cache(cache).view())] == ["complete"]


# VSPW over VIPSeg: the same videos, a third of the frames large and all of them small.
ALL = [f"{number:05d}" for number in range(48)]
THIRD = ALL[::3]


def sisters(tmp_path: Path, small: tuple[int, int]) -> tuple[Path, Path]:
    large_set, small_set = tmp_path / "large", tmp_path / "small"
    for video in ("one", "two"):
        make_frames(large_set / video, THIRD, (144, 256), salt=video)
        make_frames(small_set / video, ALL, small, salt=video)
    return large_set, small_set


@pytest.mark.parametrize("small", [(96, 171), (48, 86)], ids=["same sides", "a side less"])
def test_a_set_of_three_times_the_frames_reuses_its_sisters_third_by_name(
    tmp_path: Path, small: tuple[int, int]
) -> None:
    large_set, small_set = sisters(tmp_path, small)
    cache = tmp_path / "cache"
    assert extract(large_set, cache).num_frames == 2 * 16
    before = shard_hashes(cache)
    plan = plan_of(small_set, cache, reuse="name")
    assert (plan.num_frames, plan.todo_frames, plan.borrowed_frames) == (96, 64, 32)
    assert extract(small_set, cache, reuse="name").num_frames == 2 * 32
    assert before.items() <= shard_hashes(cache).items()
    view = open_cache(cache).view()
    for video in ("one", "two"):
        theirs, ours = frames_by_selection(view, video)
        assert (theirs.names, ours.names) == (tuple(THIRD), tuple(ALL))
        assert ours.rows[::3] == theirs.rows
        pixels, stages = expected(small_set / video, "frames")
        clip = view.read(ours)
        own = [place for place in range(48) if place % 3]
        for stage, wanted in enumerate(stages):
            assert np.array_equal(clip.floats(stage)[own], wanted[own])
        assert np.array_equal(clip.pixels[own], pixels[own])
    assert_sound(cache)
    assert extract(small_set, cache, reuse="name").num_frames == 0
    assert extract(large_set, cache).num_frames == 0


def frames_by_selection(view, video: str):
    held = [view.frames(video, item=item.item) for item, _ in view.catalogue.items(video)]
    held.sort(key=len)
    assert [dict(one.item.selection) for one in held] == [{}, {"reuse": "name"}]
    return held


def test_labels_of_the_larger_set_join_by_video_and_frame_name(tmp_path: Path) -> None:
    large_set, small_set = sisters(tmp_path, (96, 171))
    cache, labels = tmp_path / "cache", tmp_path / "labels"
    extract(large_set, cache)
    extract(small_set, cache, reuse="name")
    for video in ("one", "two"):
        (labels / video).mkdir(parents=True)
        for number, name in enumerate(ALL):
            Image.fromarray(np.full((96, 171), number, np.uint8)).save(
                labels / video / f"{name}.png"
            )
    data = open_cache(cache).torch_dataset(labels=labels, selection={"reuse": "name"})
    assert len(data) == 2 * 48
    for sample in data:
        height, width = sample["valid"]
        shown = set(sample["label"][0, :height, :width].flatten().tolist())
        assert shown == {ALL.index(sample["frames"][0])}


@pytest.mark.parametrize(
    ("small", "changes"),
    [((96, 171), {}), ((96, 128), {"reuse": "name"}), ((96, 180), {"reuse": "name"})],
    ids=["by content", "another aspect", "another aspect on the same canvas"],
)
def test_frames_that_only_look_the_same_by_their_names_are_not_borrowed(
    tmp_path: Path, small: tuple[int, int], changes: dict[str, str]
) -> None:
    large_set, small_set = sisters(tmp_path, small)
    cache = tmp_path / "cache"
    extract(large_set, cache)
    assert extract(small_set, cache, **changes).num_frames == 2 * 48
    newest = {item.item: item for item, _ in open_cache(cache).view().catalogue.items("one")}
    item = list(newest.values())[-1]
    assert item.borrowed == ()
    view = open_cache(cache).view()
    clip = view.read(view.frames("one", item=item.item))
    floats = [clip.floats(stage) for stage in range(4)]
    assert_same((clip.pixels, floats), expected(small_set / "one", "frames"))


def test_by_name_images_and_video_files_are_what_they_are_by_content(tmp_path: Path) -> None:
    cache, source = tmp_path / "cache", tmp_path / "set"
    make_frames(source, ["a", "b"])
    make_video(tmp_path / "v.mp4", 5)
    sources = [f"{source}/*.png", tmp_path / "v.mp4"]
    assert extract(sources, cache).num_frames == 7
    whole = tree(cache)
    assert extract(sources, cache, reuse="name").num_frames == 0
    assert tree(cache) == whole


def test_an_image_lends_nothing_to_a_folder_of_its_name(tmp_path: Path) -> None:
    """Its row may move, a video's never does."""
    cache = tmp_path / "cache"
    make_frames(tmp_path / "first" / "v", ["x"])
    assert extract(tmp_path / "first" / "v" / "x.png", cache).num_frames == 1
    folder = make_frames(tmp_path / "x", ["x", "y"])
    assert extract(folder, cache).num_frames == 2


def grown(tmp_path: Path) -> tuple[Path, Path]:
    """A folder of 44 frames of which 40 are borrowed from when it had no more."""
    folder, cache = make_frames(tmp_path / "v", [f"{n:03d}" for n in range(40)]), tmp_path / "cache"
    extract(folder, cache)
    make_frames(folder, ["0005", "041", "042", "043"])
    extract(folder, cache)
    return folder, cache


def test_frames_that_were_borrowed_and_lost_are_computed_by_who_borrowed_them(
    tmp_path: Path,
) -> None:
    folder, cache = grown(tmp_path)
    (view,) = open_cache(cache).views
    whole = stored(cache, "v")
    bucket, before = view.frames("v").item.bucket, view.frames("v")
    view.index.forget(bucket, [1])  # frames 16 to 31 of the first 40
    view = open_cache(cache).view()
    assert unfinished(view.index, view.state) == ["v"]
    assert [row.state for row in list_videos(view)] == ["partial"]
    assert view.videos == []
    plan = plan_of(folder, cache)
    assert (plan.num_frames, plan.todo_frames) == (44, 16)
    assert extract(folder, cache).num_frames == 16
    assert_same(stored(cache, "v"), whole)
    assert_same(stored(cache, "v"), expected(folder, "frames"))
    after = open_cache(cache).view().frames("v")
    assert (after.names, after.source_index) == (before.names, before.source_index)
    assert_sound(cache)
    assert extract(folder, cache).num_frames == 0
    # And once more: what stands in lends and loses like any other.
    view = open_cache(cache).view()
    view.index.forget(bucket, [0, after.item.row_of(0) // 16])
    assert extract(folder, cache).num_frames == 32
    assert_same(stored(cache, "v"), whole)
    assert_sound(cache)


@pytest.mark.parametrize("kind", ["video", "frames"])
def test_some_frames_of_a_source_whose_lender_lost_a_shard_come_back_from_the_source(
    tmp_path: Path, kind: str
) -> None:
    source, cache = make_source(kind, tmp_path), tmp_path / "cache"
    extract(source, cache)
    extract(source, cache, stride=3)
    (view,) = open_cache(cache).views
    (whole, some) = (item for item, _ in view.catalogue.items("v"))
    view.index.forget(whole.bucket, [1])
    assert extract(source, cache, stride=3).num_frames == 5
    view = open_cache(cache).view()
    ((item, _),) = view.catalogue.items("v")
    assert dict(item.selection) == dict(some.selection)
    assert_same(stored(cache, "v"), expected(source, kind, stride=3))
    # The lender borrows those back in its turn: it has its rows, so it makes its shard again.
    assert extract(source, cache).num_frames == 16
    assert_whole(cache, source, kind, {"": 50, "stride": 17})


def test_a_lender_made_again_completes_who_borrowed(tmp_path: Path) -> None:
    large_set, small_set = sisters(tmp_path, (96, 171))
    cache = tmp_path / "cache"
    extract(large_set, cache)
    extract(small_set, cache, reuse="name")
    (view,) = open_cache(cache).views
    before = shard_hashes(cache)
    lent = frames_by_selection(view, "one")[0]
    view.index.forget(lent.item.bucket, [lent.rows[0] // 16])
    view = open_cache(cache).view()
    assert unfinished(view.index, view.state) == ["one", "one"]
    assert extract(large_set, cache).num_frames == 16
    assert shard_hashes(cache) == before
    assert_sound(cache)
    assert extract(small_set, cache, reuse="name").num_frames == 0


def reserve_only(source: Path, cache: Path, **changes) -> None:
    """What a job that is killed between giving rows and anything else leaves."""
    plan = plan_of(source, cache, **changes)
    index = ViewIndex(cache / plan.key)
    index.reserve([one.request for one in plan.sources], [one.name for one in plan.sources])


@pytest.mark.parametrize("kind", ["video", "frames"])
@pytest.mark.parametrize("first", [{}, {"stride": 3}], ids=["all first", "some first"])
def test_a_borrower_killed_before_its_first_commit_goes_on(
    tmp_path: Path, kind: str, first: dict[str, int]
) -> None:
    source, cache = make_source(kind, tmp_path), tmp_path / "cache"
    extract(source, cache, **first)
    second = {} if first else {"stride": 3}
    reserve_only(source, cache, **second)
    view = open_cache(cache).view()
    assert unfinished(view.index, view.state) == ["v"]
    plan = plan_of(source, cache, **second)
    assert plan.todo_frames == (33 if first else 0)
    assert extract(source, cache, **second).num_frames == (33 if first else 0)
    assert_whole(cache, source, kind, {"": 50, "stride": 17})


def test_two_jobs_that_plan_a_borrower_differently_agree_on_the_first(tmp_path: Path) -> None:
    """The second sees all its frames there; the first has given it rows already."""
    source, cache = make_source("frames", tmp_path), tmp_path / "cache"
    some = read_request([str(source), *words(stride=3)])
    alone = plan_request(some, cache)
    extract(source, cache)
    lent = plan_request(some, cache)
    assert (alone[0].todo_frames, lent[0].todo_frames) == (17, 0)
    for plan, manifest in (alone, lent):
        job._prepare(plan, manifest, some.config)
    assert extract(source, cache, stride=3).num_frames == 17
    assert_whole(cache, source, "frames", {"": 50, "stride": 17})


def test_a_folder_copied_elsewhere_is_the_same_folder(tmp_path: Path) -> None:
    folder, cache = grown(tmp_path)
    shutil.copytree(folder, tmp_path / "elsewhere" / "v")
    assert extract(tmp_path / "elsewhere" / "v", cache).num_frames == 0
