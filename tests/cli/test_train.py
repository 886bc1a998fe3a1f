"""``fcache train``: what it says, what it refuses, and that it goes on."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import tomli_w

from fcache.demo.scene import render_set
from tests.cli.running import message, run, run_json
from tests.extract.making import extract
from tests.extract.running import finish, spoken, start
from tests.train.making import TINY, VIEW


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    render_set(folder, num_train=2, num_val=1, num_frames=2, height=64, width=96, fps=4, seed=3)
    extract(folder / "manifest.toml", folder / "cache", **VIEW)
    return folder / "cache"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    table = {"kind": "stage", "stage": "segmenter", "about": "tiny", **TINY, "val_frames": 2}
    path.write_text(tomli_w.dumps(table))
    return path


def test_a_run_says_what_it_trains_and_the_same_command_finds_it_done(
    cache: Path, recipe: Path, tmp_path: Path
) -> None:
    command = ["train", f"recipe={recipe}", "--cache", cache, "--run", tmp_path / "run"]
    code, out, err = run(*command)
    assert code == 0, err
    assert out.startswith("last: step 4, miou ")
    assert out.splitlines()[-1] == f"run {tmp_path / 'run'}"
    events = [json.loads(line) for line in err.splitlines() if line.startswith("{")]
    steps = [event["step"] for event in events if event["event"] == "step"]
    assert steps == [1, 2, 3, 4]
    assert [event["event"] for event in events].count("validated") == 1
    (last,) = [e for e in events if e["event"] == "progress" and e["done"] == e["total"]][-1:]
    assert last["total"] == 4
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    again = run_json(*command)
    assert (again["steps"], again["run"]) == (4, str(tmp_path / "run"))
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_the_plan_counts_parameters_shows_the_recipe_and_writes_nothing(
    cache: Path, recipe: Path, tmp_path: Path
) -> None:
    end = ["--cache", cache, "--run", tmp_path / "run", "--plan"]
    code, out, err = run("train", f"recipe={recipe}", "lr=0.5", *end)
    assert code == 0, err
    assert "lr = 0.5" in out
    assert "M parameters: adapter " in out
    assert not (tmp_path / "run").exists()
    found = run_json("train", f"recipe={recipe}", "lr=0.5", *end)
    assert found["recipe"]["lr"] == 0.5
    assert found["num_trained"] == sum(found["num_by_part"].values()) > 0


def test_wrong_words_are_explained_together(cache: Path, recipe: Path, tmp_path: Path) -> None:
    end = ["--cache", cache, "--run", tmp_path / "run"]
    for words, *told in (
        ([], "stage=", "recipe="),
        (["stage=segmentr"], "nearest: segmenter"),
        (["stage=tracker"], "segmenter"),
        (["recipe=probe"], "expected one that trains"),
        (["segmenter"], "expected key=value"),
        ([f"recipe={recipe}", "stps=3", "batch=0"], "nearest: steps", "batch=0"),
        ([f"recipe={recipe}", "train_split=nosuch"], "nosuch"),
    ):
        code, out, err = run("train", *words, *end)
        assert (code, out) == (2, ""), err
        assert all(one in message(err) for one in told), err
    assert run("train", "stage=segmenter", "--cache", tmp_path / "no")[0] == 10
    assert not (tmp_path / "run").exists()


def test_ctrl_c_saves_and_the_same_command_goes_on(
    cache: Path, recipe: Path, tmp_path: Path
) -> None:
    words = ["train", f"recipe={recipe}", "steps=400", "--cache", cache, "--run", tmp_path / "run"]
    process = start(*words)
    for line in process.stderr:
        if '"event": "step"' in line:
            break
    os.kill(process.pid, signal.SIGINT)
    code, _, err = finish(process)
    assert code == 130, err
    assert "The same command goes on" in " ".join(spoken(err))
    code, _, err = run(*words[:2], "steps=400", "lr=0.5", *words[3:])
    assert (code, "lr" in message(err)) == (2, True)  # another run must not go on in this folder
