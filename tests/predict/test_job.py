"""Whole predictions: resumed, bounded in memory, from several heads, and what is refused."""

from __future__ import annotations

import gc
import json
import os
import signal
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fcache.data.label_images import read_segment_ids
from fcache.demo.scene import render_set
from fcache.errors import (
    CacheError,
    ConfigError,
    FeatureError,
    InterruptedJobError,
    NoSpaceError,
)
from fcache.train.checkpoint import MODEL, Checkpoints
from tests.disks import small_disk
from tests.extract.making import PYRAMID, extract
from tests.predict.conftest import VIEW
from tests.predict.making import Events, files, predict


def last_model(run: Path) -> Path:
    last = Checkpoints(run / "checkpoints", "pq").last
    assert last is not None
    return last.model


def test_maps_do_not_depend_on_windows_or_on_what_is_held(
    predict_cache: Path, head: Path, tmp_path: Path
) -> None:
    wanted = None
    for number, settings in enumerate(
        (
            {"window": 5},
            {"window": 2, "held_bytes": 0, "ahead": 0},
            {"window": 2, "held_bytes": 3 * 12 * 16 * 24 * 4, "num_readers": 3},
        )
    ):
        events: Events = []
        out = tmp_path / str(number)
        predict(head, predict_cache, out, report=events.append, **settings)
        read = sum(event["frames"] for event in events if event["event"] == "frames")
        assert read == (10, 20, 16)[number]
        found = files(out)
        wanted = wanted or found
        assert found.keys() == wanted.keys()
        for name, content in found.items():
            if name.endswith(".png"):
                ids = [read_segment_ids(folder / name) for folder in (out, tmp_path / "0")]
                # Another batch may move a last bit, and with it a pixel at a border.
                assert (ids[0] != ids[1]).mean() < 0.002, name
            else:
                assert len(content.splitlines()) == len(wanted[name].splitlines())


def test_memory_does_not_grow_with_the_length_of_a_video(head: Path, tmp_path: Path) -> None:
    peaks = []
    for num_frames in (6, 30):
        folder = tmp_path / f"scenes{num_frames}"
        sides = {"height": 64, "width": 96}
        render_set(folder, num_train=1, num_val=1, num_frames=num_frames, fps=4, seed=3, **sides)
        extract(folder / "manifest.toml", folder / "cache", **VIEW)
        held: list[int] = []

        def measure(event: dict[str, Any], held: list[int] = held) -> None:
            if event["event"] == "frames":
                # Those of tracing, which other tests leave, have no memory.
                real = (torch.Tensor, torch.nn.Parameter)
                tensors = [t for t in gc.get_objects() if type(t) in real and not t.is_meta]
                storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in tensors}
                held.append(sum(storage.nbytes() for storage in storages.values()))

        predict(
            head,
            folder / "cache",
            tmp_path / f"out{num_frames}",
            report=measure,
            held_bytes=6 * 12 * 16 * 24 * 4,
            split="val",
        )
        assert len(held) == (2 if num_frames == 6 else 10 + 8)
        peaks.append(max(held))
    assert peaks[1] <= 1.02 * peaks[0]


def test_several_heads_read_the_cache_once_and_write_what_each_alone_does(
    predict_cache: Path, head: Path, other_head: Path, tmp_path: Path
) -> None:
    events: Events = []
    results = predict([head, other_head], predict_cache, tmp_path / "both", report=events.append)
    assert [result.format for result in results] == ["vipseg", "vspw"]
    assert sum(event["frames"] for event in events if event["event"] == "frames") == 10
    for run in (head, other_head):
        predict(run, predict_cache, tmp_path / run.name)
        assert files(tmp_path / "both" / run.name) == files(tmp_path / run.name)
    with pytest.raises(ConfigError, match="2 heads are called 'first'"):
        predict([head, head], predict_cache, tmp_path / "twice")


def test_ctrl_c_keeps_finished_videos_and_the_same_call_goes_on(
    predict_cache: Path, head: Path, tmp_path: Path
) -> None:
    predict(head, predict_cache, tmp_path / "whole")
    out = tmp_path / "out"
    seen: Events = []

    def interrupt(event: dict[str, Any]) -> None:
        seen.append(event)
        if event["event"] == "frames" and any(one["event"] == "video" for one in seen):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(InterruptedJobError, match="same command"):
        predict(head, predict_cache, out, report=interrupt)
    assert len(list((out / "pan_pred").iterdir())) == 1
    assert not (out / "pred.json").exists()
    before = {name: (out / name).stat().st_mtime_ns for name in files(out)}
    # What a kill leaves: a video half written, and one without its record.
    left = out / "pan_pred" / ".dusk_004.0123456789ab.tmp"
    left.mkdir()
    (left / "00000.png").write_bytes(b"half")
    events: Events = []
    predict(head, predict_cache, out, report=events.append)
    assert [one["event"] for one in events].count("video") == 1
    assert files(out) == files(tmp_path / "whole")
    assert all((out / name).stat().st_mtime_ns == when for name, when in before.items())
    min((out / ".predict" / "records").iterdir()).unlink()
    predict(head, predict_cache, out)
    assert files(out) == files(tmp_path / "whole")


def test_a_full_disk_leaves_nothing_half_written(
    predict_cache: Path, head: Path, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", 64 << 10) as disk:
        (disk / "ballast").write_bytes(bytes(36 << 10))
        with pytest.raises(NoSpaceError):
            predict(head, predict_cache, disk / "out", split="all")
        left = {path.name for path in disk.rglob("*.tmp")}
        assert left == set()
        (disk / "ballast").unlink()
        os.system(f"mount -o remount,size=4m {disk}")
        predict(head, predict_cache, disk / "out", split="all")
        predict(head, predict_cache, tmp_path / "wanted", split="all")
        assert files(disk / "out") == files(tmp_path / "wanted")


def test_other_predictions_in_the_folder_are_refused(
    predict_cache: Path, head: Path, other_head: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    predict(head, predict_cache, out, videos=("dusk_004",))
    before = files(out)
    for changed, told in (
        ({"format": "vspw"}, "settings.format is vipseg there and vspw here"),
        ({"max_frames": 2}, "settings.max_frames is None there and 2 here"),
    ):
        with pytest.raises(ConfigError, match=told):
            predict(head, predict_cache, out, **changed)
    with pytest.raises(ConfigError, match="weights_sha256"):
        predict(other_head, predict_cache, out, format="vipseg")
    assert files(out) == before
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="no predictions"):
        predict(head, predict_cache, tmp_path / "full")
    predict(head, predict_cache, out)  # more videos are the same predictions
    listed = json.loads((out / "pred.json").read_text())["annotations"]
    assert [video["video_id"] for video in listed] == ["dusk_004", "morning_003"]


def test_views_that_do_not_serve_a_head_are_refused(
    predict_scenes: Path, head: Path, tmp_path: Path
) -> None:
    manifest = predict_scenes / "manifest.toml"
    for name, settings, told in (
        ("crops", {"short_side": "64..80", "crop": "60x64", "crops": 2}, "holds crops"),
        ("flipped", {**VIEW, "flip": "true"}, "mirrored"),
        ("others", {**VIEW, "weights": "random:1"}, "backbone.weights_sha256"),
        ("pyramid", {**PYRAMID, **VIEW}, "'test_vit', view .* is of 'test_resnet'"),
    ):
        extract(manifest, tmp_path / name, **settings)
        with pytest.raises(CacheError, match=told):
            predict(head, tmp_path / name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_imported_weights_predict_as_the_run_that_they_come_from(
    predict_cache: Path, head: Path, tmp_path: Path
) -> None:
    weights = tmp_path / "imported.safetensors"
    save_file(load_file(last_model(head)), weights)
    events: Events = []
    predict(weights, predict_cache, tmp_path / "file", report=events.append)
    predict(head, predict_cache, tmp_path / "run", checkpoint="last")
    assert files(tmp_path / "file") == files(tmp_path / "run")
    notes = [event["text"] for event in events if event["event"] == "note"]
    assert "does not say which backbone" in notes[0]
    with pytest.raises(ConfigError, match="names 124 categories, and the head tells 10 apart"):
        predict(weights, predict_cache, tmp_path / "no", categories="vipseg")


def test_what_is_no_head_is_refused(predict_cache: Path, head: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path, told in (
        (tmp_path / "empty", "is no run"),
        (tmp_path / "model.pth", "no run and no .safetensors"),
    ):
        with pytest.raises(ConfigError, match=told):
            predict(path, predict_cache, tmp_path / "out")
    with pytest.raises(ConfigError, match=r"no complete video 'dusk_04'.*nearest: dusk_004"):
        predict(head, predict_cache, tmp_path / "out", videos=("dusk_04",))
    with pytest.raises(ConfigError, match="split 'test'"):
        predict(head, predict_cache, tmp_path / "out", split="test")


@pytest.mark.parametrize("part", ["", "mask_head.layers.2.bias"], ids=["all", "masks"])
def test_a_head_that_gives_no_numbers_is_told_of(
    predict_cache: Path, head: Path, tmp_path: Path, part: str
) -> None:
    whole = load_file(last_model(head))
    broken = {name: tensor * float("nan")
              for name, tensor in whole.items() if name.endswith(part)}  # fmt: skip
    assert broken
    save_file({**whole, **broken}, tmp_path / f"broken{Path(MODEL).suffix}")
    with pytest.raises(FeatureError, match="not finite for video 'morning_003'"):
        predict(tmp_path / "broken.safetensors", predict_cache, tmp_path / "out")
    assert not list((tmp_path / "out" / "pan_pred").iterdir())


def test_maps_of_other_frames_are_refused_and_stay(
    predict_scenes: Path, predict_cache: Path, head: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    extract(predict_scenes / "manifest.toml", tmp_path / "cache", **VIEW, stride=2)
    predict(head, predict_cache, out, videos=("dusk_004",))
    before = files(out)
    with pytest.raises(ConfigError, match=r"videos\.dusk_004\.num_frames is 5 there and 3 here"):
        predict(head, tmp_path / "cache", out)
    assert files(out) == before
    predict(head, tmp_path / "cache", out, videos=("morning_003",))
    with pytest.raises(ConfigError, match=r"videos\.morning_003\.names_sha256 is"):
        predict(head, predict_cache, out)


def test_the_zip_is_never_behind_the_maps(predict_cache: Path, head: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    predict(head, predict_cache, out, videos=("dusk_004",))
    assert not (out / "submission.zip").exists()
    predict(head, predict_cache, out, videos=("dusk_004",), zip=True)
    predict(head, predict_cache, out)
    with zipfile.ZipFile(out / "submission.zip") as archive:
        assert archive.read("pred.json") == (out / "pred.json").read_bytes()
        folders = {name.split("/")[1] for name in archive.namelist() if "/" in name}
    assert folders == {"dusk_004", "morning_003"}
