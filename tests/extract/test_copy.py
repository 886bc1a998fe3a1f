"""Copies of views in another stored type: values, rows, records, and what interrupts them."""

from __future__ import annotations

import resource
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fcache.cache import open_cache
from fcache.errors import CacheCorruptError, CacheError, ConfigError, FeatureError, NoSpaceError
from fcache.extract.calibrate import FLOOR
from fcache.extract.copy import CopySummary, run_copy
from fcache.extract.copy_plan import choose_source, plan_copy
from fcache.store.cache import View, create_root
from fcache.store.index import ViewIndex
from fcache.store.inspect import list_videos
from fcache.store.records import FrameRecord, Name, Outcome
from fcache.store.verify import check_shards
from fcache.store.writer import RowGroup
from tests.extract.making import (
    LENGTHS,
    PYRAMID,
    assert_sound,
    extract,
    make_video,
    make_videos,
    shard_files,
    shard_hashes,
    tree,
)
from tests.extract.running import events, fcache, finish, kill_group, spoken, start, wait_until
from tests.sources.media import moving_frames
from tests.store.making import PLAIN, arrays, fill, make_cache, request

NETWORKS: dict[str, dict[str, str]] = {"plain": {}, "pyramid": PYRAMID}


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_videos(tmp_path_factory.mktemp("videos"))


@pytest.fixture(scope="module", params=NETWORKS)
def source(request: pytest.FixtureRequest, videos: Path, tmp_path_factory) -> Path:
    """A finished float32 cache of ``videos``; nobody changes it."""
    cache = tmp_path_factory.mktemp(request.param) / "cache"
    extract(videos, cache, **NETWORKS[request.param])
    return cache


@pytest.fixture(scope="module")
def plain(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache = tmp_path_factory.mktemp("source") / "cache"
    extract(videos, cache)
    return cache


def copy(
    source: Path, target: Path, dtype: str, heard: list[dict[str, Any]] | None = None
) -> tuple[View, CopySummary]:
    plan = plan_copy(choose_source(open_cache(source), dtype), target, dtype)
    report = (heard if heard is not None else []).append
    summary = run_copy(plan, device="cpu", report=report)
    return open_cache(target).view(summary.key), summary


def assert_same_frames(found: View, wanted: View, places: bool = True) -> None:
    """Both views hold the same frames under the same names, with the same pixels."""
    assert found.videos == wanted.videos
    for one, other in zip(found.catalogue.entries(), wanted.catalogue.entries(), strict=True):
        assert (one.video_id, one.split) == (other.video_id, other.split)
        kept = replace(other.item, extents=one.item.extents, expected_frames=0)
        if places:
            assert replace(one.item, expected_frames=0) == kept
        here, there = found.catalogue.frames(*one), wanted.catalogue.frames(*other)
        rows = here.rows if places else there.rows
        assert replace(here, item=other.item, rows=rows) == replace(there, rows=rows)
        assert np.array_equal(found.read(here).pixels, wanted.read(there).pixels)


def features(view: View, video: str, **which: Any) -> list[np.ndarray]:
    clip = view.read(view.frames(video, **which), pixels=False)
    return [clip.floats(stage).astype(np.float32) for stage in range(len(clip.stages))]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrower_floats_are_the_cast_of_the_stored_values(
    source: Path, tmp_path: Path, dtype: str
) -> None:
    view, summary = copy(source, tmp_path / "copy", dtype)
    before = open_cache(source).view()
    assert_same_frames(view, before)
    assert_sound(view)
    assert summary.num_frames == sum(LENGTHS.values())
    for video in LENGTHS:
        for found, exact in zip(features(view, video), features(before, video), strict=True):
            cast = torch.from_numpy(exact).to(getattr(torch, dtype)).float()
            assert np.array_equal(found, cast.numpy())


def test_int8_is_scaled_by_the_largest_stored_values(source: Path, tmp_path: Path) -> None:
    view, _ = copy(source, tmp_path / "copy", "int8")
    before = open_cache(source).view()
    assert_same_frames(view, before)
    assert_sound(view)
    wanted = [features(before, video) for video in LENGTHS]
    for stage, scales in enumerate(view.channel_scales):
        valid = view.frames("a").valid
        stride = view.index.layout.strides[stage]
        area = np.s_[:, : -(-valid[0] // stride), : -(-valid[1] // stride)]
        largest = np.max([np.abs(one[stage][area]).max((0, 1, 2)) for one in wanted], axis=0)
        floor = np.float32(np.median(largest[largest > 0]) * FLOOR)
        assert np.array_equal(scales, np.maximum(largest, floor))
    for video, exact in zip(LENGTHS, wanted, strict=True):
        clip = view.read(video)
        for stage, values in enumerate(clip.stages):
            tokens, channels = clip.scales[stage].astype(np.float64), clip.channel_scales[stage]
            step = tokens[..., None] * channels
            assert np.abs(values.astype(np.float64) * step - exact[stage]).max() <= (
                step.max() / 2 * (1 + 1e-6)
            )
            assert (np.abs(values.astype(np.int16)).max(-1) >= 126).all()


def test_errors_are_those_of_what_is_read_back(source: Path, tmp_path: Path) -> None:
    view, summary = copy(source, tmp_path / "copy", "int8")
    before = open_cache(source).view()
    for stage, told in enumerate(summary.errors):
        stride = view.index.layout.strides[stage]
        rows, columns = (-(-side // stride) for side in view.frames("a").valid)
        exact, found = (
            np.concatenate([features(of, video)[stage] for video in LENGTHS]).astype(np.float64)
            [:, :rows, :columns]
            for of in (before, view)
        )  # fmt: skip
        noise, signal = found - exact, np.linalg.norm(exact, axis=-1)
        channels = view.channel_scales[stage].astype(np.float64)
        relative = np.linalg.norm(noise) / np.linalg.norm(exact)
        bulk = np.linalg.norm(noise / channels) / np.linalg.norm(exact / channels)
        cosine = (exact * found).sum(-1) / signal / np.linalg.norm(found, axis=-1)
        worst = (np.linalg.norm(noise, axis=-1) / signal).max()
        assert told["relative_l2"] == pytest.approx(relative, rel=1e-5)
        assert told["bulk_relative_l2"] == pytest.approx(bulk, rel=1e-5)
        assert told["cosine"] == pytest.approx(cosine.mean(), abs=1e-7)
        assert told["worst_token"] == pytest.approx(worst, rel=1e-5)
        assert 0 < relative < 0.02


def test_floats_of_int8_are_what_a_reader_sees_and_cost_nothing(
    source: Path, tmp_path: Path
) -> None:
    compact, _ = copy(source, tmp_path / "copy", "int8")
    wide, summary = copy(tmp_path / "copy", tmp_path / "wide", "float32")
    assert_same_frames(wide, compact)
    for video in LENGTHS:
        for found, wanted in zip(features(wide, video), features(compact, video), strict=True):
            assert np.array_equal(found, wanted)
    assert [one["worst_token"] for one in summary.errors] == [0, 0, 0, 0]
    narrow, summary = copy(tmp_path / "copy", tmp_path / "narrow", "float16")
    assert all(0 < one["bulk_relative_l2"] < 1e-3 for one in summary.errors)
    for found, wanted in zip(features(narrow, "b"), features(compact, "b"), strict=True):
        assert np.array_equal(found, wanted.astype(np.float16).astype(np.float32))


def test_between_floats_no_error_is_weighed_by_scales_that_nobody_has(
    plain: Path, tmp_path: Path
) -> None:
    _, summary = copy(plain, tmp_path / "copy", "float16")
    assert set(summary.errors[0]) == {"num_tokens", "relative_l2", "cosine", "worst_token"}


def test_the_identity_says_what_it_is_a_copy_of(plain: Path, tmp_path: Path) -> None:
    view, _ = copy(plain, tmp_path / "copy", "int8")
    before = open_cache(plain).view()
    calibration = view.index.attributes["calibration"]
    assert view.identity == {
        **before.identity,
        "dtype": "int8",
        "calibration": calibration["sha256"],
        "derived_from": before.key,
    }
    assert calibration["num_frames"] == sum(LENGTHS.values())
    made = view.index.attributes["provenance"]
    assert made["copied_from"]["view"] == before.key
    assert made["copied_from"]["made_by"][0]["batch"] == 1
    assert made["recipe"]["dtype"] == "int8"
    assert view.index.manifests() == before.index.manifests()


def test_a_copy_is_not_taken_for_an_extracted_view(
    videos: Path, plain: Path, tmp_path: Path
) -> None:
    cache = Path(shutil.copytree(plain, tmp_path / "cache"))
    copy(cache, cache, "float16")
    before = shard_hashes(cache)
    assert extract(videos, cache, dtype="float16").num_frames == sum(LENGTHS.values())
    assert len(open_cache(cache).views) == 3
    assert before.items() < shard_hashes(cache).items()


def test_a_second_run_changes_no_file(plain: Path, tmp_path: Path) -> None:
    cache = Path(shutil.copytree(plain, tmp_path / "cache"))
    _, first = copy(cache, cache, "int8")
    before = tree(cache)
    _, again = copy(cache, cache, "int8")
    assert again.num_frames == 0
    assert again.errors == first.errors
    assert tree(cache) == before


def test_what_came_since_goes_into_the_same_copy_with_its_first_scales(
    videos: Path, tmp_path: Path
) -> None:
    few = tmp_path / "few"
    few.mkdir()
    shutil.copy(videos / "c.mp4", few)
    extract(few, tmp_path / "cache")
    first, _ = copy(tmp_path / "cache", tmp_path / "copy", "int8")
    extract(videos, tmp_path / "cache")
    second, summary = copy(tmp_path / "cache", tmp_path / "copy", "int8")
    assert second.key == first.key
    assert summary.num_frames == LENGTHS["a"] + LENGTHS["b"]
    assert sorted(second.videos) == sorted(LENGTHS)
    assert_sound(second)


def test_crops_are_copied_each(videos: Path, tmp_path: Path) -> None:
    extract(videos, tmp_path / "cache", short_side="40..60", crop=32, crops=2)
    view, summary = copy(tmp_path / "cache", tmp_path / "copy", "int8")
    assert summary.num_frames == 2 * sum(LENGTHS.values())
    before = open_cache(tmp_path / "cache").view()
    assert_same_frames(view, before)
    assert view.frames("b", draw=1).item.placement == before.frames("b", draw=1).item.placement
    # The same content counts once: frames of one crop calibrate.
    assert view.index.attributes["calibration"]["num_frames"] == sum(LENGTHS.values())


def write_frames(folder: Path, count: int, seed: int = 0) -> Path:
    folder.mkdir(parents=True)
    for number, frame in enumerate(moving_frames(count, 48, 64, seed=seed)):
        Image.fromarray(frame).save(folder / f"{number:03d}.png")
    return folder


def test_packed_images_stay_packed(tmp_path: Path) -> None:
    images = sorted(write_frames(tmp_path / "images", 20).iterdir())
    extract(images, tmp_path / "cache")
    view, _ = copy(tmp_path / "cache", tmp_path / "copy", "int8")
    before = open_cache(tmp_path / "cache").view()
    assert_same_frames(view, before)
    assert_sound(view)
    assert len(list((tmp_path / "copy").rglob("tokens/c/*"))) == 2
    one, other = (view.catalogue.sha256(view.frames("007")) for view in (view, before))
    assert one == other
    extract(sorted(write_frames(tmp_path / "more", 3, seed=1).iterdir()), tmp_path / "cache")
    again, summary = copy(tmp_path / "cache", tmp_path / "copy", "int8")
    assert (again.key, summary.num_frames) == (view.key, 3)
    assert_same_frames(again, open_cache(tmp_path / "cache").view())


def test_an_image_that_its_shard_was_written_without_comes_in_another(tmp_path: Path) -> None:
    cache, target = tmp_path / "cache", tmp_path / "copy"
    first = sorted(write_frames(tmp_path / "first", 3).iterdir())
    second = sorted(write_frames(tmp_path / "second", 3, seed=1).iterdir())
    second = [path.rename(path.with_name(f"more{path.name}")) for path in second]
    extract(first, cache)
    extract(second, cache)
    plan = plan_copy(open_cache(cache).view(), target, "float16")
    create_root(target)
    made = {"created_s": 0.0, "copied_from": {"dtype": "float32"}}
    plan.rows.reserve(ViewIndex.create(target, plan.identity, made))  # a copy killed at its start
    index = open_cache(cache).view().index
    index.forget(open_cache(cache).view().frames("more000").item.bucket, [1])
    view, _ = copy(cache, target, "float16")
    assert view.videos == [path.stem for path in first]
    extract(second, cache)
    view, summary = copy(cache, target, "float16")
    assert summary.num_frames == 3
    assert_same_frames(view, open_cache(cache).view(), places=False)
    assert {view.frames(path.stem).rows[0] // 16 for path in second} == {1}
    assert_sound(view)


def borrowing(folder: Path) -> Path:
    """A cache whose 'clip' of 7 frames borrows the 3 of an 'other' of the same name."""
    whole = write_frames(folder / "whole/clip", 7)
    some = folder / "some/clip"
    some.mkdir(parents=True)
    for number in (0, 3, 6):
        shutil.copy(whole / f"{number:03d}.png", some)
    extract(folder / "some", folder / "cache", stride=1)
    extract(folder / "whole", folder / "cache")
    return folder / "cache"


def test_frames_of_a_replaced_video_become_its_successors_own(tmp_path: Path) -> None:
    cache = borrowing(tmp_path)
    before = open_cache(cache).view()
    assert len(before.frames("clip").item.borrowed) == 3
    view, summary = copy(cache, tmp_path / "copy", "float16")
    assert summary.num_frames == 7  # the three frames' first video stands no more
    assert view.frames("clip").item.borrowed == ()
    assert_same_frames(view, before, places=False)
    assert_sound(view)


def test_borrowed_frames_stay_borrowed(videos: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    extract(videos, cache, stride=5)
    extract(videos, cache, stride=2)
    extract(videos, cache)
    before = open_cache(cache).view()
    (every,) = [e for e in before.catalogue.entries() if e.video_id == "b" and not e.item.selection]
    assert len(every.item.borrowed) == 13  # of stride=5 and of stride=2, which borrows itself
    copied = sum(LENGTHS.values())
    view, summary = copy(cache, tmp_path / "copy", "int8")
    assert summary.num_frames == copied == len(before.state.tables.frames)
    for entry in before.catalogue.entries():
        here = view.frames(entry.video_id, item=entry.item.item)
        there = before.catalogue.frames(*entry)
        assert here.names == there.names
        assert [index for index, _ in here.item.borrowed] == [
            index for index, _ in there.item.borrowed
        ]
        assert np.array_equal(view.read(here).pixels, before.read(there).pixels)
    assert_sound(view)
    _, again = copy(cache, tmp_path / "copy", "int8")
    assert again.num_frames == 0


def test_a_video_that_borrows_every_frame_is_complete_without_rows(tmp_path: Path) -> None:
    whole = write_frames(tmp_path / "whole/clip", 7)
    extract(tmp_path / "whole", tmp_path / "cache")
    extract(tmp_path / "whole", tmp_path / "cache", max_frames=4)
    before = open_cache(tmp_path / "cache").view()
    entries = {len(entry.item.borrowed) for entry in before.catalogue.entries()}
    assert (entries, len(list(whole.iterdir()))) == ({0, 4}, 7)
    view, summary = copy(tmp_path / "cache", tmp_path / "copy", "float16")
    assert summary.num_frames == 7
    assert_same_frames(view, before, places=False)
    assert_sound(view)


def test_what_is_not_complete_is_left_out_until_it_is(tmp_path: Path) -> None:
    _, index, items = make_cache(tmp_path / "cache", PLAIN, {"a": 20, "b": 3})
    late, broken = request("late", 18), request("broken", 5)
    made = index.reserve(
        [late, broken], [Name("late", late.item, "train"), Name("broken", broken.item, "train")]
    )
    fill(index, made[late.item], 18, {made[late.item].row_of(0) // 16})
    index.end(Outcome(broken.item, "quarantined", 0, "damaged", video_id="broken"))
    plan = plan_copy(open_cache(tmp_path / "cache").view(), tmp_path / "copy", "float32")
    assert plan.left_out == {"partial": 1, "quarantined": 1}
    view, _ = copy(tmp_path / "cache", tmp_path / "copy", "float32")
    assert view.videos == ["a", "b"]
    assert {row.video_id for row in list_videos(view)} == {"a", "b"}
    assert_sound(view)
    fill(index, made[late.item], 18)
    view, summary = copy(tmp_path / "cache", tmp_path / "copy", "float32")
    assert (view.videos, summary.num_frames) == (["a", "b", "late"], 18)
    assert items["a"].item in view.state.items


def make_large(path: Path, value: float) -> Path:
    """A cache of one frame, one of whose stages reaches a value."""
    create_root(path)
    index = ViewIndex.create(path, {**PLAIN, "dtype": "float32"}, {"created_s": 0.0})
    wanted = request("a", 1)
    item = index.reserve([wanted], [Name("a", wanted.item)])[wanted.item]
    grid = index.layout.grid(item.bucket, 0)
    stages = [np.full((*grid, 6), value if stage == 2 else 1, np.float32) for stage in range(4)]
    with RowGroup(index, item.bucket, 0) as group:
        pixels = np.zeros((item.bucket.height, item.bucket.width, 3), np.uint8)
        record = FrameRecord(0, item.item, 0, "00000", 0, 0)
        largest = np.array([1, 1, value, 1], np.float64)
        group.put(record, arrays(index, stages, pixels), largest)
        group.commit({item.item: 1}, {})
    return path


def test_values_beyond_float16_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    large = make_large(tmp_path / "large", 7e4)
    with pytest.raises(FeatureError, match=r"stage 2: the values reach 7e\+04, float16 holds"):
        copy(large, tmp_path / "copy", "float16")
    assert not (tmp_path / "copy").exists()
    view, _ = copy(large, tmp_path / "copy", "bfloat16")
    assert features(view, "a")[2].max() == pytest.approx(7e4, rel=1e-2)


def test_the_stored_type_it_has_is_nothing_to_convert(plain: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing to convert.*float16, bfloat16, int8"):
        copy(plain, tmp_path / "copy", "float32")


def test_a_view_without_a_complete_video_is_refused(tmp_path: Path) -> None:
    create_root(tmp_path / "cache")
    ViewIndex.create(tmp_path / "cache", PLAIN, {}).reserve([], [])
    with pytest.raises(CacheError, match="no complete video"):
        copy(tmp_path / "cache", tmp_path / "copy", "int8")


def test_a_damaged_source_is_not_copied(plain: Path, tmp_path: Path) -> None:
    cache = Path(shutil.copytree(plain, tmp_path / "cache"))
    path = max(cache.rglob("tokens/c/*/0/0/0/0"))
    data = bytearray(path.read_bytes())
    data[5] ^= 1
    path.write_bytes(data)
    with pytest.raises(CacheCorruptError, match="fails the checksum"):
        copy(cache, tmp_path / "copy", "float16")
    assert not list((tmp_path / "copy").rglob("*.tmp"))
    copied = open_cache(tmp_path / "copy").view()
    assert [
        f for one in check_shards(copied.index, copied.index.load()) for f in one.findings
    ] == []


@contextmanager
def file_size_limit(size_bytes: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_quota_that_is_met_keeps_whole_shards_and_resumes(tmp_path: Path) -> None:
    make_video(tmp_path / "v/small.mp4", 16, 48, 64)
    make_video(tmp_path / "v/large.mp4", 16, 64, 48 * 6)
    extract(tmp_path / "v", tmp_path / "cache")
    wanted, _ = copy(tmp_path / "cache", tmp_path / "wanted", "float16")
    sizes = sorted(path.stat().st_size for path in shard_files(tmp_path / "wanted"))
    with file_size_limit(sizes[-1] - 1), pytest.raises(NoSpaceError, match="it resumes"):
        copy(tmp_path / "cache", tmp_path / "copy", "float16")
    assert not list((tmp_path / "copy").rglob("*.tmp"))
    held = open_cache(tmp_path / "copy").view()
    assert held.videos == ["small"]
    copy(tmp_path / "cache", tmp_path / "copy", "float16")
    assert shard_hashes(tmp_path / "copy") == shard_hashes(tmp_path / "wanted")
    assert sorted(wanted.videos) == ["large", "small"]


def test_a_disk_known_to_be_too_small_is_refused_before_work(plain: Path, tmp_path: Path) -> None:
    plan = plan_copy(open_cache(plain).view(), tmp_path / "copy", "float16")
    small = replace(plan, free_bytes=plan.sizes.todo_bytes - 1)
    with pytest.raises(NoSpaceError, match="Nothing was written"):
        run_copy(small, device="cpu", report=lambda event: None)
    assert not (tmp_path / "copy").exists()


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A source of many shards, and the shards of its whole copy."""
    folder = tmp_path_factory.mktemp("long")
    lengths = {f"v{number}": 64 for number in range(6)}
    make_cache(folder / "cache", {**PLAIN, "dtype": "float32"}, lengths)
    copy(folder / "cache", folder / "copy", "int8")
    return folder / "cache", shard_hashes(folder / "copy")


def has_shards(cache: Path, count: int) -> bool:
    return sum(1 for _ in cache.glob("*/index/parts/*/*.json")) >= count


def published(cache: Path) -> dict[str, str]:
    """The shards under their final names: a killed writer's own are swept later."""
    return {path: sha for path, sha in shard_hashes(cache).items() if not path.endswith(".tmp")}


def test_kills_leave_a_copy_that_finishes_bit_for_bit(
    long: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    source, wanted = long
    for count in (1, 9):
        process = start("copy", source, tmp_path / "copy", "dtype=int8", "--json")
        wait_until(lambda count=count: has_shards(tmp_path / "copy", count))
        kill_group(process)
        finish(process)
        assert published(tmp_path / "copy").items() <= wanted.items()
    code, out, err = fcache("copy", source, tmp_path / "copy", "dtype=int8", "--json")
    assert code == 0, (out, err)
    assert published(tmp_path / "copy") == wanted
    assert_sound(open_cache(tmp_path / "copy").view())


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_ends_with_130_and_the_same_command_goes_on(
    long: tuple[Path, dict[str, str]], tmp_path: Path, times: int
) -> None:
    source, wanted = long
    process = start("copy", source, tmp_path / "copy", "dtype=int8", "--json")
    wait_until(lambda: has_shards(tmp_path / "copy", 1))
    for _ in range(times):
        kill_group(process, signal.SIGINT)
    code, out, err = finish(process, 30)
    assert (code, out) == (130, ""), err
    (message,) = spoken(err)
    assert "The same command goes on from there." in message
    assert any(line["event"] == "stopping" for line in events(err.replace(message, "")))
    assert not list((tmp_path / "copy").rglob("*.tmp"))
    assert not list((tmp_path / "copy").glob("*/index/claims/*.json"))
    copy(source, tmp_path / "copy", "int8")
    assert shard_hashes(tmp_path / "copy") == wanted


def test_two_copies_at_once_share_the_work(
    long: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    source, wanted = long
    words = ["copy", source, tmp_path / "copy", "dtype=int8", "--json"]
    both = [start(*words) for _ in range(2)]
    ends = [finish(process) for process in both]
    assert [code for code, _, _ in ends] == [0, 0], ends
    assert shard_hashes(tmp_path / "copy") == wanted
    assert_sound(open_cache(tmp_path / "copy").view())


def test_repair_of_a_damaged_copy_names_the_command_that_makes_it_again(
    plain: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "copy"
    copy(plain, cache, "int8")
    before = {name: path.read_bytes() for name, path in _shards(cache).items()}
    path = next(iter(_shards(cache).values()))
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    code, _, err = fcache("verify", cache, "--repair")
    assert code == 4
    assert "1 shards taken back; run the same copy again." in err
    copy(plain, cache, "int8")
    assert {name: path.read_bytes() for name, path in _shards(cache).items()} == before


def _shards(cache: Path) -> dict[str, Path]:
    paths = sorted(path for path in cache.glob("*/*/*/c/**/*") if path.is_file())
    return {str(path.relative_to(cache)): path for path in paths}
