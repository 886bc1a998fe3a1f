"""The probe on a cache: what it scores, how it divides the videos, and what it says on the way."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fcache.cache import open_cache
from fcache.config import ProbeConfig
from fcache.data.labels import LabelReader
from fcache.demo.scene import render_set
from fcache.errors import ConfigError
from fcache.train.probe_run import ProbeResult, run_probe
from tests.cli.running import run
from tests.extract.making import extract, make_video, words
from tests.extract.running import fcache, spoken

NETWORK = {"model": "vit_tiny_patch16_224", "blocks": "none", "short_side": "150"}
NUM_FRAMES = 3


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rendered")
    render_set(
        folder, num_train=3, num_val=2, num_frames=NUM_FRAMES, height=96, width=128, fps=3, seed=3
    )
    return folder


@pytest.fixture(scope="module")
def cache(rendered: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rendered set, extracted from its manifest: splits and labels are known."""
    path = tmp_path_factory.mktemp("probed") / "cache"
    extract(rendered / "manifest.toml", path, **NETWORK)
    return path


@pytest.fixture(scope="module")
def result(cache: Path) -> ProbeResult:
    return probe(cache)


@pytest.fixture(scope="module")
def flat(rendered: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A cache of the same videos out of one folder, so without splits; and masks of them."""
    folder = tmp_path_factory.mktemp("flat")
    (folder / "videos").mkdir()
    for path in sorted(rendered.glob("videos/*/*.mp4")):
        shutil.copy(path, folder / "videos")
    extract(folder / "videos", folder / "cache", **NETWORK)
    return folder / "cache", semantic_masks(rendered, folder / "masks")


def semantic_masks(rendered: Path, folder: Path) -> Path:
    labels = LabelReader.open(rendered / "manifest.toml")
    for path in sorted(rendered.glob("panoptic/*/*/*.png")):
        split, video, frame = path.relative_to(rendered / "panoptic").with_suffix("").parts
        values = labels.semantic(video, frame, split)
        write_mask(folder / video / f"{frame}.png", values)
    return folder


def write_mask(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def config(**changes: object) -> ProbeConfig:
    settings = {"steps": 60, "batch": 4, "lr": 1e-2, "weight_decay": 1e-4, "stride": 8}
    return ProbeConfig.model_validate({**settings, **changes})


def probe(cache: Path, **changes: object) -> ProbeResult:
    return run_probe(open_cache(cache).view(), config(**changes), lambda *_: None)


def test_the_probe_beats_the_class_prior_with_the_labels_of_the_embedded_manifest(
    result: ProbeResult,
) -> None:
    assert (result.num_train, result.num_val) == (3 * NUM_FRAMES, 2 * NUM_FRAMES)
    assert result.split_by == "splits 'train' and 'val'"
    assert [category.name for category in result.categories][:2] == ["sky", "mountain"]
    assert len(result.iou) == 10
    assert 0 < result.prior_miou < 0.1
    assert result.miou > 3 * result.prior_miou
    assert result.pixel_accuracy > 0.5


def test_the_same_seed_gives_the_same_result_and_another_seed_another(
    cache: Path, result: ProbeResult
) -> None:
    again = probe(cache)
    assert again.to_json() == result.to_json()
    for one, other in zip(again.pictures, result.pictures, strict=True):
        assert np.array_equal(one.prediction, other.prediction)
    assert probe(cache, seed=1).iou != result.iou


def test_pictures_are_cut_to_the_valid_area(cache: Path, result: ProbeResult) -> None:
    view = open_cache(cache).view()
    assert [picture.frame.shape[:2] for picture in result.pictures] == [
        (150, 200),
        (150, 200),
        (150, 150),
        (150, 150),
    ]
    for picture in result.pictures:
        video, frame = picture.name.split()
        clip = view.read(video, [int(frame)])
        height, width = clip.valid
        assert clip.pixels is not None
        assert (height, width) != clip.pixels.shape[1:3]
        assert np.array_equal(picture.frame, clip.pixels[0, :height, :width])
        assert picture.truth.shape == picture.prediction.shape == (height, width)
        assert (picture.truth != 255).mean() > 0.8


def test_a_compact_view_of_crops_is_probed_with_labels_that_follow_each_crop(
    rendered: Path, result: ProbeResult, tmp_path: Path
) -> None:
    geometry = {"short_side": "120..150", "crop": 112, "crops": 2}
    settings = words(**{**NETWORK, **geometry}, dtype="int8")
    code, _, err = run(
        "extract", rendered / "manifest.toml", "--cache", tmp_path / "cache", "--scheduler",
        "inline", *settings,
    )  # fmt: skip
    assert code == 0, err
    found = probe(tmp_path / "cache")
    assert (found.num_train, found.num_val) == (2 * 3 * NUM_FRAMES, 2 * 2 * NUM_FRAMES)
    assert found.miou > 0.6 * result.miou > 2 * found.prior_miou
    view = open_cache(tmp_path / "cache").view()
    for picture in found.pictures:
        video, _, draw, frame = picture.name.split()
        clip = view.read(view.frames(video, draw=int(draw)), [int(frame)])
        assert clip.pixels is not None
        assert np.array_equal(picture.frame, clip.pixels[0, : clip.valid[0], : clip.valid[1]])
        assert (picture.truth != 255).mean() > 0.8


def test_packed_images_are_probed(tmp_path: Path) -> None:
    for number in range(10):
        colour = np.array([number * 7 + 120, 40, 20], np.uint8)
        image = np.zeros((48, 64, 3), np.uint8)
        image[:, 20 + number :] = colour
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / f"images/{number}.png")
        mask = (image[..., 0] > 0).astype(np.uint8)
        write_mask(tmp_path / f"masks/{number}/{number}.png", mask)
    extract(sorted((tmp_path / "images").iterdir()), tmp_path / "cache", **NETWORK)
    view = open_cache(tmp_path / "cache").view()
    assert {view.frames(video).rows[0] // 16 for video in view.videos} == {0}
    found = probe(tmp_path / "cache", labels=tmp_path / "masks")
    assert (found.num_train, found.num_val) == (8, 2)
    assert found.miou > 0.8


def test_progress_tells_of_every_part_to_its_end(cache: Path) -> None:
    told: list[tuple[str, int, int]] = []
    view = open_cache(cache).view()
    run_probe(view, config(steps=2), lambda *at: told.append(at))
    assert list(dict.fromkeys(part for part, _, _ in told)) == ["read", "fit", "score"]
    assert {("fit", 2, 2), ("score", 2 * NUM_FRAMES, 2 * NUM_FRAMES)} <= set(told)


def test_without_splits_every_fifth_video_is_held_out(flat: tuple[Path, Path]) -> None:
    cache, masks = flat
    found = probe(cache, labels=masks)
    assert found.split_by == "no splits known: 1 of 5 videos held out"
    assert (found.num_train, found.num_val) == (4 * NUM_FRAMES, NUM_FRAMES)
    assert {picture.name.split()[0] for picture in found.pictures} == {open_cache(cache).videos[4]}
    assert found.miou > found.prior_miou


def test_of_fewer_than_five_videos_the_last_is_held_out(
    flat: tuple[Path, Path], tmp_path: Path
) -> None:
    cache, masks = flat
    first, second = open_cache(cache).videos[:2]
    for video in (first, second):
        shutil.copytree(masks / video, tmp_path / video)
    found = probe(cache, labels=tmp_path, steps=2)
    assert found.split_by == "no splits known: 1 of 2 videos held out"
    assert {picture.name.split()[0] for picture in found.pictures} == {second}


def test_a_single_labelled_video_without_splits_is_refused(
    flat: tuple[Path, Path], tmp_path: Path
) -> None:
    cache, masks = flat
    video = open_cache(cache).videos[0]
    shutil.copytree(masks / video, tmp_path / video)
    with pytest.raises(ConfigError, match="1 labelled video and no splits; expected at least two"):
        probe(cache, labels=tmp_path)


def test_a_split_that_is_not_there_names_those_that_are(cache: Path) -> None:
    with pytest.raises(ConfigError, match=r"no labelled frame in split 'test'.*: train, val"):
        probe(cache, val_split="test")


def test_a_split_without_labels_is_refused(rendered: Path, cache: Path, tmp_path: Path) -> None:
    labels = LabelReader.open(rendered / "manifest.toml")
    for path in sorted(rendered.glob("panoptic/train/*/*.png")):
        values = labels.semantic(path.parent.name, path.stem, "train")
        write_mask(tmp_path / path.parent.name / path.name, values)
    with pytest.raises(ConfigError, match="no labelled frame in split 'val'; expected one of: tr"):
        probe(cache, labels=tmp_path)


def test_validation_labels_of_void_alone_are_refused(
    rendered: Path, cache: Path, tmp_path: Path
) -> None:
    masks = semantic_masks(rendered, tmp_path)
    for video in (rendered / "videos/val").iterdir():
        for path in (masks / video.stem).iterdir():
            write_mask(path, np.full_like(np.asarray(Image.open(path)), 255))
    with pytest.raises(ConfigError, match="none of 6 validation frames has a labelled pixel"):
        probe(cache, labels=masks, steps=2)


def test_a_view_without_labels_in_its_manifest_asks_for_them(flat: tuple[Path, Path]) -> None:
    with pytest.raises(ConfigError, match="from a manifest without labels; give labels=DIR") as why:
        probe(flat[0])
    assert why.value.run == f"fcache probe '{flat[0]}' labels=DIR"


def test_of_a_video_whose_content_changed_the_last_is_probed(tmp_path: Path) -> None:
    for name in ("train/a", "val/b"):
        make_video(tmp_path / f"videos/{name}.mp4", 3)
        for frame in range(3):
            rows = np.repeat(np.arange(4, dtype=np.uint8), 12)
            write_mask(tmp_path / f"masks/{name}/{frame:05d}.png", np.tile(rows[:, None], 64))
    cache = tmp_path / "cache"
    extract(tmp_path / "videos", cache)
    shutil.copy(make_video(tmp_path / "other.mp4", 2), tmp_path / "videos/val/b.mp4")
    extract(tmp_path / "videos", cache)
    assert len(open_cache(cache).view().frames("val/b")) == 2
    found = probe(cache, labels=tmp_path / "masks", steps=2)
    assert (found.num_train, found.num_val) == (3, 2)


def test_the_command_prints_one_json_object_and_draws_the_picture(
    rendered: Path, cache: Path, tmp_path: Path
) -> None:
    picture = tmp_path / "probe.png"
    code, out, err = fcache(
        "probe", cache, f"labels={rendered / 'manifest.toml'}", "steps=20", "--json",
        "--picture", picture,
    )  # fmt: skip
    assert code == 0, err
    found = json.loads(out)
    assert found["schema"] == "fcache.probe/v1"
    assert found["picture"] == str(picture)
    assert (found["num_train"], found["num_val"]) == (9, 6)
    assert found["miou"] > found["prior_miou"]
    assert set(found["iou"]) >= {"sky", "water", "ring"}
    assert Image.open(picture).format == "PNG"
    assert spoken(err) == []


def test_the_command_refuses_labels_that_do_not_join_in_three_lines_at_most(
    cache: Path, tmp_path: Path
) -> None:
    write_mask(tmp_path / "masks/somebody/else.png", np.zeros((96, 128), np.uint8))
    code, out, err = fcache("probe", cache, f"labels={tmp_path / 'masks'}", "--json")
    assert code == 2
    assert out == ""
    assert 1 <= len(err.splitlines()) <= 3
    assert "Labels join by video id and frame name" in err
    video = open_cache(cache).videos[0]
    assert f"video '{video}', frame '00000'" in err
