"""Whether a cache holds what a split needs, and the command that adds what it lacks."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fcache.cache import open_cache
from fcache.config import ExtractConfig, load_recipe, resolve, split_overrides
from fcache.data.coverage import check_coverage, overrides
from fcache.data.labels import LabelReader
from fcache.errors import ConfigError
from fcache.manifest import Category, Labels, Manifest, Video
from tests.data.clips import Made, Placed, label_everything, make_view
from tests.extract.making import extract, make_video, words


def video(name: str, split: str = "train", path: str = "x.mp4") -> Video:
    return Video(id=name, path=path, kind="video", split=split)


def labels_of(root: Path, videos: list[Video]) -> LabelReader:
    return LabelReader.from_manifest(
        Manifest(
            name="mine",
            root=str(root),
            labels=(Labels(format="semantic", path="{video}/{frame}.png"),),
            categories=(Category(id=0, name="k", isthing=False),),
            videos=tuple(videos),
        )
    )


def test_a_view_that_holds_the_split_is_accepted(tmp_path: Path) -> None:
    view = make_view(tmp_path / "c", {"a": Made(2), "b": Made(2)})
    labels = labels_of(tmp_path, [video("a"), video("b"), video("z", "val")])
    found = check_coverage(view, labels, "train")
    assert (found.num_videos, found.missing, found.quarantined) == (2, (), ())


def test_missing_videos_are_named(tmp_path: Path) -> None:
    view = make_view(tmp_path / "c", {"a": Made(2)})
    labels = labels_of(tmp_path, [video(name) for name in ("a", *"nopqrst")])
    with pytest.raises(ConfigError) as caught:
        check_coverage(view, labels, "train")
    assert "lacks 7 of what manifest 'mine' needs of split 'train' (8 videos)" in str(caught.value)
    assert "'n', 'o', 'p', 'q', 'r' and 2 more" in caught.value.message
    found = check_coverage(view, labels, "train", strict=False)
    assert (found.num_videos, found.missing) == (1, tuple("nopqrst"))


def test_missing_crops_are_named(tmp_path: Path) -> None:
    both = (Placed(), Placed(flip=True))
    videos = {"a": Made(2, both, crops=True), "b": Made(2, both[:1], crops=True)}
    view = make_view(tmp_path / "c", videos)
    labels = labels_of(tmp_path, [video("a"), video("b")])
    with pytest.raises(ConfigError, match=r"lacks 1 of .*: 'b crop 1'\."):
        check_coverage(view, labels, "train")


def test_a_bare_folder_needs_nothing_by_itself(tmp_path: Path) -> None:
    view = make_view(tmp_path / "c", {"a": Made(2)})
    path = tmp_path / "l" / "a" / "00000.png"
    path.parent.mkdir(parents=True)
    Image.fromarray(np.zeros((48, 80), np.uint8)).save(path)
    assert check_coverage(view, LabelReader.open(tmp_path / "l"), "train").missing == ()


def test_the_command_that_is_named_adds_what_is_missing(tmp_path: Path) -> None:
    folder = tmp_path / "some videos"
    for name in ("train/a", "train/b", "val/c"):
        make_video(folder / f"{name}.mp4", 3)
    extract(folder / "train/a.mp4", tmp_path / "c", short_side="40")
    view = open_cache(tmp_path / "c").view()
    listed = [
        video("a", path=str(folder / "train/a.mp4")),
        video("train/b", path=str(folder / "train/b.mp4")),
    ]
    labels = labels_of(tmp_path, listed)
    with pytest.raises(ConfigError) as caught:
        check_coverage(view, labels, "train")
    assert caught.value.run is not None
    command = shlex.split(caught.value.run)
    assert command[:2] == ["fcache", "extract"]
    at = command.index("--cache")
    assert command[at + 1] == str(tmp_path / "c")
    plain, settings = split_overrides([*command[2:at], *command[at + 2 :]])
    assert plain == [str(folder)]
    extract(folder, tmp_path / "c", **settings)
    assert check_coverage(open_cache(tmp_path / "c").view(), labels, "train").num_videos == 2


def test_a_manifest_is_named_as_it_was_given(tmp_path: Path) -> None:
    make_video(tmp_path / "v" / "a.mp4", 3)
    extract(tmp_path / "v", tmp_path / "c", short_side="40")
    view = open_cache(tmp_path / "c").view()
    labels = labels_of(tmp_path, [video("a"), video("b")])
    with pytest.raises(ConfigError) as caught:
        check_coverage(view, labels, manifest="mine.toml")
    assert caught.value.run is not None
    assert caught.value.run.startswith("fcache extract mine.toml --cache ")


def test_videos_in_quarantine_are_told_and_no_error(tmp_path: Path) -> None:
    make_video(tmp_path / "v" / "train" / "a.mp4", 3)
    (tmp_path / "v" / "train" / "bad.mp4").write_bytes(b"\0" * 100)
    extract(tmp_path / "v", tmp_path / "c", short_side="40")
    view = open_cache(tmp_path / "c").view()
    labels = label_everything(tmp_path / "l", {"train/a": Made(3)})
    found = check_coverage(view, labels, "train")  # the view's own manifest lists the videos
    assert found.num_videos == 1
    ((name, reason),) = found.quarantined
    assert name == "train/bad"
    assert reason


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"size": "48x64", "short_side": None, "dtype": "int8"},
        {"short_side": "480..1080", "crop": "604x608", "crops": 4, "crop_seed": 3},
        {"patch": 14, "fps": 5, "start": 1.5, "pos": "dinov2", "compute_dtype": "bfloat16"},
        {"stride": 3, "max_frames": 7, "on_error": "keep_prefix", "reuse": "name", "flip": "true"},
    ],
)
def test_overrides_make_the_recorded_settings_of_the_usual_recipe(settings) -> None:
    typed = [f"{key}={'none' if value is None else value}" for key, value in settings.items()]
    _, given = split_overrides([*words(), *typed])
    config = resolve(ExtractConfig, load_recipe("extract"), given)
    again = resolve(
        ExtractConfig, load_recipe("extract"), overrides(config.model_dump(mode="json"))
    )
    assert again == config
