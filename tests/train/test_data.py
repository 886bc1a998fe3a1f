"""What a run reads: views, labels, splits, and what is said where something is missing."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from fcache.data.labels import LabelReader
from fcache.errors import ConfigError
from fcache.train.data import open_data, train_loader, validation_frames
from fcache.train.distributed import World
from fcache.train.plan import plan_training
from tests.extract.making import PYRAMID, extract, tree
from tests.train.making import VIEW, tiny, train
from tests.train.test_probe_run import semantic_masks


@pytest.fixture(scope="module")
def flat(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same videos out of one folder: no splits are known."""
    folder = tmp_path_factory.mktemp("flat")
    (folder / "videos").mkdir()
    for path in sorted(scenes.glob("videos/*/*.mp4")):
        shutil.copy(path, folder / "videos")
    extract(folder / "videos", folder / "cache", **VIEW)
    return folder / "cache"


def ids(data: Any) -> tuple[list[str], list[str]]:
    train_on = [video.video_id for video in data.videos]
    return train_on, list(dict.fromkeys(frame.video.video_id for frame in data.frames))


def test_splits_of_the_manifest_divide_the_videos(scene_cache: Path) -> None:
    data = open_data(scene_cache, tiny())
    train_on, validate_on = ids(data)
    assert (len(train_on), len(validate_on), len(data.frames)) == (3, 2, 8)
    assert not set(train_on) & set(validate_on)
    assert data.kind == "panoptic"
    assert data.val_view is data.view
    assert data.split_by == "splits 'train' and 'val'"


def test_without_splits_every_fifth_video_is_held_out(flat: Path, scenes: Path) -> None:
    data = open_data(flat, tiny(labels=scenes / "manifest.toml"))
    train_on, validate_on = ids(data)
    assert (len(train_on), len(validate_on)) == (4, 1)
    assert data.split_by == "no splits known: 1 of 5 videos held out"
    everything = open_data(flat, tiny(labels=scenes / "manifest.toml", val_split="train"))
    assert [len(part) for part in ids(everything)] == [5, 5]


def test_cache_without_labels_says_how_to_give_them(flat: Path) -> None:
    with pytest.raises(ConfigError, match="built from a manifest without labels") as caught:
        open_data(flat, tiny())
    assert caught.value.run == f"fcache train '{flat}' labels=DIR"


def test_unknown_split_is_told_with_the_known_ones(scene_cache: Path) -> None:
    with pytest.raises(ConfigError, match="expected one of: train, val"):
        open_data(scene_cache, tiny(train_split="training"))


def test_videos_the_cache_lacks_are_named_with_the_command_that_adds_them(
    scenes: Path, tmp_path: Path
) -> None:
    extract(scenes / "manifest.toml", tmp_path / "cache", first=2, **VIEW)
    with pytest.raises(ConfigError, match=r"lacks 1 of what .* needs of split 'train'") as caught:
        open_data(tmp_path / "cache", tiny(labels=scenes / "manifest.toml"))
    assert caught.value.run is not None
    assert caught.value.run.startswith("fcache extract ")
    assert "size=64x96" in caught.value.run


def test_one_of_several_views_is_chosen(scenes: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    extract(scenes / "manifest.toml", cache, **VIEW)
    extract(scenes / "manifest.toml", cache, **{**VIEW, "size": "96x128"})
    with pytest.raises(ConfigError, match="has 2 views"):
        open_data(cache, tiny())
    first, second = sorted(path.name for path in cache.iterdir() if (path / "index").is_dir())
    data = open_data(f"{cache}@{first[:6]}", tiny())
    assert data.view.key == data.val_view.key == first
    data = open_data(cache, tiny(view=second[:6], val_view=first[:6]))
    assert (data.view.key, data.val_view.key) == (second, first)
    result = train(cache, tmp_path / "run", view=second, val_view=first, steps=1)
    assert 0 <= (result.last.metrics or {})["miou"] <= 1


def test_view_of_another_network_is_no_view_to_validate_on(scenes: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    extract(scenes / "manifest.toml", cache, **VIEW)
    extract(scenes / "manifest.toml", cache, **{**VIEW, "weights": "random:1"})
    first, second = sorted(path.name for path in cache.iterdir() if (path / "index").is_dir())
    with pytest.raises(ConfigError, match="to validate on has another backbone than view"):
        open_data(cache, tiny(view=first, val_view=second))


def test_pyramid_of_a_convolutional_backbone_trains_on_semantic_masks(
    scenes: Path, tmp_path: Path
) -> None:
    extract(scenes / "manifest.toml", tmp_path / "cache", **{**VIEW, **PYRAMID, **VIEW})
    masks = semantic_masks(scenes, tmp_path / "masks")
    reader = LabelReader.open(masks)
    settings = {"adapter": "none", "labels": masks, "steps": 2}
    result = train(tmp_path / "cache", tmp_path / "run", **settings)
    assert result.metric == "miou"
    assert set(result.last.metrics or {}) == {"miou"}
    assert reader.num_categories >= 2
    with pytest.raises(ConfigError, match="adapter=vit reads a plain ViT; this view holds a pyr"):
        train(tmp_path / "cache", tmp_path / "other", labels=masks)


def test_windows_of_a_full_view_train(scene_cache: Path, tmp_path: Path) -> None:
    data, config = open_data(scene_cache, tiny(crop=64)), tiny(crop=64)
    with train_loader(data, config, World(), data.view, 0) as loader:
        batch = next(iter(loader)).micro_batches[0].to("cpu")
    assert batch.pixels.shape == (2, 3, 64, 64)
    assert batch.stages[0].shape[:3] == (2, 4, 4)
    result = train(scene_cache, tmp_path / "run", crop=64, steps=1)
    assert (result.last.metrics or {})["miou"] >= 0


def test_clips_of_several_frames_train_frame_by_frame(scene_cache: Path, tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    settings = {"num_frames": 2, "range_frames": 1, "steps": 1}
    train(scene_cache, tmp_path / "run", report=events.append, **settings)
    assert "step" in [event["event"] for event in events]


def test_validation_frames_are_spread_evenly_and_never_more_than_asked(scene_cache: Path) -> None:
    videos = open_data(scene_cache, tiny(val_split="train")).videos
    every = validation_frames(videos, None)
    assert len(every) == 12
    few = validation_frames(videos, 3)
    told = [(frame.video.video_id, frame.frames) for frame in every]
    assert [told.index((frame.video.video_id, frame.frames)) for frame in few] == [0, 5, 11]
    assert len(validation_frames(videos, 50)) == 12
    limited = open_data(scene_cache, tiny(val_frames=3))
    assert len(limited.frames) == 3


def test_micro_batches_that_ranks_do_not_fill_are_refused(scene_cache: Path) -> None:
    data = open_data(scene_cache, tiny())
    with pytest.raises(ConfigError, match="batch=2 is not filled by 3 ranks"):
        train_loader(data, tiny(micro_batch=1), World(0, 3), data.view, 0)


def test_plan_tells_what_a_run_would_do_and_writes_nothing(scene_cache: Path) -> None:
    before = tree(scene_cache)
    plan = plan_training(scene_cache, tiny(steps=6))
    assert tree(scene_cache) == before
    assert (plan.num_videos, plan.num_val_frames, plan.num_categories) == (3, 8, 10)
    assert (plan.backbone, plan.targets, plan.epochs) == ("test_vit", "panoptic", 4.0)
    assert plan.num_trained == sum(plan.num_by_part.values())
    assert set(plan.num_by_part) == {"adapter", "pixel_decoder", "masked_decoder"}
    assert plan.to_json()["view"] == plan.val_view
