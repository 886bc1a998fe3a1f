"""``fcache run``: chains end, resume, stop where a step fails, and refuse what cannot be run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from fcache.cache import open_cache
from fcache.cli import chain_notes
from fcache.cli.relay import Relay
from fcache.config import recipe_names
from fcache.config.chain import Chain, chain_commands, load_chain
from fcache.demo.scene import render_set
from fcache.errors import ConfigError
from tests.cli.running import message, run, run_json
from tests.extract.making import SETTINGS, extract, make_videos
from tests.extract.running import finish, start
from tests.train.making import TINY, VIEW


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    render_set(folder, num_train=2, num_val=1, num_frames=2, height=64, width=96, fps=4, seed=3)
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("held")
    extract(make_videos(folder / "videos", {"a": 3}), folder / "cache")
    return folder / "cache"


def write_chain(path: Path, steps: list[dict[str, Any]], **inputs: str) -> Path:
    table = {"kind": "chain", "about": "a test", "inputs": inputs, "steps": steps}
    path.write_text(tomli_w.dumps(table))
    return path


def verifying(path: Path, num_steps: int = 3, **words: list[str]) -> Path:
    """A chain that checks one cache again and again, some steps in other words."""
    names = [f"check{number}" for number in range(num_steps)]
    steps = [
        {"name": name, "command": "verify", "words": words.get(name, ["{cache}"])} for name in names
    ]
    return write_chain(path, steps, cache="a cache")


def states(*words: Any) -> list[str]:
    return [step["state"] for step in run_json("run", *words, "--plan")["steps"]]


def test_a_chain_goes_from_videos_to_a_trained_segmenter(scenes: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(tomli_w.dumps({"kind": "stage", "stage": "segmenter", **TINY}))
    settings = {**SETTINGS, **VIEW}
    chain = write_chain(
        tmp_path / "whole.toml",
        [
            {
                "name": "extract",
                "command": "extract",
                "words": ["{scenes}", "--cache", "{out}/cache", "--scheduler", "inline"],
                "settings": settings,
            },
            {
                "name": "segmenter",
                "command": "train",
                "words": ["--cache", "{out}/cache", "--run", "{out}/segmenter"],
                "settings": {"recipe": str(recipe), "val_frames": 2},
            },
        ],
        scenes="a manifest",
    )
    out = tmp_path / "out"
    command = ["run", chain, f"scenes={scenes / 'manifest.toml'}", "segmenter.steps=2"]
    found = run_json(*command, "--out", out)
    assert [step["name"] for step in found["steps"]] == ["extract", "segmenter"]
    assert found["steps"][0]["result"]["frames"] == 6
    assert found["steps"][1]["result"]["steps"] == 2
    assert len(open_cache(out / "cache").view().videos) == 3
    again = run_json(*command, "--out", out)
    assert [step["state"] for step in again["steps"]] == ["ended before"] * 2


def test_steps_run_again_from_the_first_whose_words_changed(cache: Path, tmp_path: Path) -> None:
    chain = verifying(tmp_path / "chain.toml")
    end = [f"cache={cache}", "--out", tmp_path / "out"]
    assert states(chain, *end) == ["to run"] * 3
    assert not (tmp_path / "out").exists()
    assert run("run", chain, *end)[0] == 0
    assert states(chain, *end) == ["ended"] * 3
    assert states(chain, *end, "--again", "check1") == ["ended", "to run", "to run"]
    verifying(chain, check1=["{cache}", "--sample", "1"])
    assert states(chain, *end) == ["ended", "to run", "to run"]


def test_a_step_that_fails_ends_the_chain_with_its_code_and_the_next_run_begins_there(
    cache: Path, tmp_path: Path
) -> None:
    steps = [
        {"name": "good", "command": "verify", "words": ["{cache}"]},
        {"name": "later", "command": "verify", "words": ["{out}/cache"]},
    ]
    chain = write_chain(tmp_path / "chain.toml", steps, cache="a cache")
    end = [f"cache={cache}", "--out", tmp_path / "out"]
    code, _, err = run("run", chain, *end)
    assert code == 10  # no such cache
    text = "\n".join(line for line in err.splitlines() if line[0] not in "#$")
    assert "step 'later' ended with exit code 10" in text
    assert f"Next: fcache verify {tmp_path / 'out' / 'cache'}" in text
    assert states(chain, *end) == ["ended", "to run"]
    extract(make_videos(tmp_path / "videos", {"b": 2}), tmp_path / "out" / "cache")
    assert run("run", chain, *end)[0] == 0


def test_quarantined_videos_stop_a_chain_only_if_it_is_strict(tmp_path: Path) -> None:
    videos = make_videos(tmp_path / "videos", {"a": 2})
    (videos / "z.mp4").write_bytes(b"not a video")
    steps = [
        {
            "name": "extract",
            "command": "extract",
            "words": ["{videos}", "--cache", "{out}/cache", "--scheduler", "inline"],
            "settings": dict(SETTINGS),
        }
    ]
    chain = write_chain(tmp_path / "chain.toml", steps, videos="a folder")
    end = [chain, f"videos={videos}", "--out", tmp_path / "out"]
    code, _, err = run("run", *end, "--strict")
    assert code == 3
    assert "step 'extract' ended with exit code 3" in err
    (step,) = run_json("run", *end)["steps"]
    assert (step["state"], step["exit_code"]) == ("ended", 3)


def test_ctrl_c_reaches_the_step_at_hand_and_the_same_command_goes_on(
    scenes: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    extract(scenes / "manifest.toml", cache, **VIEW)
    recipe = tmp_path / "tiny.toml"
    table = {"kind": "stage", "stage": "segmenter", **TINY, "steps": 100_000, "val_frames": 2}
    recipe.write_text(tomli_w.dumps(table))
    step = {
        "name": "train",
        "command": "train",
        "words": ["--cache", "{cache}", "--run", "{out}/run"],
        "settings": {"recipe": str(recipe)},
    }
    chain = write_chain(tmp_path / "chain.toml", [step], cache="a cache")
    process = start("run", chain, f"cache={cache}", "--out", tmp_path / "out")
    metrics = tmp_path / "out" / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    code, _, err = finish(process)
    assert code == 130, err
    assert "interrupted; the same command goes on from there" in err
    taken = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert taken
    assert list((tmp_path / "out" / "run" / "checkpoints").iterdir())
    assert states(chain, f"cache={cache}", "--out", tmp_path / "out") == ["to run"]


def test_a_step_runs_again_when_a_file_it_names_or_what_it_made_has_changed(
    cache: Path, tmp_path: Path
) -> None:
    note = tmp_path / "note.txt"
    note.write_text("a")
    steps = [{"name": "good", "command": "verify", "words": ["{cache}"], "settings": {"x": "{n}"}}]
    chain = write_chain(tmp_path / "chain.toml", steps, cache="a cache", n="a file")
    (command,) = chain_commands(load_chain(str(chain)), {"cache": str(cache), "n": str(note)}, note)
    before = chain_notes.told(command)
    assert before == chain_notes.told(command)
    note.write_text("b")
    assert before != chain_notes.told(command)
    step = {"name": "a", "command": "verify", "words": ["{cache}", "--out", str(tmp_path / "made")]}
    chain = write_chain(tmp_path / "chain.toml", [step], cache="a cache")
    (command,) = chain_commands(load_chain(str(chain)), {"cache": str(cache)}, note)
    assert not chain_notes.made(command)
    (tmp_path / "made").mkdir()
    assert chain_notes.made(command)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_step_ends_with_the_chain_that_is_terminated(
    number: signal.Signals, tmp_path: Path
) -> None:
    with Relay() as relay:
        child = subprocess.Popen(["sleep", "60"], process_group=0, text=True)
        relay.begin(child)
        os.kill(os.getpid(), number)
        child.wait(10)
    assert relay.asked == [number]
    assert child.returncode == -number


def test_settings_of_a_step_that_trains_on_videos_are_checked_as_its_command_does(
    scenes: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(tomli_w.dumps({"kind": "stage", "stage": "segmenter", **TINY}))
    step = {
        "name": "train",
        "command": "train",
        "words": ["--videos", "{videos}", "--run", "{out}/run"],
        "settings": {"recipe": str(recipe), "source": "live", "extract.short_side": 64},
    }
    chain = write_chain(tmp_path / "chain.toml", [step], videos="a folder")
    assert states(chain, f"videos={scenes}", "--out", tmp_path / "out") == ["to run"]


def test_wrong_settings_of_all_steps_are_told_before_any_runs(tmp_path: Path) -> None:
    steps = [
        {"name": "extract", "command": "extract", "words": ["{videos}"]},
        {"name": "probe", "command": "probe", "words": ["{out}/cache"]},
        {"name": "train", "command": "train", "words": ["--cache", "{out}/cache"]},
        {"name": "predict", "command": "predict", "words": ["{out}/run", "--out", "{out}/maps"]},
    ]
    chain = write_chain(tmp_path / "chain.toml", steps, videos="a folder")
    wrong = ["extract.shortside=4", "probe.lr=abc", "train.batch=0", "predict.widow=2"]
    code, _, err = run("run", chain, "videos=v", *wrong, "--out", tmp_path / "out")
    assert code == 2
    for told in (
        "step 'extract': 'shortside' is not a setting; nearest: short_side",
        "step 'probe': lr=abc",
        "step 'train': batch=0",
        "step 'predict': 'widow' is not a setting; nearest: window",
    ):
        assert told in err  # a line a step
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["segmenter_coco"], "is one stage, 'segmenter'; expected a chain"),
        (["quickstat"], "nearest: quickstart"),
        (["quickstart"], "videos= is not given; expected a manifest"),
        (["quickstart", "videos=v", "vdeos=w"], "'vdeos' is neither an input nor"),
        (["quickstart", "videos=v", "--again", "prob"], "nearest: probe"),
        (["quickstart", "v"], "'v' is no setting"),
        ([], "no recipe is given"),
    ],
)
def test_what_cannot_be_run_is_explained(words: list[str], told: str) -> None:
    code, _, err = run("run", *words)
    assert code == 2
    assert told in message(err)


def test_damaged_notes_are_named(cache: Path, tmp_path: Path) -> None:
    chain = verifying(tmp_path / "chain.toml", 1)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "chain.json").write_text("{")
    code, _, err = run("run", chain, f"cache={cache}", "--out", tmp_path / "out")
    assert code == 2
    assert "chain.json' cannot be read" in message(err)


def test_chains_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    steps = [
        {"name": "a", "command": "verify", "words": ["{cahe}"]},
        {"name": "a", "command": "verify", "words": ["{out}"]},
        {"name": "cache", "command": "verify"},
    ]
    path = write_chain(tmp_path / "chain.toml", steps, cache="a cache")
    with pytest.raises(ConfigError) as caught:
        load_chain(str(path))
    assert "step 'a' is there twice" in caught.value.message
    assert "step 'cache' is called like an input" in caught.value.message
    assert "{cahe}, which is no input; nearest: cache" in caught.value.message


def test_a_setting_takes_the_place_of_those_it_stands_in_for(tmp_path: Path) -> None:
    step = {
        "name": "extract",
        "command": "extract",
        "words": ["{videos}", "--cache", "{out}/cache"],
        "settings": {"short_side": 480, "model": "{videos}.x"},
    }
    path = write_chain(tmp_path / "chain.toml", [step], videos="a folder")
    given = {"videos": "v v", "extract.size": "64x96"}
    (command,) = chain_commands(load_chain(str(path)), given, Path("o"))
    assert command.argv == ["extract", "v v", "--cache", "o/cache", "model=v v.x", "size=64x96"]


def test_shipped_chains_are_listed_and_fit_together() -> None:
    listed = run_json("run", "--list")["chains"]
    assert "quickstart" in listed
    for name in listed:
        assert name in recipe_names()
        chain = load_chain(name)
        assert isinstance(chain, Chain)
        given = [f"{name}=x" for name in chain.inputs]
        assert len(run_json("run", name, *given, "--plan")["steps"]) == len(chain.steps)
