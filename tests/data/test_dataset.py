"""The data set of clips: what a sample holds, and where its labels lie on the canvas."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from fcache.cache import open_cache
from fcache.data.dataset import ClipDataset
from fcache.errors import ConfigError, LabelError
from fcache.manifest import Category, Labels, Manifest
from tests.extract.making import extract, make_video

LENGTHS = {"train/a": 7, "train/b": 4, "val/c": 3}
SIZE = (48, 64)  # of the videos, pixels
VALID, CANVAS = (40, 53), (64, 64)  # what short_side=40 makes of them
STRIDE = 16  # pixels a token


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for name, num_frames in LENGTHS.items():
        make_video(folder / f"{name}.mp4", num_frames, *SIZE)
    return folder


@pytest.fixture(scope="module")
def caches(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same videos under four views."""
    folder = tmp_path_factory.mktemp("caches")
    changes: dict[str, dict[str, str]] = {
        "plain": {},
        "flipped": {"flip": "true"},
        "narrow": {"dtype": "bfloat16"},
        "pyramid": {"model": "test_resnet", "blocks": "none", "dtype": "float16"},
    }
    for name, change in changes.items():
        extract(videos, folder / name, **{"short_side": "40", **change})
    return {name: folder / name for name in changes}


def write_labels(folder: Path, size: tuple[int, int] = SIZE, num_classes: int = 5) -> Path:
    """A mask of noise for every frame of every video; 255 occurs too."""
    for name, num_frames in LENGTHS.items():
        for frame in range(num_frames):
            rng = np.random.default_rng([*name.encode(), frame])
            values = rng.choice([*range(num_classes), 255], size).astype(np.uint8)
            write_mask(folder / name / f"{frame:05d}.png", values)
    return folder


def write_mask(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def read_mask(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def nearest(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Nearest-neighbour by whole numbers; odd sides have no ties."""
    rows, columns = (
        (2 * np.arange(out) + 1) * into // (2 * out)
        for into, out in zip(values.shape, size, strict=True)
    )
    return values[np.ix_(rows, columns)]


def assert_equal_samples(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        if name == "stages":
            assert len(one[name]) == len(other[name])
            assert all(torch.equal(a, b) for a, b in zip(one[name], other[name], strict=True))
        elif isinstance(one[name], torch.Tensor):
            assert torch.equal(one[name], other[name])
        else:  # a loader turns the tuple of "valid" into a list
            assert list(one[name]) == list(other[name])


@pytest.mark.parametrize("name", ["plain", "pyramid"])
def test_a_sample_holds_what_view_read_returns(caches: dict[str, Path], name: str) -> None:
    cache = open_cache(caches[name])
    data = cache.torch_dataset()
    assert len(data) == sum(LENGTHS.values())
    for index in (0, 6, 7, len(data) - 1):
        sample = data[index]
        frame = int(sample["frames"][0])
        clip = cache.read(sample["video"], [frame])
        assert clip.pixels is not None
        assert len(sample["stages"]) == 4
        for stage, wanted in zip(sample["stages"], clip.stages, strict=True):
            assert stage.dtype == torch.from_numpy(wanted).dtype
            assert np.array_equal(stage.numpy(), wanted)
        assert np.array_equal(sample["pixels"].numpy(), clip.pixels)
        assert sample["valid"] == VALID
        assert "label" not in sample


def test_clips_are_consecutive_frames_and_do_not_overlap(caches: dict[str, Path]) -> None:
    cache = open_cache(caches["plain"])
    data = cache.torch_dataset(clip_frames=3, stages=(2, 0))
    seen = [(sample["video"], sample["frames"]) for sample in (data[i] for i in range(len(data)))]
    assert seen == [
        ("train/a", ["00000", "00001", "00002"]),
        ("train/a", ["00003", "00004", "00005"]),
        ("train/b", ["00000", "00001", "00002"]),
        ("val/c", ["00000", "00001", "00002"]),
    ]
    whole = cache.read("train/a")
    stages = data[1]["stages"]
    assert [stage.shape[0] for stage in stages] == [3, 3]
    assert np.array_equal(stages[0].numpy(), whole.stages[2][3:6])
    assert np.array_equal(stages[1].numpy(), whole.stages[0][3:6])


def test_a_split_gives_its_own_videos_alone(caches: dict[str, Path]) -> None:
    data = open_cache(caches["plain"]).torch_dataset(split="val")
    assert [data[i]["video"] for i in range(len(data))] == ["val/c"] * 3


def test_an_unknown_split_names_those_there_are(caches: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match=r"no complete video of split 'test'.*: train, val"):
        open_cache(caches["plain"]).torch_dataset(split="test")


def test_clips_longer_than_any_video_are_refused(caches: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="no clip of 8 frames; its longest complete video has 7"):
        open_cache(caches["plain"]).torch_dataset(clip_frames=8)


def test_a_clip_counts_only_if_each_of_its_frames_has_a_label(
    caches: dict[str, Path], tmp_path: Path
) -> None:
    masks = write_labels(tmp_path)
    (masks / "train/a/00001.png").unlink()
    cache = open_cache(caches["plain"])
    pairs = cache.torch_dataset(clip_frames=2, labels=masks)
    assert [pairs[i]["frames"][0] for i in range(2)] == ["00002", "00004"]
    assert pairs[0]["label"].shape == (2, *CANVAS)
    assert len(cache.torch_dataset(labels=masks)) == sum(LENGTHS.values()) - 1


@pytest.mark.parametrize("view", ["plain", "flipped"])
def test_labels_lie_where_the_cached_frame_lies(
    caches: dict[str, Path], tmp_path: Path, view: str
) -> None:
    masks = write_labels(tmp_path)
    data = open_cache(caches[view]).torch_dataset(labels=masks, split="train")
    sample = data[9]
    assert (sample["video"], sample["frames"]) == ("train/b", ["00002"])
    mask = Image.open(masks / "train/b/00002.png")
    wanted = np.asarray(mask.resize(VALID[::-1], Image.Resampling.NEAREST))
    label = sample["label"]
    assert (label.dtype, label.shape) == (torch.int64, (1, *CANVAS))
    inside = label[0, : VALID[0], : VALID[1]].numpy()
    assert np.array_equal(inside, wanted[:, ::-1] if view == "flipped" else wanted)
    assert not np.array_equal(wanted, wanted[:, ::-1])
    assert (label[0, VALID[0] :] == 255).all()
    assert (label[0, :, VALID[1] :] == 255).all()


def test_a_flipped_view_moves_pixels_and_labels_alike(
    caches: dict[str, Path], tmp_path: Path
) -> None:
    masks = tmp_path / "masks"
    for name, num_frames in LENGTHS.items():
        pixels = open_cache(caches["plain"]).read(name).pixels
        assert pixels is not None
        for frame in range(num_frames):
            bright = pixels[frame, : VALID[0], : VALID[1], 1] > 127
            small = Image.fromarray(bright.astype(np.uint8))
            write_mask(
                masks / name / f"{frame:05d}.png",
                np.asarray(small.resize(SIZE[::-1], Image.Resampling.NEAREST)),
            )
    agree = {}
    for view in ("plain", "flipped"):
        sample = open_cache(caches[view]).torch_dataset(labels=masks)[0]
        area = np.s_[0, : VALID[0], : VALID[1]]
        bright = sample["pixels"][area][..., 1] > 127
        agree[view] = float((bright == (sample["label"][area] == 1)).float().mean())
    assert min(agree.values()) > 0.9


def test_labels_of_another_scale_are_resized_once_from_their_own_size(
    caches: dict[str, Path], tmp_path: Path
) -> None:
    masks = write_labels(tmp_path, (33, 43))
    label = open_cache(caches["plain"]).torch_dataset(labels=masks)[0]["label"][0]
    mask = read_mask(masks / "train/a/00000.png")
    once = nearest(mask, VALID)
    twice = nearest(nearest(mask, SIZE), VALID)
    assert not np.array_equal(once, twice)
    assert np.array_equal(label[: VALID[0], : VALID[1]].numpy(), once)


def test_a_label_of_another_shape_is_an_error_that_names_both_sizes(
    caches: dict[str, Path], tmp_path: Path
) -> None:
    data = open_cache(caches["plain"]).torch_dataset(labels=write_labels(tmp_path, (40, 80)))
    with pytest.raises(LabelError, match="'train/a' frame '00000' is 40x80 and its image 48x64"):
        data[0]


def test_labels_that_do_not_join_name_a_video_and_a_frame_of_the_cache(
    caches: dict[str, Path], tmp_path: Path
) -> None:
    write_mask(tmp_path / "elsewhere" / "0001.png", np.zeros(SIZE, np.uint8))
    with pytest.raises(ConfigError) as caught:
        open_cache(caches["plain"]).torch_dataset(labels=tmp_path)
    assert f"label folder '{tmp_path}'" in caught.value.message
    assert "for example video 'train/a', frame '00000'" in caught.value.message


def test_labels_come_from_a_json_manifest_too(caches: dict[str, Path], tmp_path: Path) -> None:
    masks = write_labels(tmp_path / "masks")
    manifest = Manifest(
        name="mine",
        root=str(masks),
        labels=(Labels(format="semantic", path="{video}/{frame}.png", void=(255,)),),
        categories=tuple(Category(id=k, name=f"k{k}", isthing=False) for k in range(5)),
    )
    manifest.write(tmp_path / "m.json")
    cache = open_cache(caches["plain"])
    found = cache.torch_dataset(labels=tmp_path / "m.json")
    wanted = cache.torch_dataset(labels=masks)
    assert len(found) == len(wanted)
    assert torch.equal(found[3]["label"], wanted[3]["label"])


def test_bare_masks_are_not_taken_for_the_only_video_of_a_split(
    caches: dict[str, Path], tmp_path: Path
) -> None:
    for frame in range(7):
        write_mask(tmp_path / f"{frame:05d}.png", np.zeros(SIZE, np.uint8))
    with pytest.raises(ConfigError, match="no clip of 1 frames in split 'val' with labels"):
        open_cache(caches["plain"]).torch_dataset(labels=tmp_path, split="val")


def test_bfloat16_comes_as_the_exact_float32(caches: dict[str, Path]) -> None:
    narrow = open_cache(caches["narrow"]).torch_dataset()
    wide = open_cache(caches["plain"]).torch_dataset()
    for index in (0, len(wide) - 1):
        for stored, full in zip(narrow[index]["stages"], wide[index]["stages"], strict=True):
            assert stored.dtype == full.dtype == torch.float32
            assert torch.equal(stored, full.bfloat16().float())
            assert not torch.equal(stored, full)


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_loader_workers_return_what_direct_access_returns(
    caches: dict[str, Path], tmp_path: Path, start: str
) -> None:
    masks = write_labels(tmp_path)
    data = open_cache(caches["plain"]).torch_dataset(labels=masks, split="train")
    wanted = [data[index] for index in range(len(data))]  # files are open when workers start
    context = multiprocessing.get_context(start)
    loader = DataLoader(data, batch_size=None, num_workers=2, multiprocessing_context=context)
    found = list(loader)
    assert len(found) == len(wanted) == 11
    for one, other in zip(found, wanted, strict=True):
        assert_equal_samples(one, other)


def test_samples_of_one_canvas_can_be_collated(caches: dict[str, Path], tmp_path: Path) -> None:
    data = open_cache(caches["plain"]).torch_dataset(labels=write_labels(tmp_path), split="train")
    batch = next(iter(DataLoader(data, batch_size=4)))
    assert batch["label"].shape == (4, 1, *CANVAS)
    assert torch.equal(batch["stages"][3][2], data[2]["stages"][3])


def test_a_head_of_ones_own_learns_from_the_samples(
    caches: dict[str, Path], tmp_path: Path
) -> None:
    cache = open_cache(caches["plain"])
    for name, num_frames in LENGTHS.items():
        pixels = cache.read(name).pixels
        assert pixels is not None
        for frame in range(num_frames):
            tokens = pixels[frame].reshape(4, STRIDE, 4, STRIDE, 3).mean((1, 3, 4))
            bright = np.kron(tokens > np.median(tokens), np.ones((STRIDE, STRIDE)))
            values = bright[: VALID[0], : VALID[1]].astype(np.uint8)
            write_mask(tmp_path / name / f"{frame:05d}.png", values)
    data = cache.torch_dataset(labels=tmp_path, split="train")
    assert data.labels is not None
    assert data.labels.num_categories == 2
    width = sum(stage.shape[-1] for stage in data[0]["stages"])
    torch.manual_seed(0)
    head = torch.nn.Conv2d(width, 2, 1)
    optimizer = torch.optim.AdamW(head.parameters(), lr=0.01)
    losses = []
    for _ in range(25):
        total = torch.zeros(())
        for sample in DataLoader(data, batch_size=None):
            features = torch.cat(sample["stages"], dim=-1).permute(0, 3, 1, 2)
            logits = torch.nn.functional.interpolate(head(features), CANVAS)
            total += torch.nn.functional.cross_entropy(logits, sample["label"], ignore_index=255)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        losses.append(total.item() / len(data))
    # A constant guess reaches the entropy of the classes at best.
    share = torch.cat([data[i]["label"].flatten() for i in range(len(data))])
    bright_share = float((share == 1).sum() / (share != 255).sum())
    guess = -sum(p * np.log(p) for p in (bright_share, 1 - bright_share))
    assert losses[-1] < 0.6 * guess < losses[0], (losses, guess)


def test_a_data_set_narrowed_by_video_keeps_the_rest_as_it_was(caches: dict[str, Path]) -> None:
    data = open_cache(caches["plain"]).torch_dataset()
    assert isinstance(data, ClipDataset)
    part = data.only(lambda video: video.split == "val")
    assert [part[i]["video"] for i in range(len(part))] == ["val/c"] * 3
    assert len(data) == sum(LENGTHS.values())
