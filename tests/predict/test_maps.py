"""What predictions hold: maps that the evaluators read and score, as training did."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fcache.cache import open_cache
from fcache.config import PredictConfig
from fcache.data.label_images import read_mask, read_segment_ids
from fcache.data.labels import LabelReader
from fcache.data.loader import ClipLoader
from fcache.data.sampling import ClipRequest, ClipsInOrder
from fcache.data.scored_find import find_coco_predictions, find_submission, find_truth
from fcache.data.scored_panoptic import coco_images, vipseg_videos
from fcache.data.scored_semantic import semantic_labels, semantic_videos
from fcache.eval.job import score_videos
from fcache.eval.vps import ImagePanopticScores, VideoPanopticScores
from fcache.eval.vss import VideoSemanticQuality
from fcache.manifest import load_manifest
from fcache.models.linking import QueryLinker, in_track_order
from fcache.models.panoptic import Canvas, class_probabilities, panoptic_map
from fcache.predict.heads import open_heads
from fcache.predict.pictures import SegmentColors
from fcache.train.checkpoint import Checkpoints
from tests.eval.folders import save_labels
from tests.extract.making import PYRAMID, extract
from tests.predict.conftest import VIEW
from tests.predict.making import predict
from tests.train.making import train


def pq_in_training(run: Path) -> float:
    last = Checkpoints(run / "checkpoints", "pq").last
    assert last is not None
    assert last.metrics is not None
    return last.metrics["pq"]


def scored_vps(scenes: Path, prediction: Path, scratch: Path, definition: str = "official"):
    manifest = load_manifest(str(scenes / "manifest.toml"))
    found = vipseg_videos(
        find_truth(scenes, None, manifest, "val"), find_submission(prediction, scratch)
    )
    make = partial(VideoPanopticScores, manifest.categories, (1, 2), definition)
    return score_videos(found.videos, make).result()


def image_pq(scenes: Path, prediction: Path, scratch: Path) -> float:
    """PQ of every frame by itself, by its definition, as training validates."""
    rows = [
        {**frame, "image_id": f"{video['video_id']}/{frame['image_id']}"}
        | {"file_name": f"{video['video_id']}/{frame['file_name']}"}
        for video in json.loads((scenes / "panoptic_val.json").read_text())["annotations"]
        for frame in video["annotations"]
    ]
    (scratch / "truth.json").write_text(json.dumps({"annotations": rows}))
    manifest = load_manifest(str(scenes / "manifest.toml"))
    truth = find_truth(scenes / "panoptic" / "val", scratch / "truth.json", manifest, "val")
    found = coco_images(truth, find_coco_predictions(prediction, scratch))
    assert len(found.videos) == 10
    make = partial(ImagePanopticScores, manifest.categories, "clean")
    return score_videos(found.videos, make).result().quality.all.pq


def test_single_frames_score_what_the_validation_of_the_training_did(
    predict_scenes: Path, predict_cache: Path, head: Path, tmp_path: Path
) -> None:
    predict(head, predict_cache, tmp_path / "out", format="coco", checkpoint="last")
    score = image_pq(predict_scenes, tmp_path / "out", tmp_path)
    assert score > 0.02
    assert score == pytest.approx(pq_in_training(head), abs=1e-9)


def test_a_run_whose_backbone_trained_predicts_from_pixels_as_it_was_validated(
    predict_scenes: Path, tmp_path: Path
) -> None:
    cache, run = tmp_path / "cache", tmp_path / "run"
    extract(predict_scenes / "manifest.toml", cache, **{**PYRAMID, **VIEW})
    live = {"source": "live", "adapter": "none", "backbone": {"trainable": True}}
    train(cache, run, steps=30, lr=3e-3, **live)
    predict(run, cache, tmp_path / "out", format="coco", checkpoint="last")
    score = image_pq(predict_scenes, tmp_path / "out", tmp_path)
    assert score > 0.02
    assert score == pytest.approx(pq_in_training(run), abs=1e-9)


def test_a_video_of_one_frame_scores_likewise_as_a_submission(
    predict_scenes: Path, predict_cache: Path, head: Path, tmp_path: Path
) -> None:
    """Nothing is linked, and at the frame's own size both ways of resizing are one."""
    settings = {"checkpoint": "last", "max_frames": 1}
    predict(head, predict_cache, tmp_path / "vps", **settings)
    predict(head, predict_cache, tmp_path / "coco", format="coco", **settings)
    for video in (tmp_path / "vps" / "pan_pred").iterdir():
        other = tmp_path / "coco" / "panoptic" / video.name
        one, two = (read_segment_ids(folder / "00000.png") for folder in (video, other))
        assert np.array_equal(one, two)


def test_a_submission_and_its_zip_are_scored_and_every_id_is_listed_and_shown(
    predict_scenes: Path, predict_cache: Path, head: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    (result,) = predict(head, predict_cache, out, zip=True)
    assert (result.num_videos, result.num_frames) == (2, 10)
    scores = [
        scored_vps(predict_scenes, prediction, tmp_path)
        for prediction in (out, out / "submission.zip")
    ]
    assert scores[0].num_frames == 10
    assert scores[0].vpq.windows[1].all.pq > 0.02
    assert scores[0].vpq.windows[2].all.pq == scores[1].vpq.windows[2].all.pq
    categories = {c.id: c for c in load_manifest(str(predict_scenes / "manifest.toml")).categories}
    found = json.loads((out / "pred.json").read_text())
    assert [row["id"] for row in found["categories"]] == list(categories)
    for video in found["annotations"]:
        tracks: dict[int, int] = {}
        for frame in video["annotations"]:
            ids = read_segment_ids(out / "pan_pred" / video["video_id"] / frame["file_name"])
            listed = {row["id"]: row for row in frame["segments_info"]}
            assert set(np.unique(ids)) - {0} == set(listed)
            for number, row in listed.items():
                ys, xs = np.nonzero(ids == number)
                box = [xs.min(), ys.min(), xs.max() - xs.min() + 1, ys.max() - ys.min() + 1]
                assert (row["area"], row["bbox"]) == (len(xs), box)
                assert tracks.setdefault(number, row["category_id"]) == row["category_id"]
                category = categories[row["category_id"]]
                color = np.array([number & 255, number >> 8 & 255, number >> 16])
                limit = 30 if category.isthing else 0
                assert abs(color - np.array(category.color)).max() <= limit


def test_a_semantic_map_scores_what_the_validation_of_the_training_did(
    predict_scenes: Path, predict_cache: Path, other_head: Path, tmp_path: Path
) -> None:
    """The run validated on the first frame of the first video."""
    settings = {"videos": ("dusk_004",), "max_frames": 1, "checkpoint": "last"}
    predict(other_head, predict_cache, tmp_path / "out", **settings)
    scenes = load_manifest(str(predict_scenes / "manifest.toml"))
    classes = LabelReader.from_manifest(scenes).semantic("dusk_004", "00000", "val")
    save_labels(
        tmp_path / "truth/data/dusk_004/mask/00000.png", np.where(classes == 255, 255, classes + 1)
    )
    vspw = load_manifest("vspw")
    made = vspw.model_copy(
        update={"categories": scenes.categories, "videos": scenes.videos[-1:], "layout": None}
    )
    found = semantic_videos(made, tmp_path / "truth", tmp_path / "out", "val")
    labels = semantic_labels(made)
    quality = VideoSemanticQuality(made.categories, offset=labels.offset, void=labels.void)
    for frame in map(found[0].frame, range(found[0].num_frames)):
        quality.add(frame)
    quality.end_video()
    last = Checkpoints(other_head / "checkpoints", "miou").last
    assert last is not None
    assert last.metrics is not None
    assert last.metrics["miou"] > 0.02
    assert quality.result().miou == pytest.approx(last.metrics["miou"], abs=1e-9)


def test_semantic_maps_of_segments_are_those_segments_and_elsewhere_those_of_queries(
    predict_cache: Path, head: Path, tmp_path: Path
) -> None:
    for name, settings in {
        "segments": {},
        "queries": {"format": "vspw"},
        "merged": {"format": "vspw", "semantic": "segments"},
    }.items():
        predict(head, predict_cache, tmp_path / name, **settings)
    for video in json.loads((tmp_path / "segments" / "pred.json").read_text())["annotations"]:
        for frame in video["annotations"]:
            name = f"{video['video_id']}/{frame['file_name']}"
            ids = read_segment_ids(tmp_path / "segments" / "pan_pred" / name)
            wanted = read_mask(tmp_path / "queries" / name).copy()
            for row in frame["segments_info"]:
                wanted[ids == row["id"]] = row["category_id"]
            assert np.array_equal(read_mask(tmp_path / "merged" / name), wanted)
            assert (ids == 0).any()


def test_a_videos_maps_are_those_of_all_its_frames_at_once(
    predict_cache: Path, head: Path, tmp_path: Path
) -> None:
    """The windowed way against the functions that reproduce the official vectors."""
    predict(head, predict_cache, tmp_path / "out", window=5, held_bytes=0)
    view = open_cache(predict_cache).view()
    (loaded,) = open_heads([head], view, PredictConfig(), torch.device("cpu"))
    for video_id, width in (("dusk_004", 72), ("morning_003", 96)):
        request = ClipRequest(view.frames(video_id), tuple(range(5)))
        with ClipLoader(view, ClipsInOrder([request]), None, end_step=1) as loader:
            batch = next(iter(loader)).micro_batches[0].to("cpu")
            with torch.no_grad():
                output = loaded.module(batch.stages, batch.pixels)
        order = QueryLinker().link(output.per_clip(5).embeddings[0])
        classes = class_probabilities(in_track_order(output.final.class_logits, order).mean(0))
        masks = in_track_order(output.final.mask_logits, order).transpose(0, 1)
        canvas = Canvas((64, 96), (64, width), (64, width), resized="probabilities")
        is_thing = [category.isthing for category in loaded.categories]
        whole = panoptic_map(classes, masks, canvas, is_thing)
        assert whole.segments
        ids = SegmentColors(loaded.categories).ids(whole.segments)
        for position, wanted in enumerate(ids[whole.ids.numpy()]):
            path = tmp_path / "out" / "pan_pred" / video_id / f"{position:05d}.png"
            assert np.array_equal(read_segment_ids(path), wanted)


def test_maps_have_the_size_of_the_frame_whatever_the_view(
    predict_scenes: Path, head: Path, tmp_path: Path
) -> None:
    extract(predict_scenes / "manifest.toml", tmp_path / "cache", dtype="float16", short_side=48)
    assert open_cache(tmp_path / "cache").view().frames("dusk_004").valid == (48, 54)
    sizes = set()
    for name in ("vipseg", "vspw", "coco"):
        predict(head, tmp_path / "cache", tmp_path / name, format=name, max_frames=1)
        sizes |= {Image.open(path).size for path in (tmp_path / name).rglob("*.png")}
    assert sizes == {(96, 64), (72, 64)}
