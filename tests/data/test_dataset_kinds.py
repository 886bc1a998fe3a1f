"""The data set on views of crops, packed images, borrowed frames and int8."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from fcache.cache import open_cache
from fcache.config import ViewGeometry
from fcache.errors import CacheNotFoundError, ConfigError
from fcache.sources.geometry import draw_crop
from tests.cli.running import run
from tests.data.test_dataset import LENGTHS, SIZE, write_labels
from tests.extract.making import extract, make_video, words
from tests.sources.media import moving_frames

NUM_DRAWS = 3
CROPS = {"short_side": "40..60", "crop": "32", "crops": str(NUM_DRAWS)}


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for name, num_frames in LENGTHS.items():
        make_video(folder / f"{name}.mp4", num_frames, *SIZE)
    return folder


@pytest.fixture(scope="module")
def crops(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache = tmp_path_factory.mktemp("crops") / "cache"
    extract(videos, cache, **CROPS)
    return cache


def write_frames(folder: Path, names: list[str], seed: int = 0) -> Path:
    folder.mkdir(parents=True)
    for name, frame in zip(names, moving_frames(len(names), *SIZE, seed=seed), strict=True):
        Image.fromarray(frame).save(folder / f"{name}.png")
    return folder


def test_every_crop_of_a_video_gives_clips_and_none_mixes_crops(crops: Path) -> None:
    cache = open_cache(crops)
    data = cache.torch_dataset(clip_frames=3)
    samples = [data[index] for index in range(len(data))]
    assert [(one["video"], one["draw"], one["frames"][0]) for one in samples] == [
        (video, draw, first)
        for video, firsts in (
            ("train/a", ["00000", "00003"]),
            ("train/b", ["00000"]),
            ("val/c", ["00000"]),
        )
        for draw in range(NUM_DRAWS)
        for first in firsts
    ]
    for one in samples:
        held = cache.view().frames(one["video"], draw=one["draw"])
        clip = cache.view().read(held, [int(name) for name in one["frames"]])
        assert np.array_equal(one["pixels"].numpy(), clip.pixels)
        assert np.array_equal(one["stages"][1].numpy(), clip.stages[1])
    assert not torch.equal(samples[0]["pixels"], samples[2]["pixels"])


def test_one_crop_of_each_video_can_be_chosen(crops: Path) -> None:
    cache = open_cache(crops)
    data = cache.torch_dataset(draw=1, split="train")
    assert len(data) == LENGTHS["train/a"] + LENGTHS["train/b"]
    assert {data[index]["draw"] for index in range(len(data))} == {1}
    batch = next(iter(DataLoader(data, batch_size=4)))
    assert batch["draw"].tolist() == [1] * 4


def test_a_crop_that_is_not_there_names_those_that_are(crops: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no crop 3; expected one of: 0, 1, 2\."):
        open_cache(crops).torch_dataset(draw=3)
    with pytest.raises(CacheNotFoundError, match=r"no complete crop 3 of video 'train/a'\."):
        open_cache(crops).view().frames("train/a", draw=3)
    extract(make_video(tmp_path / "a.mp4", 2), tmp_path / "cache")
    with pytest.raises(ConfigError, match="holds no crops; draw=0 has no meaning"):
        open_cache(tmp_path / "cache").torch_dataset(draw=0)


def test_a_full_view_says_nothing_of_crops(tmp_path: Path) -> None:
    extract(make_video(tmp_path / "a.mp4", 2), tmp_path / "cache")
    assert "draw" not in open_cache(tmp_path / "cache").torch_dataset()[0]


def test_labels_follow_each_crop(crops: Path, tmp_path: Path) -> None:
    masks = write_labels(tmp_path)
    data = open_cache(crops).torch_dataset(labels=masks)
    geometry = ViewGeometry(short_side="40..60", crop=32)
    flips = set()
    for index in range(0, len(data), 4):
        sample = data[index]
        at = draw_crop(sample["video"], sample["draw"], *SIZE, geometry)
        mask = Image.open(masks / sample["video"] / f"{sample['frames'][0]}.png")
        resized = np.asarray(mask.resize((at.resize_w, at.resize_h), Image.Resampling.NEAREST))
        wanted = resized[at.crop_y : at.crop_y + 32, at.crop_x : at.crop_x + 32]
        label = sample["label"][0].numpy()
        assert np.array_equal(label, wanted[:, ::-1] if at.flip else wanted)
        flips.add(at.flip)
    assert flips == {True, False}


def test_packed_images_are_clips_of_one_frame(tmp_path: Path) -> None:
    names = [f"{number:03d}" for number in range(20)]
    images = write_frames(tmp_path / "images", names)
    masks = tmp_path / "masks"
    for number, name in enumerate(names):
        folder = masks / name
        folder.mkdir(parents=True)
        Image.fromarray(np.full(SIZE, number, np.uint8)).save(folder / f"{name}.png")
    extract(sorted(images.glob("*.png")), tmp_path / "cache", batch="4")
    cache = open_cache(tmp_path / "cache")
    rows = [cache.view().frames(video).rows for video in cache.videos]
    assert {row // 16 for (row,) in rows} == {0, 1}
    data = cache.torch_dataset(labels=masks)
    assert len(data) == 20
    for index in range(20):
        sample = data[index]
        assert sample["video"] == names[index] == sample["frames"][0]
        valid = sample["label"][0, : sample["valid"][0], : sample["valid"][1]]
        assert (valid == index).all()


def test_borrowed_frames_are_read_in_the_order_of_the_source(tmp_path: Path) -> None:
    every = [f"{number:03d}" for number in range(7)]
    whole = write_frames(tmp_path / "whole/clip", every)
    some = tmp_path / "some/clip"
    some.mkdir(parents=True)
    for name in every[::3]:
        (some / f"{name}.png").write_bytes((whole / f"{name}.png").read_bytes())
    extract(tmp_path / "some", tmp_path / "cache")
    extract(tmp_path / "whole", tmp_path / "cache")
    extract(tmp_path / "whole", tmp_path / "alone")
    held = open_cache(tmp_path / "cache").view().frames("clip")
    assert len(held.item.borrowed) == 3
    found = open_cache(tmp_path / "cache").torch_dataset(clip_frames=7)
    wanted = open_cache(tmp_path / "alone").torch_dataset(clip_frames=7)
    assert found[0]["frames"] == wanted[0]["frames"] == every
    assert torch.equal(found[0]["pixels"], wanted[0]["pixels"])
    assert all(map(torch.equal, found[0]["stages"], wanted[0]["stages"]))


def test_int8_comes_as_the_float32_it_stands_for(videos: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    code, _, err = run(
        "extract", videos, "--cache", cache, "--scheduler", "inline", *words(dtype="int8")
    )
    assert code == 0, err
    extract(videos, cache)
    views = {view.index.layout.dtype: view.key for view in open_cache(cache).views}
    compact = open_cache(f"{cache}@{views['int8']}").torch_dataset()
    exact = open_cache(f"{cache}@{views['float32']}").torch_dataset()
    assert len(compact) == len(exact)
    for index in (0, len(exact) - 1):
        for found, wanted in zip(compact[index]["stages"], exact[index]["stages"], strict=True):
            assert found.dtype == torch.float32
            error = (found - wanted).norm() / wanted.norm()
            assert 0 < error < 0.02
