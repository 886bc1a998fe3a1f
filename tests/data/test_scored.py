"""Official layouts read frame by frame with their predictions, and what is wrong with them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fcache.data.scored_panoptic import PanopticFiles, PanopticVideo, coco_images, vipseg_videos
from fcache.data.scored_semantic import SemanticVideo, gaps, semantic_videos
from fcache.errors import LabelError
from fcache.eval.job import score_videos
from fcache.eval.vps import ImagePanopticScores, VideoPanopticScores
from fcache.eval.vss import VideoSemanticQuality
from fcache.manifest import load_manifest
from tests.eval import vectors
from tests.eval.folders import (
    listed,
    save_ids,
    save_labels,
    write_predictions,
    write_vipseg,
    write_vspw,
)
from tests.eval.made import CATEGORIES
from tests.shared import needs_shared

MAPS = np.array([[1, 1, 70000], [0, 1, 70000]])
ROWS = [
    {"id": 1, "category_id": 0, "area": 3, "iscrowd": 0},
    {"id": 70000, "category_id": 2, "area": 2, "iscrowd": 0},
]


@pytest.fixture
def vipseg(tmp_path: Path) -> Path:
    """Two videos of two frames, predicted right."""
    videos = {video: dict.fromkeys(("00003", "00006"), ROWS) for video in ("1_a", "2_b")}
    write_vipseg(tmp_path / "truth.json", videos)
    write_predictions(tmp_path / "prediction", videos)
    for folder in ("truth", "prediction/pan_pred"):
        for video, frames in videos.items():
            for frame in frames:
                save_ids(tmp_path / folder / video / f"{frame}.png", MAPS)
    return tmp_path


def opened(root: Path) -> tuple[PanopticVideo, ...]:
    truth = PanopticFiles(root / "truth.json", root / "truth")
    prediction = root / "prediction"
    submission = PanopticFiles(prediction / "pred.json", prediction / "pan_pred")
    return vipseg_videos(truth, submission).videos


def score(root: Path) -> VideoPanopticScores:
    return score_videos(opened(root), partial(VideoPanopticScores, CATEGORIES, (1, 2)))


def test_ground_truth_as_a_submission_scores_one(vipseg):
    videos = opened(vipseg)
    assert [(video.id, video.names) for video in videos] == [
        ("1_a", ("00003", "00006")),
        ("2_b", ("00003", "00006")),
    ]
    frame = videos[0].frame(0)
    assert np.array_equal(frame.truth_ids, MAPS)
    assert frame.prediction_segments.areas.tolist() == [3, 2]
    result = score(vipseg).result()
    assert (result.vpq.vpq, result.stq.sq, result.num_videos, result.num_frames) == (1, 1, 2, 4)


def edit(path: Path, change: Callable[[Any], None]) -> None:
    table = json.loads(path.read_text())
    change(table)
    path.write_text(json.dumps(table))


def edit_predictions(change: Callable[[list[Any]], None]) -> Callable[[Path], None]:
    return lambda root: edit(root / "prediction/pred.json", lambda t: change(t["annotations"]))


def image(name: str, pixels: np.ndarray, mode: str | None = None) -> Callable[[Path], None]:
    return lambda root: Image.fromarray(pixels, mode).save(root / name)


def palette(root: Path) -> None:
    flat = Image.fromarray(np.zeros((2, 3), np.uint8))
    flat.convert("P").save(root / "prediction/pan_pred/2_b/00006.png")


def cut(root: Path) -> None:
    path = root / "prediction/pred.json"
    path.write_bytes(path.read_bytes()[:200])


def sixteen_bit_rgb(root: Path) -> None:
    """Pillow writes no such PNG, so its header and data are made here."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 3, 2, 16, 2, 0, 0, 0))
    rows = zlib.compress(2 * (b"\0" + bytes(3 * 6)))
    png = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    (root / "prediction/pan_pred/2_b/00006.png").write_bytes(png)


FRAME = r"video '2_b' frame '00006'"
PNG = "prediction/pan_pred/2_b/00006.png"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (edit_predictions(lambda rows: rows.pop()), "video '2_b' has no annotations in .*pred"),
        (edit_predictions(lambda rows: rows.append(rows[0])), "lists video '1_a' twice"),
        (
            edit_predictions(lambda rows: rows[1]["annotations"].pop(0)),
            "video '2_b' has 1 entries .* and 2 frames .* first without is frame '00003'",
        ),
        (
            edit_predictions(lambda rows: rows[1]["annotations"].reverse()),
            "video '2_b': entry 0 .* is for frame '00006' and .* has frame '00003' there",
        ),
        (
            edit_predictions(lambda rows: rows[1]["annotations"][1].pop("segments_info")),
            FRAME + r": .*pred\.json' lists no usable segments",
        ),
        (
            edit_predictions(lambda rows: rows[1]["annotations"][1]["segments_info"].pop()),
            FRAME + ": the prediction's map holds segment id 70000, which its JSON does not list",
        ),
        (
            edit_predictions(
                lambda rows: rows[1]["annotations"][1]["segments_info"].append(
                    {"id": 5, "category_id": 1}
                )
            ),
            FRAME + ": the prediction's JSON lists segment id 5, of which its map has no pixel",
        ),
        (
            edit_predictions(
                lambda rows: rows[1]["annotations"][1]["segments_info"][0].update(category_id=124)
            ),
            FRAME + ", prediction: category id 124 is none of the 4",
        ),
        (cut, r"pred\.json', the prediction, is not whole JSON .* cut off"),
        (lambda root: (root / PNG).unlink(), FRAME + ": label .* cannot be read: No such file"),
        (lambda root: (root / PNG).write_bytes(b"no"), FRAME + ": .* is not an image"),
        (
            lambda root: (root / PNG).write_bytes((root / PNG).read_bytes()[:-25]),
            FRAME + ": .* is damaged",
        ),
        (palette, FRAME + ": .* has mode P; expected RGB"),
        (image(PNG, np.zeros((2, 3), np.uint16)), FRAME + ": .* has mode I;16; expected RGB"),
        (sixteen_bit_rgb, FRAME + ": .* has 16 bits a channel; expected 8-bit RGB"),
        (
            image(PNG, np.zeros((2, 4, 3), np.uint8)),
            FRAME + ": the prediction is 2x4 and the ground truth 2x3",
        ),
        (lambda root: shutil.rmtree(root / "truth/2_b"), "video '2_b' frame '00003': .*No such"),
        (lambda root: (root / "truth.json").write_text("{}"), "lists no 'videos'"),
    ],
)
def test_what_is_wrong_is_named(vipseg, damage, words):
    damage(vipseg)
    with pytest.raises(LabelError, match=words):
        score(vipseg)


def test_an_empty_prediction_scores_zero(vipseg):
    edit_predictions(
        lambda rows: [
            frame.update(segments_info=[]) for row in rows for frame in row["annotations"]
        ]
    )(vipseg)
    for path in (vipseg / "prediction/pan_pred").rglob("*.png"):
        save_ids(path, np.zeros((2, 3), np.int64))
    result = score(vipseg).result()
    assert (result.vpq.vpq, result.stq.stq) == (0, 0)


@needs_shared
def test_recorded_cases_score_the_same_from_files(tmp_path):
    case, arrays = vectors.load("vps_short")
    from tests.eval.folders import write_case

    write_case(tmp_path, case, arrays)
    videos = opened(tmp_path)
    make = partial(VideoPanopticScores, vectors.categories())
    result = score_videos(videos, make).result()
    assert 100 * result.vpq.vpq == pytest.approx(case["expected"]["vpq"]["mean_1246_All"])
    assert result.stq.stq == pytest.approx(case["expected"]["stq"]["STQ"], abs=1e-12)


def test_coco_images_are_paired_by_id(tmp_path):
    for side in ("truth", "prediction"):
        for name in ("a", "b"):
            save_ids(tmp_path / side / f"{name}.png", MAPS)
        rows = listed({"a": ROWS, "b": ROWS})
        rows.reverse() if side == "prediction" else None
        (tmp_path / f"{side}.json").write_text(json.dumps({"annotations": rows}))
    sides = [
        PanopticFiles(tmp_path / f"{side}.json", tmp_path / side)
        for side in ("truth", "prediction")
    ]
    images = coco_images(*sides).videos
    assert [image.id for image in images] == ["a", "b"]
    make = partial(ImagePanopticScores, CATEGORIES)
    result = score_videos(images, make).result()
    assert (result.quality.all.pq, result.num_images) == (1, 2)
    edit(sides[1].json_path, lambda table: table["annotations"].pop())
    with pytest.raises(LabelError, match=r"image 'a' \(image_id a\) has no prediction"):
        coco_images(*sides)
    edit(sides[1].json_path, lambda table: table["annotations"].append({"image_id": "a"}))
    with pytest.raises(LabelError, match="entry without image_id, file_name"):
        coco_images(*sides)
    save_ids(tmp_path / "truth/b.png", MAPS + 1)
    with pytest.raises(LabelError, match="image 'b': the prediction's"):
        score_videos(images[1:], lambda: Broken(CATEGORIES))


class Broken(ImagePanopticScores):
    """Scores the two sides exchanged, so that the wrong map is the predicted one."""

    def add(self, pair):
        exchanged = {
            "truth_ids": pair.prediction_ids,
            "prediction_ids": pair.truth_ids,
            "truth_segments": pair.prediction_segments,
            "prediction_segments": pair.truth_segments,
            "video_id": pair.video_id,
            "frame_name": pair.frame_name,
        }
        super().add(type(pair)(**exchanged))


@pytest.fixture
def vspw(tmp_path: Path) -> Path:
    truth = np.array([[[0, 1, 2, 255]]] * 3, np.uint8)
    prediction = np.array([[[0, 0, 1, 1]]] * 3, np.uint8)
    write_vspw(tmp_path, {"v1": (truth, prediction), "v2": (truth, prediction)})
    return tmp_path


def opened_vspw(root: Path) -> list[SemanticVideo]:
    return semantic_videos(load_manifest("vspw"), root / "truth", root / "prediction", "val")


def score_vspw(root: Path) -> VideoSemanticQuality:
    videos = opened_vspw(root)
    make = partial(VideoSemanticQuality, CATEGORIES, offset=1, clip_frames=(2,))
    return score_videos(videos, make)


def test_a_split_without_a_last_newline_is_read_whole(vspw):
    result = score_vspw(vspw).result()
    assert (result.miou, result.num_frames, result.consistency.num_clips) == (1.0, 6, {2: 2})


def test_palette_masks_are_read_as_indices(vspw):
    path = vspw / "prediction/v2/00002.png"
    mask = Image.open(path).copy()
    mask.putpalette([250, 0, 0, 0, 250, 0])
    mask.save(path)
    assert Image.open(path).mode == "P"
    assert score_vspw(vspw).result().miou == 1.0


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda root: shutil.rmtree(root / "prediction/v2"), "video 'v2' is missing in the pred"),
        (lambda root: shutil.rmtree(root / "truth/data/v2"), "video 'v2' of .* has no mask"),
        (
            lambda root: (root / "prediction/v2/00002.png").unlink(),
            "video 'v2' frame '00002': .* cannot be read: No such file",
        ),
        (
            image("prediction/v2/00002.png", np.zeros((1, 4), np.uint16)),
            "video 'v2' frame '00002': .* has 16-bit values",
        ),
        (
            image("prediction/v2/00002.png", np.zeros((1, 4, 3), np.uint8)),
            "video 'v2' frame '00002': .* has mode RGB; expected one channel",
        ),
        (
            lambda root: save_labels(root / "prediction/v2/00002.png", np.zeros((2, 4), np.uint8)),
            "video 'v2' frame '00002': the prediction is 2x4 and the ground truth 1x4",
        ),
        (lambda root: (root / "truth/val.txt").unlink(), "split .*val.txt' cannot be read"),
        (lambda root: (root / "truth/val.txt").write_text("\n"), "lists no video"),
    ],
)
def test_what_is_wrong_with_masks_is_named(vspw, damage, words):
    damage(vspw)
    with pytest.raises(LabelError, match=words):
        score_vspw(vspw)


def test_gaps_are_steps_of_twice_the_usual():
    assert gaps(["00003", "00006", "00009", "00015", "00018"]) == [
        False, False, False, True, False,
    ]  # fmt: skip
    assert gaps(["a1_x", "a2_x", "a4_x", "a5_x"]) == [False, False, True, False]
    assert gaps(["first", "second"]) == [False, False]
    assert gaps(["7"]) == [False]


def test_a_missing_frame_number_is_a_gap_of_the_video(vspw):
    for folder in ("truth/data/v1/mask", "prediction/v1"):
        (vspw / folder / "00003.png").rename(vspw / folder / "00005.png")
    video = opened_vspw(vspw)[0]
    assert [video.frame(t).after_gap for t in range(video.num_frames)] == [False, False, False]
    shutil.copytree(vspw / "prediction/v1", vspw / "more")
    for name in ("00006", "00007"):
        for folder in ("truth/data/v1/mask", "prediction/v1"):
            shutil.copy(vspw / folder / "00001.png", vspw / folder / f"{name}.png")
    video = opened_vspw(vspw)[0]
    assert [video.frame(t).after_gap for t in range(video.num_frames)] == [
        False,
        False,
        True,
        False,
        False,
    ]
