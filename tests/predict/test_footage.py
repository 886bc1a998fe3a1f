"""Predictions straight from video files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fcache.config import LiveExtract, PredictConfig, Selection
from fcache.data.sampling import ClipRequest
from fcache.errors import ConfigError, SourceError
from fcache.predict.footage import CanvasesInOrder, live_settings_of, open_footage
from fcache.predict.job import HeadResult, run_prediction
from fcache.predict.plan import plan_prediction
from fcache.sources.decode import decode
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


def predict_videos(
    head: Path, words: list[Path], out: Path, seen: dict[str, str] | None = None, **settings: Any
) -> list[HeadResult]:
    config = PredictConfig.model_validate({"device": "cpu", **settings})
    extract = live_settings_of([head], {**SEEN, **(seen or {})})
    inputs = open_footage([str(word) for word in words], extract, config)
    return run_prediction(plan_prediction([head], inputs, out, config))


def as_frames(video: Path, folder: Path) -> Path:
    folder.mkdir(parents=True)
    for frame in decode(video, "video", Selection()):
        assert frame is not None
        Image.fromarray(frame.rgb).save(folder / f"{frame.name}.png")
    return folder


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
        ([head, videos, "selection={stride=2}"], "extract.stride="),
        ([head, videos, "--split", "val"], "there is no video of split 'val'"),
    ):
        code, _, err = run("predict", *words, *WORDS, "--out", tmp_path / "no")
        assert code == 2
        assert told in err
    assert not (tmp_path / "no").exists()


def test_the_usual_split_of_videos_is_that_of_a_cache(predict_scenes: Path, head: Path) -> None:
    words = ["predict", head, predict_scenes / "manifest.toml", *WORDS, "--plan", "--out", "no"]
    for more, num_videos, chosen_by in (
        ([], 2, "split 'val'"),
        (["--split", "all"], 5, "all videos"),
        (["--split", "train"], 3, "split 'train'"),
    ):
        found = run_json(*words, *more)
        assert (found["videos"], found["chosen_by"]) == (num_videos, chosen_by)


def test_maps_of_another_content_are_refused_and_stay(
    predict_scenes: Path, head: Path, tmp_path: Path
) -> None:
    videos = shutil.copytree(predict_scenes / "videos" / "val", tmp_path / "videos")
    first, second = sorted(videos.glob("*.mp4"))
    predict_videos(head, [videos], tmp_path / "out", videos=(first.stem,))
    before = files(tmp_path / "out")
    shutil.copy(second, first)
    with pytest.raises(ConfigError, match=rf"videos\.{first.stem}\.content is \w+ there and \w+ "):
        predict_videos(head, [videos], tmp_path / "out")
    assert files(tmp_path / "out") == before
    predict_videos(head, [videos], tmp_path / "out", videos=(second.stem,))


def test_maps_that_would_replace_each_other_are_refused(
    predict_scenes: Path, head: Path, tmp_path: Path
) -> None:
    videos = sorted((predict_scenes / "videos" / "val").glob("*.mp4"))
    tree, out = tmp_path / "tree", tmp_path / "out"
    (tree / "clip").mkdir(parents=True)
    shutil.copy(videos[0], tree / "clip.mp4")
    shutil.copy(videos[1], tree / "clip" / "part.mp4")
    told = "maps of 'clip/part' would lie in 'pan_pred/clip', which is replaced .* of 'clip'"
    with pytest.raises(ConfigError, match=told):
        predict_videos(head, [tree], out)
    assert not out.exists()
    predict_videos(head, [tree], out, videos=("clip/part",))
    before = files(out)
    with pytest.raises(ConfigError, match=told):
        predict_videos(head, [tree], out, videos=("clip",))
    assert files(out) == before


def test_single_images_of_one_name_are_refused(
    predict_scenes: Path, head: Path, tmp_path: Path
) -> None:
    video = min((predict_scenes / "videos" / "val").glob("*.mp4"))
    image = as_frames(video, tmp_path / "frames") / "00000.png"
    for name in ("a/x", "b/x", "a/y", "a"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, tmp_path / "images" / f"{name}.png")
    words = [tmp_path / "images" / pattern for pattern in ("*.png", "*/*.png")]
    out = tmp_path / "out"
    told = "maps of 'a/x' and 'b/x' would both be 'panoptic/x.png'"
    with pytest.raises(ConfigError, match=told):
        predict_videos(head, words, out, format="coco")
    predict_videos(head, words, out, format="coco", videos=("a", "a/x", "a/y"))
    assert {path.name for path in (out / "panoptic").iterdir()} == {"a.png", "x.png", "y.png"}
    with pytest.raises(ConfigError, match=told):
        predict_videos(head, words, out, format="coco", videos=("b/x",))


def test_a_damaged_image_leaves_its_folder_out_and_no_other(
    predict_scenes: Path, head: Path, tmp_path: Path
) -> None:
    for video in (predict_scenes / "videos" / "val").glob("*.mp4"):
        as_frames(video, tmp_path / "videos" / video.stem)
    torn = tmp_path / "videos" / "dusk_004" / "00003.png"
    torn.write_bytes(torn.read_bytes()[:200])
    words = ["predict", head, tmp_path / "videos", *WORDS, "--out"]
    found = run_json(*words, tmp_path / "out", code=3)
    (lost,) = found["quarantined"]
    assert (lost["video"], found["heads"][0]["videos"]) == ("dusk_004", 1)
    assert "'00003.png' is damaged" in lost["reason"]
    found = run_json(*words, tmp_path / "prefix", "extract.on_error=keep_prefix")
    assert (found["heads"][0]["videos"], found["heads"][0]["frames"]) == (2, 3 + 5)


def test_a_video_that_breaks_while_it_is_predicted_is_named(
    predict_scenes: Path, head: Path, tmp_path: Path
) -> None:
    video = min((predict_scenes / "videos" / "val").glob("*.mp4"))
    folder = as_frames(video, tmp_path / "street")
    config = PredictConfig(device="cpu")
    inputs = open_footage([str(folder)], live_settings_of([head], SEEN), config)
    plan = plan_prediction([head], inputs, tmp_path / "out", config)
    (folder / "00003.png").write_bytes(b"torn")
    with pytest.raises(SourceError, match=r"'street' .* changed .*'00003\.png' is not an image"):
        run_prediction(plan)


def test_videos_without_a_selected_frame_are_left_out(
    predict_scenes: Path, head: Path, tmp_path: Path
) -> None:
    words = ["predict", head, predict_scenes / "videos" / "val", *WORDS, "extract.fps=4"]
    found = run_json(*words, "extract.start=100", "--out", tmp_path / "out", code=3)
    assert ["no frame is selected" in one["reason"] for one in found["quarantined"]] == [True] * 2
