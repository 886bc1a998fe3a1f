"""``fcache predict``: what it says, writes and refuses, and that it goes on."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from fcache.demo.scene import render_set
from tests.cli.running import message, run, run_json
from tests.extract.making import extract
from tests.extract.running import finish, spoken, start
from tests.train.making import VIEW, train


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    render_set(folder, num_train=2, num_val=2, num_frames=8, height=64, width=96, fps=4, seed=3)
    return folder


@pytest.fixture(scope="module")
def cache(scenes: Path) -> Path:
    extract(scenes / "manifest.toml", scenes / "cache", **VIEW)
    return scenes / "cache"


@pytest.fixture(scope="module")
def head(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "head"
    train(cache, path, steps=2, val_frames=1)
    return path


def test_predictions_are_written_told_of_and_found_again(
    scenes: Path, cache: Path, head: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = ["predict", head, "--cache", cache, "--out", out, "--zip"]
    code, told, err = run(*command)
    assert code == 0, err
    assert told == f"{out}: 2 videos, 16 frames as vipseg, from {head}\n"
    events = [json.loads(line) for line in err.splitlines()]
    assert len([event["video"] for event in events if event["event"] == "video"]) == 2
    (last,) = [event for event in events if event["event"] == "progress"][-1:]
    assert (last["done"], last["total"]) == (16, 16)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    again = run_json(*command)
    assert again["heads"] == [
        {"head": str(head), "out": str(out), "format": "vipseg", "videos": 2, "frames": 16}
    ]
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.png")} == before
    score = ["eval", "vps", scenes, out / "submission.zip", "--workers", 1]
    code, _, err = run(*score, "--manifest", scenes / "manifest.toml", "--split", "val")
    assert code == 0, err


def test_several_runs_go_to_folders_of_their_own(cache: Path, head: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    train(cache, other, steps=1, val_frames=1, seed=1)
    words = ["--cache", cache, "--split", "all", "--max-frames", 1]
    found = run_json("predict", head, f"heads={other}", *words, "--out", tmp_path / "out")
    assert [one["out"] for one in found["heads"]] == [
        str(tmp_path / "out" / name) for name in ("head", "other")
    ]
    assert [one["frames"] for one in found["heads"]] == [4, 4]


def test_the_plan_says_what_is_read_and_writes_nothing(
    cache: Path, head: Path, tmp_path: Path
) -> None:
    words = ["predict", head, "held_bytes=0", "--cache", cache, "--out", tmp_path / "out", "--plan"]
    code, told, err = run(*words)
    assert code == 0, err
    assert "to predict  2 videos, 16 frames" in told
    assert "16 frames, whose masks" in told
    assert told.endswith("nothing was written. Remove --plan to start.\n")
    found = run_json(*words)
    assert (found["frames_todo"], found["frames_read"]) == (16, 32)
    assert found["heads"][0]["step"] == 2
    assert not (tmp_path / "out").exists()


def test_wrong_words_are_explained(cache: Path, head: Path, tmp_path: Path) -> None:
    for words, code, *told in (
        ([], 2, "nothing says what predicts"),
        ([cache], 2, "is no run"),
        ([head, "windw=3"], 2, "nearest: window"),
        ([head, "--format", "kitti"], 2, "format=kitti"),
        ([head, "--split", "test"], 2, "expected one of: train, val"),
        ([head, "--videos", ","], 2, "names nothing"),
        ([head, "--format", "coco", "semantic=segments"], 2, "format=vspw"),
        ([head, "--max-frames", "0"], 2, "max_frames=0"),
    ):
        found, out, err = run("predict", *words, "--cache", cache, "--out", tmp_path / "out")
        assert (found, out) == (code, ""), err
        assert all(one in message(err) for one in told), err
    assert run("predict", head, "--cache", tmp_path / "no", "--out", tmp_path / "out")[0] == 10
    assert not (tmp_path / "out").exists()


def test_ctrl_c_keeps_what_is_whole_and_the_same_command_goes_on(
    cache: Path, head: Path, tmp_path: Path
) -> None:
    words = [
        "predict",
        head,
        "window=1",
        "held_bytes=0",
        "--cache",
        cache,
        "--out",
        tmp_path / "out",
    ]
    process = start(*words, "--split", "all")
    for line in process.stderr:
        if '"event": "start"' in line:
            break
    os.kill(process.pid, signal.SIGINT)
    code, _, err = finish(process)
    assert code == 130, err
    assert "The same command goes on" in " ".join(spoken(err))
    assert not list((tmp_path / "out").rglob("*.tmp"))
    assert run_json(*words, "--split", "all")["heads"][0]["videos"] == 4
