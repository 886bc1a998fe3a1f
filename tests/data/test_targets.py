"""The segments of a clip as masks on its canvas."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fcache.data.labels import LabelReader
from fcache.data.sampling import ClipRequest
from fcache.data.targets import ClipLabels, distinct
from fcache.errors import LabelError
from fcache.store.cache import VideoFrames
from tests.data.clips import Made, PanopticLabels, Placed, blocks, by_pillow, make_view
from tests.shared import SHARED, needs_shared

MOVED = Placed(resize=(77, 128), crop=(13, 29, 50, 64), flip=True)
SEGMENTS = [(301, 10), (70_000, 11), (5, 13)]


def frames_of(path: Path, placed: Placed = MOVED, kind: str = "plain") -> VideoFrames:
    return make_view(path, {"a": Made(4, (placed,))}, kind).frames("a")


def test_a_segment_is_a_track_that_every_frame_lists(tmp_path: Path) -> None:
    labels, maps = PanopticLabels(tmp_path / "l"), []
    for frame, values in enumerate([[0, 301, 5], [0, 5], [70_000, 301], [0]]):
        maps.append(blocks(48, 80, values, frame))
        labels.add("a", frame, maps[-1], SEGMENTS)
    request = ClipRequest(frames_of(tmp_path / "c"), (2, 0, 1, 0))
    targets = ClipLabels(labels.reader(), "panoptic").read(request)
    assert targets.ids.tolist() == [5, 301, 70_000]
    assert targets.classes.tolist() == [3, 0, 1]
    assert (targets.classes.dtype, targets.masks.dtype) == (torch.int64, torch.bool)
    for n, number in enumerate([5, 301, 70_000]):
        for t, frame in enumerate((2, 0, 1, 0)):
            wanted = by_pillow(maps[frame], MOVED, 0) == number
            assert np.array_equal(targets.masks[n, t].numpy(), wanted)
    assert not targets.masks[2, 1:].any()
    assert targets.masks[2, 0].any()
    assert not targets.masks[:, :, 50:].any()  # the padding


def test_crowds_and_void_are_no_segments(tmp_path: Path) -> None:
    labels = PanopticLabels(tmp_path / "l")
    segments = [(301, 10), (5, 11, True), (7, 13)]
    labels.add("a", 0, blocks(48, 80, [0, 301, 5, 7], 1), segments)
    request = ClipRequest(frames_of(tmp_path / "c"), (0,))
    targets = ClipLabels(labels.reader(), "panoptic").read(request)
    assert targets.ids.tolist() == [7, 301]


def test_what_the_crop_leaves_out_is_no_target(tmp_path: Path) -> None:
    labels = PanopticLabels(tmp_path / "l")
    ids = np.full((48, 80), 301, np.int32)
    ids[:4] = 5  # above the crop
    labels.add("a", 0, ids, SEGMENTS)
    request = ClipRequest(frames_of(tmp_path / "c"), (0,))
    assert ClipLabels(labels.reader(), "panoptic").read(request).ids.tolist() == [301]


def test_a_frame_with_no_segments_gives_none(tmp_path: Path) -> None:
    labels = PanopticLabels(tmp_path / "l")
    for frame in range(2):
        labels.add("a", frame, np.zeros((48, 80), np.int32), [])
    request = ClipRequest(frames_of(tmp_path / "c"), (0, 1))
    targets = ClipLabels(labels.reader(), "panoptic").read(request)
    assert targets.masks.shape == (0, 2, 64, 64)
    assert targets.classes.shape == targets.ids.shape == (0,)


def test_an_id_whose_category_changes_is_a_track_for_each(tmp_path: Path) -> None:
    labels = PanopticLabels(tmp_path / "l")
    for frame, category in enumerate((10, 11)):
        labels.add("a", frame, np.full((48, 80), 301, np.int32), [(301, category)])
    request = ClipRequest(frames_of(tmp_path / "c"), (0, 1))
    targets = ClipLabels(labels.reader(), "panoptic").read(request)
    assert (targets.ids.tolist(), targets.classes.tolist()) == ([301, 301], [0, 1])
    assert targets.masks.flatten(2).any(-1).tolist() == [[True, False], [False, True]]


@pytest.mark.parametrize(("kind", "token"), [("plain", 16), ("pyramid", 32)])
def test_a_window_of_the_targets_is_a_part_of_the_whole(
    tmp_path: Path, kind: str, token: int
) -> None:
    placed = Placed(resize=(96, 160), flip=True)
    labels = PanopticLabels(tmp_path / "l")
    labels.add("a", 0, blocks(48, 80, [0, 301, 70_000, 5], 1), SEGMENTS)
    video, reader = frames_of(tmp_path / "c", placed, kind), ClipLabels(labels.reader(), "panoptic")
    whole = reader.read(ClipRequest(video, (0,)), stride=token)
    window = (2, 0, 4, 8) if token == 16 else (1, 0, 2, 4)
    part = reader.read(ClipRequest(video, (0,), window), stride=token)
    assert part.ids.tolist() == whole.ids.tolist()
    assert torch.equal(part.masks, whole.masks[:, :, 32:96, :128])


def test_masks_of_patch_14_fit_16_pixels_a_token(tmp_path: Path) -> None:
    placed = Placed((48, 80), (56, 84), canvas=(56, 84))
    labels = PanopticLabels(tmp_path / "l")
    labels.add("a", 0, np.full((48, 80), 301, np.int32), SEGMENTS)
    request = ClipRequest(frames_of(tmp_path / "c", placed, "patch14"), (0,))
    targets = ClipLabels(labels.reader(), "panoptic").read(request, stride=14)
    assert targets.masks.shape == (1, 1, 64, 96)
    assert targets.masks.all()


def test_masks_fill_the_memory_that_is_given(tmp_path: Path) -> None:
    labels = PanopticLabels(tmp_path / "l")
    for frame in range(2):
        labels.add("a", frame, blocks(48, 80, [0, 301, 5], frame), SEGMENTS)
    request = ClipRequest(frames_of(tmp_path / "c"), (0, 1))
    reader, memory = ClipLabels(labels.reader(), "panoptic"), []

    def allocate(shape: tuple[int, ...], dtype: str) -> np.ndarray:
        memory.append(np.ones(shape, dtype))
        return memory[-1]

    found, wanted = reader.read(request, allocate=allocate), reader.read(request)
    assert len(memory) == 1
    assert np.shares_memory(found.masks.numpy(), memory[0])
    assert torch.equal(found.masks, wanted.masks)


def test_semantic_labels_give_a_mask_for_each_class_of_the_clip(tmp_path: Path) -> None:
    maps = []
    for frame, values in enumerate([[0, 2, 255], [2, 3], [255], [1]]):
        maps.append(blocks(48, 80, values, frame).astype(np.uint8))
        path = tmp_path / "l" / "a" / f"{frame:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(maps[-1]).save(path)
    reader = ClipLabels(LabelReader.open(tmp_path / "l"), "semantic")
    video = frames_of(tmp_path / "c")
    targets = reader.read(ClipRequest(video, (0, 1, 2)))
    assert targets.classes.tolist() == targets.ids.tolist() == [0, 2, 3]
    for n, value in enumerate([0, 2, 3]):
        for t in range(3):
            wanted = by_pillow(maps[t], MOVED, 255) == value
            assert np.array_equal(targets.masks[n, t].numpy(), wanted)
    assert reader.read(ClipRequest(video, (2,))).masks.shape[0] == 0


def refused(tmp_path: Path, ids: np.ndarray, segments: list[tuple[int, int]]) -> str:
    labels = PanopticLabels(tmp_path / "l")
    labels.add("a", 0, ids, SEGMENTS)
    labels.add("a", 3, ids, segments)
    request = ClipRequest(frames_of(tmp_path / "c", Placed()), (0, 3))
    with pytest.raises(LabelError) as caught:
        ClipLabels(labels.reader(), "panoptic").read(request)
    assert caught.value.message.startswith("video 'a' frame '00003': ")
    return caught.value.message


def test_an_id_that_the_json_lacks_names_video_and_frame(tmp_path: Path) -> None:
    text = refused(tmp_path, blocks(48, 80, [0, 301, 5], 1), [(301, 10)])
    assert "holds segment id 5, which the JSON does not list" in text


def test_an_unlisted_id_counts_even_where_the_canvas_has_none_of_it(tmp_path: Path) -> None:
    labels = PanopticLabels(tmp_path / "l")
    ids = np.full((48, 80), 301, np.int32)
    ids[0, 0] = 9
    labels.add("a", 0, ids, SEGMENTS)
    request = ClipRequest(frames_of(tmp_path / "c"), (0,))
    with pytest.raises(LabelError, match=r"frame '00000': .* segment id 9"):
        ClipLabels(labels.reader(), "panoptic").read(request)


def test_an_unknown_category_names_video_and_frame(tmp_path: Path) -> None:
    text = refused(tmp_path, np.full((48, 80), 301, np.int32), [(301, 77)])
    assert "category id 77" in text


def test_a_label_of_another_shape_names_both_sizes(tmp_path: Path) -> None:
    labels = PanopticLabels(tmp_path / "l")
    labels.add("a", 1, np.zeros((80, 48), np.int32), [])
    request = ClipRequest(frames_of(tmp_path / "c"), (1,))
    with pytest.raises(LabelError, match=r"video 'a' frame '00001': its label is 80x48 .* 48x80"):
        ClipLabels(labels.reader(), "panoptic").read(request)


def test_a_missing_label_names_video_and_frame(tmp_path: Path) -> None:
    labels = PanopticLabels(tmp_path / "l")
    labels.add("a", 0, np.zeros((48, 80), np.int32), [])
    request = ClipRequest(frames_of(tmp_path / "c"), (0, 2))
    with pytest.raises(LabelError, match=r"video 'a' frame '00002': .* no panoptic label"):
        ClipLabels(labels.reader(), "panoptic").read(request)


@needs_shared
def test_targets_of_coco_have_the_areas_that_the_json_states(tmp_path: Path) -> None:
    root = SHARED / "data/annotated/coco_panoptic_sample"
    table = json.loads((root / "panoptic_examples.json").read_text())
    sizes = {row["id"]: (row["height"], row["width"]) for row in table["images"]}
    labels, num_crowds = ClipLabels(LabelReader.open(root), "panoptic"), 0
    for entry in table["annotations"]:
        size, name = sizes[entry["image_id"]], Path(entry["file_name"]).stem
        made = frames_of(tmp_path / name, Placed(size, size, flip=True))
        targets = labels.read(ClipRequest(replace(made, video_id=name, names=(name,)), (0,)))
        areas = dict(zip(targets.ids.tolist(), targets.masks.sum((1, 2, 3)).tolist(), strict=True))
        segments = [row for row in entry["segments_info"] if not row["iscrowd"]]
        assert areas == {row["id"]: row["area"] for row in segments}
        num_crowds += len(entry["segments_info"]) - len(segments)
    assert num_crowds


def test_distinct_finds_every_value() -> None:
    rng = np.random.default_rng(0)
    for values in (rng.integers(0, 9, (7, 5)), np.zeros((3, 4), np.int32), blocks(9, 9, [3, 1], 0)):
        assert distinct(values) == np.unique(values).tolist()
