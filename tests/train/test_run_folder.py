"""The folder of a run, its lease in the cache, and Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from fcache.errors import ConfigError
from fcache.interrupt import interruptible
from fcache.train.lease import leased
from fcache.train.log import RunLog, read_metrics
from fcache.train.methods import REFERENCES, Told, methods_text
from fcache.train.run_folder import RunFolder, recipe_table
from tests.train.making import tiny, train

FACTS = {"stage": "segmenter", "views": {"train": "ab"}}
IDENTITY = {
    "backbone": {"model": "vit_giant_patch14_dinov2"},
    "view": {"short_side": "480..1080", "size": None, "crop": [604, 604]},
    "dtype": "int8",
}


def told(**changes: Any) -> Told:
    known = {
        "identity": IDENTITY,
        "data": "manifest 'vipseg'",
        "num_categories": 124,
        "num_videos": 2806,
        "num_trained": 70_900_029,
        "kind": "panoptic",
        "versions": {"fcache": "1"},
        "ranks": 1,
    }
    return Told(**{**known, **changes})


def test_same_recipe_and_facts_begin_twice_and_others_are_refused(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    assert not folder.exists
    folder.begin(tiny(), FACTS)
    assert folder.exists
    folder.begin(tiny(log_every=7), {**FACTS, "versions": {"torch": "9"}})
    with pytest.raises(ConfigError, match=r"seed is 0 there and 1 here; views is \{"):
        folder.begin(tiny(seed=1), {**FACTS, "views": {"train": "cd"}})
    assert folder.facts()["views"] == {"train": "ab"}


def test_run_written_before_a_key_came_is_resumed_with_its_default(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.begin(tiny(), FACTS)
    path = tmp_path / "run" / "recipe.toml"
    lines = path.read_text().splitlines(keepends=True)
    older = [line for line in lines if not line.startswith("gamma")]
    assert len(older) < len(lines)
    path.write_text("".join(older))
    with pytest.raises(ConfigError, match=r"gamma is 0\.1 there and 0\.5 here"):
        folder.begin(tiny(gamma=0.5), FACTS)
    folder.begin(tiny(), FACTS)


def test_damaged_facts_are_named(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.begin(tiny(), FACTS)
    (tmp_path / "run" / "run.json").write_text("{")
    with pytest.raises(ConfigError, match=r"run\.json' cannot be read"):
        folder.begin(tiny(), FACTS)


def test_recipe_is_toml_without_what_is_none() -> None:
    table = recipe_table(tiny(crop="64x96", selection={"fps": 5.0}))
    assert table["crop"] == "64x96"
    assert table["selection"] == {"fps": 5.0}
    assert "init" not in table
    assert None not in table.values()


def test_lease_lies_in_the_cache_while_a_run_trains(tmp_path: Path) -> None:
    with leased(tmp_path / "cache", tmp_path / "run", ["ab", "cd"]) as problem:
        assert problem == ""
        (path,) = (tmp_path / "cache" / "refs").iterdir()
        content = json.loads(path.read_text())
        assert content["views"] == ["ab", "cd"]
        assert content["run"] == str(tmp_path / "run")
        assert content["pid"] == os.getpid()
    assert not any((tmp_path / "cache" / "refs").iterdir())


def test_cache_that_cannot_be_written_is_trained_from_and_it_is_said(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "refs").symlink_to("/sys")  # where nobody can make a file
    with leased(tmp_path / "cache", tmp_path / "run", ["ab"]) as problem:
        assert "cannot be written" in problem


def test_first_interrupt_is_noted_and_the_second_raises() -> None:
    heard = []
    before = signal.getsignal(signal.SIGINT)
    with interruptible(lambda: heard.append("once")) as request:
        assert not request.asked
        os.kill(os.getpid(), signal.SIGINT)
        assert request.asked
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert heard == ["once"]
    assert signal.getsignal(signal.SIGINT) is before


def test_other_threads_train_without_catching_signals() -> None:
    found = []

    def body() -> None:
        with interruptible(lambda: None) as request:
            found.append(request.asked)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert found == [False]


def test_log_of_a_resumed_run_drops_the_lines_of_steps_taken_again(tmp_path: Path) -> None:
    with RunLog(tmp_path, 0) as log:
        for step in (1, 2, 3):
            log.write("train", step, {"loss": step / 2})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "tr')  # killed while it wrote
    with RunLog(tmp_path, 2) as log:
        log.write("train", 3, {"loss": float("nan")})
    assert read_metrics(tmp_path) == [
        {"kind": "train", "step": 1, "loss": 0.5},
        {"kind": "train", "step": 2, "loss": 1.0},
        {"kind": "train", "step": 3, "loss": None},
    ]


def test_run_killed_before_its_validation_ended_validates_when_it_goes_on(
    scene_cache: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    whole = train(scene_cache, run, steps=2)
    state = whole.last.folder / "state.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "metrics": None}))
    again = train(scene_cache, run, steps=2)
    assert again.last.metrics == whole.last.metrics


def test_methods_cite_what_they_use_and_nothing_else() -> None:
    text = methods_text(tiny(adapter="comer", num_frames=3, range_frames=1, crop=608), told())
    for part in ("604x604", "480 to 1080", "int8", "124 categories", "70,900,029", "608x608"):
        assert part in text
    assert REFERENCES["CoMer"] in text
    assert REFERENCES["MinVIS"] in text
    text = methods_text(tiny(adapter="none"), told(kind="semantic"))
    for key in ("Adapter", "CoMer", "MinVIS", "PQ"):
        assert REFERENCES[key] not in text
    numbered = text.split("## References")[1].strip().splitlines()
    for number, line in enumerate(numbered, 1):
        assert line.startswith(f"{number}. ")
        assert f"[{number}]" in text.split("## References")[0]
