"""Predictions straight from video files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from fcache.config import LiveExtract, PredictConfig, Selection
from fcache.data.sampling import ClipRequest
from fcache.errors import ConfigError
from fcache.predict.footage import CanvasesInOrder, live_settings_of, open_footage
from fcache.predict.job import run_prediction
from fcache.predict.plan import plan_prediction
from tests.cli.running import run, run_json
from tests.extract.making import expected
from tests.predict.making import files, predict

SEEN = {
    "weights": "random:0",
    "short_side": "64",
    "long_side_max": "none",
    "compute_dtype": "float32",
}
WORDS = [f"extract.{key}={value}" for key, value in SEEN.items()]


def test_videos_give_the_maps_that_their_cache_gives(
    predict_scenes: Path, predict_cache: Path, head: Path, other_head: Path, tmp_path: Path
) -> None:
    videos = predict_scenes / "videos" / "val"
    config = PredictConfig(device="cpu", window=2, held_bytes=0)
    inputs = open_footage([str(videos)], live_settings_of([head], SEEN), config)
    plan = plan_prediction([head, other_head], inputs, tmp_path / "live", config)
    run_prediction(plan)
    predict([head, other_head], predict_cache, tmp_path / "cached", window=2, held_bytes=0)
    assert files(tmp_path / "live") == files(tmp_path / "cached")


def test_canvases_are_those_of_the_extraction_in_any_order(predict_scenes: Path) -> None:
    path = next((predict_scenes / "videos" / "val").glob("*.mp4"))
    wanted, _ = expected(path, **SEEN)
    extract = LiveExtract.model_validate({"model": "test_vit", "blocks": (1, 2, 4, 5), **SEEN}
                                         | {"short_side": 64, "long_side_max": None})  # fmt: skip
    (video,) = open_footage([str(path)], extract, PredictConfig(device="cpu")).videos
    canvases = CanvasesInOrder(Selection())
    for frames in ((0, 1), (2,), (3, 4), (0, 1), (3,)):
        out = np.empty((len(frames), *wanted.shape[1:]), np.uint8)
        canvases.read(ClipRequest(video, frames), None, out)
        assert np.array_equal(out, wanted[list(frames)])


def test_what_is_seen_follows_the_run_and_the_usual_view(head: Path, tmp_path: Path) -> None:
    extract = live_settings_of([head], {"fps": "2"})
    assert (extract.model, extract.blocks, extract.fps) == ("test_vit", (1, 2, 4, 5), 2.0)
    assert (extract.short_side, extract.long_side_max) == (720, 1333)
    with pytest.raises(ConfigError, match=r"extract\.model="):
        live_settings_of([tmp_path / "imported.safetensors"], {})
    cropped = extract.model_copy(update={"crop": (64, 64)})
    with pytest.raises(ConfigError, match=r"extract\.crop="):
        open_footage([str(tmp_path)], cropped, PredictConfig())


def test_the_command_predicts_videos_and_tells_of_a_broken_one(
    predict_scenes: Path, head: Path, tmp_path: Path
) -> None:
    videos = shutil.copytree(predict_scenes / "videos" / "val", tmp_path / "videos")
    whole = min(videos.glob("*.mp4")).read_bytes()
    (videos / "torn.mp4").write_bytes(whole[: len(whole) // 2])
    found = run_json("predict", head, videos, *WORDS, "--out", tmp_path / "out", code=3)
    assert found["heads"][0]["videos"] == 2
    assert [one["video"] for one in found["quarantined"]] == ["torn"]
    listed = json.loads((tmp_path / "out" / "pred.json").read_text())["annotations"]
    assert [video["video_id"] for video in listed] == ["dusk_004", "morning_003"]
    for words, told in (
        ([head], "expected --cache CACHE, or videos"),
        ([videos, head], "is no run; expected a run's folder before videos"),
        ([head, videos, "extract.dtype=int8"], "extract.dtype=int8"),
        ([head, videos, "--split", "val"], "no video is of split 'val'"),
    ):
        code, _, err = run("predict", *words, *WORDS, "--out", tmp_path / "no")
        assert code == 2
        assert told in err
    assert not (tmp_path / "no").exists()
