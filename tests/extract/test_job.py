"""The whole job in one process: what is stored, what is done again, what is left alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fcache.cache import open_cache
from fcache.errors import ConfigError, NoSpaceError
from fcache.extract import tasks
from fcache.manifest import Manifest, Video, load_manifest
from fcache.sources.content import content_hash
from fcache.store.inspect import list_videos
from fcache.store.layout import Bucket
from fcache.store.verify import unfinished
from tests.extract.making import (
    LENGTHS,
    PYRAMID,
    assert_same,
    assert_sound,
    expected,
    extract,
    make_video,
    make_videos,
    plan_of,
    shard_files,
    shard_hashes,
    stored,
    tree,
)
from tests.sources.media import media_data, moving_frames


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_videos(tmp_path_factory.mktemp("videos"))


@pytest.fixture(scope="module")
def done(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished cache of ``videos``; tests copy it before they change it."""
    cache = tmp_path_factory.mktemp("done") / "cache"
    extract(videos, cache)
    return cache


@pytest.fixture
def copied(done: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(done, tmp_path / "cache"))


def lengths(cache: Path, view: str = "") -> dict[str, int]:
    opened = open_cache(cache).view(view)
    return {video: len(opened.frames(video)) for video in opened.videos}


def test_stored_features_and_pixels_equal_a_direct_call_bit_for_bit(
    videos: Path, done: Path
) -> None:
    assert lengths(done) == LENGTHS
    for name in LENGTHS:
        assert_same(stored(done, name), expected(videos / f"{name}.mp4"))
    assert_sound(done)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrow_types_store_the_cast_of_the_direct_call(
    videos: Path, tmp_path: Path, dtype: str
) -> None:
    import torch

    extract(videos / "c.mp4", tmp_path / "cache", dtype=dtype)
    pixels, stages = expected(videos / "c.mp4")
    cast = [torch.from_numpy(s).to(getattr(torch, dtype)).float().numpy() for s in stages]
    found_pixels, found = stored(tmp_path / "cache", "c")
    assert_same((found_pixels, [stage.astype(np.float32) for stage in found]), (pixels, cast))


@pytest.mark.parametrize(
    "changes",
    [
        {"flip": "true"},
        {"patch": 14},
        {"size": "40x72", "short_side": "none"},
        {"compute_dtype": "bfloat16"},
        PYRAMID,
        {**PYRAMID, "flip": "true", "dtype": "float32"},
    ],
    ids=["flip", "patch14", "size", "bfloat16", "pyramid", "pyramid flip"],
)
def test_every_kind_of_view_equals_a_direct_call(
    videos: Path, tmp_path: Path, changes: dict[str, str]
) -> None:
    extract(videos / "c.mp4", tmp_path / "cache", **changes)
    assert_same(stored(tmp_path / "cache", "c"), expected(videos / "c.mp4", **changes))
    assert_sound(tmp_path / "cache")


def test_a_flipped_view_holds_mirrored_pixels_beside_the_plain_one(
    videos: Path, copied: Path
) -> None:
    plain = open_cache(copied).views[0].key
    extract(videos, copied, flip="true")
    keys = [view.key for view in open_cache(copied).views]
    assert len(keys) == 2
    (flipped,) = set(keys) - {plain}
    clip = open_cache(copied).view(flipped).read("b")
    height, width = clip.valid
    mirrored = stored(copied, "b", plain)[0][:, :height, :width][:, :, ::-1]
    assert np.array_equal(clip.pixels[:, :height, :width], mirrored)


def test_a_second_run_changes_no_file(videos: Path, copied: Path, tmp_path: Path) -> None:
    (broken := tmp_path / "more").mkdir()
    (broken / "empty.mp4").touch()
    assert extract([videos, broken], copied).num_frames == 0
    before = tree(copied)
    summary = extract([videos, broken], copied)
    assert tree(copied) == before
    assert summary.num_frames == 0
    assert list(summary.quarantined) == ["empty"]


def test_an_added_video_is_all_that_is_computed(copied: Path, videos: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(videos, tmp_path / "videos"))
    before = shard_hashes(copied)
    make_video(folder / "d.mp4", 5)
    assert extract(folder, copied).num_frames == 5
    after = shard_hashes(copied)
    assert {path: after[path] for path in before} == before
    assert lengths(copied) == {**LENGTHS, "d": 5}


def test_moved_and_renamed_files_are_known_by_their_content(
    copied: Path, videos: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    shutil.copy(videos / "b.mp4", folder / "other.mp4")
    assert extract(folder, copied).num_frames == 0
    assert_same(stored(copied, "other"), stored(copied, "b"))


def test_two_files_of_one_content_are_computed_once(videos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in ("x", "y"):
        shutil.copy(videos / "c.mp4", folder / f"{name}.mp4")
    assert plan_of(folder, tmp_path / "cache").todo_frames == 3
    assert extract(folder, tmp_path / "cache").num_frames == 3
    assert lengths(tmp_path / "cache") == {"x": 3, "y": 3}


def test_two_shapes_go_to_two_buckets(videos: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(videos, tmp_path / "videos"))
    make_video(folder / "tall.mp4", 4, height=96, width=48)
    extract(folder, tmp_path / "cache")
    view = open_cache(tmp_path / "cache").view()
    assert view.frames("a").item.bucket.name == "32x64"
    assert view.frames("tall").item.bucket.name == "64x32"
    assert_same(stored(tmp_path / "cache", "tall"), expected(folder / "tall.mp4"))


def test_frame_folders_and_single_images_are_sources(tmp_path: Path) -> None:
    (folder := tmp_path / "seq").mkdir()
    for number, frame in enumerate(moving_frames(3, 48, 64)):
        Image.fromarray(frame).save(folder / f"f{number}.png")
    Image.fromarray(moving_frames(1, 48, 64, seed=5)[0]).save(tmp_path / "one.png")
    extract([folder, tmp_path / "one.png"], tmp_path / "cache")
    view = open_cache(tmp_path / "cache").view()
    assert view.frames("seq").names == ("f0", "f1", "f2")
    assert view.frames("seq").pts_us == (None, None, None)
    assert view.frames("one").names == ("one",)
    assert_same(stored(tmp_path / "cache", "seq"), expected(folder, "frames"))
    assert_same(stored(tmp_path / "cache", "one"), expected(tmp_path / "one.png", "image"))


@pytest.mark.parametrize(
    ("selection", "taken"),
    [
        ({"stride": 4}, [0, 4, 8, 12, 16, 20]),
        ({"max_frames": 2}, [0, 1]),
        ({"fps": 6}, [0, 4, 8, 12, 16, 20]),
        ({"start": 0.5, "end": 0.625}, [12, 13, 14]),
    ],
    ids=str,
)
def test_a_selection_is_what_is_stored(
    videos: Path, tmp_path: Path, selection: dict[str, float], taken: list[int]
) -> None:
    extract(videos / "b.mp4", tmp_path / "cache", **selection)
    frames = open_cache(tmp_path / "cache").view().frames("b")
    assert list(frames.source_index) == taken
    assert_same(stored(tmp_path / "cache", "b"), expected(videos / "b.mp4", **selection))


def manifest_of(path: Path, tmp_path: Path, **changes) -> Path:
    facts = {"id": "v", "path": str(path), "kind": "video", "height": 48, "width": 64}
    facts |= {"sha256": content_hash(path, "video"), **changes}
    target = tmp_path / "m.toml"
    target.unlink(missing_ok=True)
    Manifest(name="m", videos=(Video(**facts),)).write(target)
    return target


@pytest.mark.parametrize("promised", [1, 16, 21, 200])
def test_a_wrong_promise_of_the_manifest_changes_nothing(
    videos: Path, done: Path, tmp_path: Path, promised: int
) -> None:
    manifest = manifest_of(videos / "b.mp4", tmp_path, num_frames=promised)
    extract(manifest, tmp_path / "cache")
    assert_same(stored(tmp_path / "cache", "v"), stored(done, "b"))
    assert plan_of(manifest, tmp_path / "cache").num_frames == 21
    assert extract(manifest, tmp_path / "cache").num_frames == 0
    assert_sound(tmp_path / "cache")


def test_a_long_video_cut_into_tasks_is_the_same_as_in_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_video(tmp_path / "long.mp4", 100)
    extract(path, tmp_path / "one")
    monkeypatch.setattr(tasks, "TASK_SHARDS", 2)
    monkeypatch.setattr(tasks, "TASKS_PER_WORKER", 100)
    events: list[dict] = []
    extract(path, tmp_path / "many", events=events)
    assert sum(event["event"] == "ready" for event in events) == 0  # told once, as start
    assert sum(event["event"] == "start" for event in events) == 1
    assert shard_hashes(tmp_path / "many") == shard_hashes(tmp_path / "one")
    assert lengths(tmp_path / "many") == {"long": 100}


@pytest.mark.parametrize("promised", [20, 200])
def test_a_wrong_promise_of_a_long_video_in_many_tasks_changes_no_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, promised: int
) -> None:
    path = make_video(tmp_path / "long.mp4", 70)
    monkeypatch.setattr(tasks, "TASK_SHARDS", 1)
    monkeypatch.setattr(tasks, "TASKS_PER_WORKER", 1000)
    extract(manifest_of(path, tmp_path, num_frames=promised), tmp_path / "cache")
    assert_same(stored(tmp_path / "cache", "v"), expected(path))


def test_the_batch_is_provenance_and_not_identity(videos: Path, copied: Path) -> None:
    (view,) = open_cache(copied).views
    make_video(copied.parent / "e.mp4", 9)
    extract([videos, copied.parent / "e.mp4"], copied, batch=4)
    (again,) = open_cache(copied).views
    assert again.key == view.key
    batches = {text.split('"batch":')[1][0] for text in _provenance(copied)}
    assert batches == {"1", "4"}


def _provenance(cache: Path) -> list[str]:
    return open_cache(cache).view().state.tables.shards["provenance"].to_pylist()


def test_a_file_that_changed_after_its_manifest_is_quarantined_until_restored(
    videos: Path, tmp_path: Path
) -> None:
    path = Path(shutil.copy(videos / "c.mp4", tmp_path / "c.mp4"))
    manifest = manifest_of(path, tmp_path)
    good = path.read_bytes()
    make_video(path, 4)
    summary = extract(manifest, tmp_path / "cache")
    assert "has changed" in summary.quarantined["v"]
    assert open_cache(tmp_path / "cache").view().videos == []
    path.unlink()
    assert list(extract(manifest, tmp_path / "cache").quarantined) == ["v"]
    path.write_bytes(good)
    assert extract(manifest, tmp_path / "cache").num_frames == 3
    assert lengths(tmp_path / "cache") == {"v": 3}
    assert extract(manifest, tmp_path / "cache").quarantined == {}


def damaged_copy(path: Path, to: Path) -> Path:
    data = path.read_bytes()
    first, end = media_data(data)
    middle = first + (end - first) * 6 // 10
    to.write_bytes(data[:middle] + bytes(end - middle) + data[end:])
    return to


def test_damage_quarantines_and_keep_prefix_rescues_without_computing_sound_videos_again(
    videos: Path, copied: Path, tmp_path: Path
) -> None:
    broken = damaged_copy(make_video(tmp_path / "whole.mp4", 40), tmp_path / "broken.mp4")
    summary = extract([videos, broken], copied)
    assert "broken" in summary.quarantined
    assert "broken" not in open_cache(copied).videos
    before = lengths(copied)
    rescued = extract([videos, broken], copied, on_error="keep_prefix")
    # The shard that was committed before the damage was met is not made again.
    assert 0 < rescued.num_frames < 16
    assert lengths(copied) == {**before, "broken": 16 + rescued.num_frames}
    assert extract([videos, broken], copied, on_error="keep_prefix").num_frames == 0
    again = extract([videos, broken], copied)
    assert (again.num_frames, list(again.quarantined)) == (0, ["broken"])


def test_a_mended_file_is_no_longer_listed_as_quarantined(tmp_path: Path) -> None:

    path = make_video(tmp_path / "v" / "x.mp4", 3)
    good = path.read_bytes()
    path.write_bytes(b"")
    assert "x" in extract(path.parent, tmp_path / "cache").quarantined
    path.write_bytes(good)
    assert extract(path.parent, tmp_path / "cache").quarantined == {}
    rows = list(list_videos(open_cache(tmp_path / "cache").view()))
    assert [(row.video_id, row.state) for row in rows] == [("x", "complete")]


def test_a_broken_video_replaced_by_another_broken_one_is_listed_once(tmp_path: Path) -> None:
    cache, path = tmp_path / "cache", tmp_path / "videos" / "x.mp4"
    path.parent.mkdir()
    for num_frames in (30, 40):
        damaged_copy(make_video(tmp_path / f"{num_frames}.mp4", num_frames), path)
        extract(path.parent, cache)
    rows = list(list_videos(open_cache(cache).view()))
    assert [(row.video_id, row.state) for row in rows] == [("x", "quarantined")]


def test_the_first_videos_alone_are_read_and_extracted(videos: Path, tmp_path: Path) -> None:
    seen: list[int] = []
    from fcache.extract.request import plan_request, read_request
    from tests.extract.making import words

    request = read_request([str(videos), *words()])
    plan_request(request, tmp_path / "c", first=1, progress=lambda done, total: seen.append(done))
    assert seen == [1]
    assert extract(videos, tmp_path / "cache", first=1).num_frames == LENGTHS["a"]
    assert lengths(tmp_path / "cache") == {"a": 16}
    assert extract(videos, tmp_path / "cache").num_frames == LENGTHS["b"] + LENGTHS["c"]


def test_the_first_readable_video_is_found_behind_broken_ones(videos: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(videos, tmp_path / "videos"))
    (folder / "0.mp4").touch()
    summary = extract(folder, tmp_path / "cache", first=1)
    assert lengths(tmp_path / "cache") == {"a": 16}
    assert list(summary.quarantined) == ["0"]


def test_a_quota_that_is_too_small_stops_before_anything_is_written(
    videos: Path, tmp_path: Path
) -> None:
    with pytest.raises(NoSpaceError, match="max_bytes=1000\\."):
        extract(videos, tmp_path / "cache", max_bytes=1000)
    assert not (tmp_path / "cache").exists()


def test_a_quota_counts_every_view_of_the_cache(videos: Path, copied: Path) -> None:
    held = sum(path.stat().st_size for path in shard_files(copied))
    with pytest.raises(NoSpaceError, match="max_bytes"):
        extract(videos / "c.mp4", copied, flip="true", max_bytes=held)
    assert len(open_cache(copied).views) == 1


def test_a_quota_holds_where_the_container_promised_too_little(tmp_path: Path) -> None:
    path = make_video(tmp_path / "long.mp4", 90)
    manifest = manifest_of(path, tmp_path, num_frames=1)
    with pytest.raises(NoSpaceError, match="more frames than they said"):
        extract(manifest, tmp_path / "cache", max_bytes=1_500_000)
    kept = len(shard_hashes(tmp_path / "cache"))
    assert kept > 0
    extract(manifest, tmp_path / "cache")
    assert lengths(tmp_path / "cache") == {"v": 90}
    assert_same(stored(tmp_path / "cache", "v"), expected(path))


def test_the_manifest_in_the_cache_names_every_video_and_reads_back(
    videos: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(videos, tmp_path / "videos"))
    (folder / "broken.mp4").touch()
    extract(folder, tmp_path / "cache", stride=2)
    (content,) = open_cache(tmp_path / "cache").view().index.manifests()
    manifest = Manifest.model_validate(content)
    assert [video.id for video in manifest.videos] == ["a", "b", "broken", "c"]
    assert manifest.videos[0].sha256 == content_hash(folder / "a.mp4", "video")
    (tmp_path / "m.toml").write_text(manifest.to_toml())
    assert load_manifest(str(tmp_path / "m.toml")).videos == manifest.videos
    assert extract(tmp_path / "m.toml", tmp_path / "cache", stride=2).num_frames == 0


def test_a_manifests_sampling_yields_to_the_command_line(videos: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.toml"
    video = Video(id="v", path=str(videos / "b.mp4"), kind="video")
    Manifest(name="m", sampling={"stride": 3}, videos=(video,)).write(path)
    extract(path, tmp_path / "one")
    assert lengths(tmp_path / "one") == {"v": 7}
    extract(path, tmp_path / "two", fps=6)
    assert lengths(tmp_path / "two") == {"v": 6}


def test_a_split_that_is_not_there_names_those_that_are(videos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    shutil.copytree(videos, folder / "train")
    with pytest.raises(ConfigError, match="expected one of: train"):
        extract(folder, tmp_path / "cache", split="val")
    assert not (tmp_path / "cache").exists()


def test_the_file_and_not_the_manifest_says_how_large_a_video_is(
    videos: Path, done: Path, tmp_path: Path
) -> None:
    manifest = manifest_of(videos / "c.mp4", tmp_path, num_frames=3, height=64, width=48)
    assert extract(manifest, tmp_path / "cache").quarantined == {}
    assert_same(stored(tmp_path / "cache", "v"), stored(done, "c"))


def test_a_replaced_video_leaves_nothing_unfinished(videos: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(videos / "b.mp4", tmp_path / "v.mp4"))
    cache = tmp_path / "cache"
    extract(path, cache)
    index = open_cache(cache).view().index
    index.forget(Bucket(32, 64), [1])  # as if the job had been killed before the last shard
    make_video(path, 4)
    extract(path, cache)
    assert lengths(cache) == {"v": 4}
    assert unfinished(index, index.load()) == []


def test_the_rate_of_the_plan_is_that_of_the_last_commits(done: Path, videos: Path) -> None:
    plan = plan_of(videos, done)
    assert plan.rate is not None
    assert 1 < plan.rate < 100_000
    assert plan.todo_frames == 0
    assert plan.cached_bytes == sum(path.stat().st_size for path in shard_files(done))
