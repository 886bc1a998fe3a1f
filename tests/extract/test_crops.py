"""Crop views: each draw of a video is what a direct call makes of that crop."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from fcache.backbones import load
from fcache.cache import open_cache
from fcache.errors import CacheError, CacheNotFoundError
from fcache.extract import look
from fcache.extract.request import read_request
from fcache.sources.decode import decode
from fcache.sources.geometry import Placement, draw, draw_crop
from fcache.store.inspect import summarise
from fcache.store.verify import unfinished
from tests.extract.images import make_image, make_images
from tests.extract.making import (
    assert_same,
    assert_sound,
    extract,
    make_videos,
    plan_of,
    shard_hashes,
    words,
)

CROP = {"crop": "32", "short_side": "40..60", "crop_seed": "1"}
LENGTHS = {"a": 18, "b": 3}


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_videos(tmp_path_factory.mktemp("videos"), LENGTHS)


@pytest.fixture(scope="module")
def done(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three crops of each video; tests copy it before they change it."""
    cache = tmp_path_factory.mktemp("done") / "cache"
    extract(videos, cache, crops=3, **CROP)
    return cache


@pytest.fixture
def copied(done: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(done, tmp_path / "cache"))


def expected_draw(path: Path, kind: str, number: int, video_id: str = "", **changes):
    """Placement, canvases and stage outputs of a crop by direct calls, frame by frame."""
    config = read_request([str(path), *words(**{**CROP, **changes})]).config
    net = load(config.backbone, device=torch.device("cpu"))
    canvases, outputs, at = [], [], None
    for frame in decode(path, kind, config.selection):
        assert frame is not None
        sides = frame.rgb.shape[:2]
        at = draw_crop(video_id or path.stem, number, *sides, config.geometry)
        canvases.append(draw(frame.rgb, at))
        batch = torch.from_numpy(canvases[-1][None])
        outputs.append([stage[0].numpy() for stage in net(batch, (at.crop_h, at.crop_w))])
    return at, (np.stack(canvases), [np.stack(stage) for stage in zip(*outputs, strict=True)])


def stored_draw(cache: Path, video: str, number: int):
    view = open_cache(cache).view()
    clip = view.read(view.frames(video, draw=number))
    return clip.pixels, [clip.floats(stage) for stage in range(4)]


@pytest.mark.parametrize("number", [0, 1, 2])
def test_every_draw_equals_direct_calls_at_one_place_for_all_frames(
    videos: Path, done: Path, number: int
) -> None:
    for name in LENGTHS:
        at, wanted = expected_draw(videos / f"{name}.mp4", "video", number)
        assert_same(stored_draw(done, name, number), wanted)
        held = open_cache(done).view().frames(name, draw=number)
        assert held.item.draw == number
        assert held.valid == (at.crop_h, at.crop_w) == (32, 32)
    assert_sound(done)


def test_draws_differ_in_size_place_and_flip(done: Path) -> None:
    view = open_cache(done).view()
    held = [view.frames(name, draw=number).item for name in LENGTHS for number in range(3)]
    assert len({item.placement["resize_h"] for item in held}) >= 4
    assert len({(item.placement["crop_y"], item.placement["crop_x"]) for item in held}) >= 4
    assert {item.placement["flip"] for item in held} == {True, False}


def test_a_video_with_several_draws_asks_which(done: Path) -> None:
    view = open_cache(done).view()
    with pytest.raises(CacheError, match=r"cached as 3 crops; expected draw= .*: 0, 1, 2"):
        view.frames("a")
    with pytest.raises(CacheNotFoundError, match="crop 3"):
        view.frames("a", draw=3)
    assert view.videos == ["a", "b"]


def test_one_more_draw_computes_that_draw_alone(videos: Path, done: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert extract(videos, cache, crops=2, **CROP).num_frames == 2 * 21
    before = shard_hashes(cache)
    plan = plan_of(videos, cache, crops=3, **CROP)
    assert (plan.num_frames, plan.todo_frames) == (3 * 21, 21)
    summary = extract(videos, cache, crops=3, **CROP)
    assert (summary.num_videos, summary.num_frames) == (2, 21)
    assert before.items() < shard_hashes(cache).items()
    assert len(open_cache(cache).views) == 1
    for name in LENGTHS:
        for number in range(3):
            assert_same(stored_draw(cache, name, number), stored_draw(done, name, number))
    # Fewer are asked for than are there: nothing to do, and none is lost.
    assert extract(videos, cache, crops=1, **CROP).num_frames == 0
    assert open_cache(cache).view().frames("b", draw=2)


def test_the_frames_table_tells_sides_box_and_flip_of_every_frame(videos: Path, done: Path) -> None:
    view = open_cache(done).view()
    (path,) = (view.folder / "index" / "tables").glob("frames.*.parquet")
    table = pq.read_table(path).to_pylist()
    assert len(table) == 3 * 21
    by_row = {(frame["bucket"], frame["row"]): frame for frame in table}
    for name in LENGTHS:
        for number in range(3):
            at, _ = expected_draw(videos / f"{name}.mp4", "video", number)
            held = view.frames(name, draw=number)
            for row in held.rows:
                frame = by_row[held.item.bucket.name, row]
                assert {key: frame[key] for key in PLACED} == {
                    key: getattr(at, key) for key in PLACED
                }
                assert (frame["source_h"], frame["source_w"]) == (48, 64)


PLACED = ("resize_h", "resize_w", "crop_y", "crop_x", "crop_h", "crop_w", "flip")


@pytest.mark.parametrize("geometry", [CROP, {**CROP, "crop": "30x50", "short_side": "40..90"}])
def test_labels_show_what_the_pixels_show(tmp_path: Path, geometry: dict[str, str]) -> None:
    """Every class has a colour, so that a canvas tells the label of its pixels."""
    folder, labels, cache = tmp_path / "seq", tmp_path / "labels" / "seq", tmp_path / "cache"
    folder.mkdir()
    labels.mkdir(parents=True)
    for number in range(3):
        coarse = np.random.default_rng(number).integers(0, 8, (6, 8), np.uint8)
        label = coarse.repeat(16, 0).repeat(16, 1)
        Image.fromarray(label).save(labels / f"{number:03d}.png")
        colours = np.stack([label * 30, 250 - label * 20, label * label * 5], -1)
        Image.fromarray(colours).save(folder / f"{number:03d}.png")
    extract(folder, cache, crops=4, **geometry)
    data = open_cache(cache).torch_dataset(labels=tmp_path / "labels")
    assert len(data) == 3 * 4
    for sample in data:
        pixels, label = sample["pixels"][0].numpy(), sample["label"][0].numpy()
        shown = pixels[..., 0] // 30
        # A mixture of two colours lies on no other: squares are not linear.
        pure = (pixels[..., 0] % 30 == 0) & (pixels[..., 2] == shown * shown * 5)
        height, width = sample["valid"]
        inside = np.zeros(label.shape, bool)
        inside[:height, :width] = True
        assert (pure & inside).sum() > 0.5 * height * width
        assert np.array_equal(label[pure & inside], shown[pure & inside])
        assert (label[~inside] == 255).all()
        assert not pixels[~inside].any()


def test_image_sets_have_draws_that_pack_like_images(tmp_path: Path) -> None:
    folder, cache = tmp_path / "set", tmp_path / "cache"
    make_images(folder, [f"i{n:02d}" for n in range(9)])
    source = make_images(folder, ["small"], (24, 30))
    summary = extract(source, cache, crops=2, **{**CROP, "short_side": "28..60"})
    assert (summary.num_videos, summary.num_frames) == (10, 20)
    view = open_cache(cache).view()
    buckets: dict[str, set[int]] = {}
    for path in folder.glob("*.png"):
        for number in range(2):
            _, wanted = expected_draw(path, "image", number, short_side="28..60")
            assert_same(stored_draw(cache, path.stem, number), wanted)
            held = view.frames(path.stem, draw=number)
            assert held.item.packed
            buckets.setdefault(held.item.bucket.name, set()).add(held.rows[0])
    assert {name: {row // 16 for row in found} for name, found in buckets.items()} == {
        name: set(range(-(-len(found) // 16))) for name, found in buckets.items()
    }
    assert_sound(cache)


def test_a_renamed_video_has_other_draws_and_the_plan_says_that_they_lack(
    videos: Path, copied: Path, tmp_path: Path
) -> None:
    (folder := tmp_path / "renamed").mkdir()
    shutil.copy(videos / "b.mp4", folder / "c.mp4")
    plan = plan_of(folder, copied, crops=3, **CROP)
    assert (plan.num_frames, plan.todo_frames) == (9, 9)
    assert extract(folder, copied, crops=3, **CROP).num_frames == 9
    view = open_cache(copied).view()
    for number in range(3):
        at, wanted = expected_draw(folder / "c.mp4", "video", number)
        assert_same(stored_draw(copied, "c", number), wanted)
        old = Placement(canvas_h=32, canvas_w=32, **view.frames("b", draw=number).item.placement)
        assert at != old
    assert_sound(copied)


def test_two_videos_of_one_content_have_draws_of_their_own(videos: Path, tmp_path: Path) -> None:
    (folder := tmp_path / "twins").mkdir()
    for name in ("x", "y"):
        shutil.copy(videos / "b.mp4", folder / f"{name}.mp4")
    assert extract(folder, tmp_path / "cache", crops=2, **CROP).num_frames == 2 * 2 * 3
    for name in ("x", "y"):
        for number in range(2):
            _, wanted = expected_draw(folder / f"{name}.mp4", "video", number)
            assert_same(stored_draw(tmp_path / "cache", name, number), wanted)


def test_another_seed_is_another_view(videos: Path, copied: Path) -> None:
    extract(videos / "b.mp4", copied, crops=1, **{**CROP, "crop_seed": "2"})
    assert len(open_cache(copied).views) == 2


def test_a_draw_that_was_taken_back_is_made_again_alone(videos: Path, copied: Path) -> None:
    before = shard_hashes(copied)
    (view,) = open_cache(copied).views
    held = view.frames("b", draw=1)
    view.index.forget(held.item.bucket, [held.rows[0] // 16])
    assert unfinished(view.index, view.index.load()) == ["b"]
    assert extract(videos, copied, crops=3, **CROP).num_frames == 3
    assert shard_hashes(copied) == before


def test_a_broken_video_is_quarantined_once_for_all_its_draws(tmp_path: Path) -> None:
    make_image(tmp_path / "set" / "good.png")
    make_image(tmp_path / "set" / "bad.png").write_bytes(b"\x89PNG")
    summary = extract(f"{tmp_path}/set/*.png", tmp_path / "cache", crops=3, **CROP)
    assert list(summary.quarantined) == ["bad"]
    assert summary.num_frames == 3
    row = summarise(open_cache(tmp_path / "cache").view())
    assert row.quarantined == 1


def test_a_source_is_opened_once_to_plan_all_its_draws(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []
    real = look.probe_source

    def counted(path: Path, kind: str):
        opened.append(path)
        return real(path, kind)

    monkeypatch.setattr(look, "probe_source", counted)
    plan = plan_of(videos, tmp_path / "cache", crops=4, **CROP)
    assert plan.num_frames == 4 * 21
    assert sorted(path.stem for path in opened) == ["a", "b"]
