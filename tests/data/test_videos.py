"""Which videos clips are drawn from, and which of their frames."""

from __future__ import annotations

from pathlib import Path

import pytest

from fcache.data.videos import clip_videos
from fcache.errors import ConfigError
from tests.data.clips import Made, PanopticLabels, Placed, blocks, label_everything, make_view

VIDEOS = {"b": Made(3), "a": Made(5), "c": Made(2, split="val")}


def test_videos_of_a_split_come_sorted_with_their_labelled_frames(tmp_path: Path) -> None:
    view = make_view(tmp_path / "c", VIDEOS)
    labels = PanopticLabels(tmp_path / "l")
    for frame in (1, 2, 4):
        labels.add("a", frame, blocks(48, 80, [0, 301], frame), [(301, 10)])
    labels.add("c", 0, blocks(48, 80, [0, 301], 9), [(301, 10)])
    reader = labels.reader()
    found = clip_videos(view, reader, "panoptic", split="train")
    assert [(video.video_id, tuple(video.labelled[0])) for video in found] == [("a", (1, 2, 4))]
    found = clip_videos(view, reader, "panoptic")
    assert [(video.video_id, tuple(video.labelled[0])) for video in found] == [
        ("a", (1, 2, 4)),
        ("c", (0,)),
    ]


def test_crops_of_a_video_are_one_video(tmp_path: Path) -> None:
    videos = {"a": Made(2, (Placed(), Placed(flip=True)), crops=True)}
    view = make_view(tmp_path / "c", videos)
    (video,) = clip_videos(view, label_everything(tmp_path / "l", videos), "panoptic")
    assert [frames.item.draw for frames in video.draws] == [0, 1]
    assert video.labelled == ((0, 1), (0, 1))


def test_an_unknown_split_names_those_there_are(tmp_path: Path) -> None:
    view = make_view(tmp_path / "c", VIDEOS)
    labels = label_everything(tmp_path / "l", VIDEOS)
    with pytest.raises(ConfigError, match=r"of split 'test'; expected one of: train, val\."):
        clip_videos(view, labels, "panoptic", split="test")


def test_labels_of_another_kind_are_told_with_a_video_and_a_frame(tmp_path: Path) -> None:
    view = make_view(tmp_path / "c", VIDEOS)
    other = label_everything(tmp_path / "l", {"elsewhere": Made(1)})
    with pytest.raises(ConfigError, match=r"none of 3 cached videos has panoptic labels.*'00000'"):
        clip_videos(view, other, "panoptic")
