"""What a plan makes of the last commits: how fast a worker is, and what holds the job up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fcache.extract.pace import Bottleneck, find_bottleneck, frame_cost, measured_pace
from fcache.store.cache import create_root
from fcache.store.commits import last_commits
from fcache.store.index import ViewIndex
from fcache.store.layout import Bucket, ViewLayout
from tests.cli.running import run, run_json
from tests.extract.making import extract, make_videos, plan_of, words

VIT_S = ViewLayout(plain=True, channels=(384,) * 4, strides=(16,) * 4, dtype="float16")
PYRAMID = ViewLayout(
    plain=False, channels=(96, 192, 384, 768), strides=(4, 8, 16, 32), dtype="float16"
)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six videos, of which three are extracted."""
    folder = tmp_path_factory.mktemp("pace")
    make_videos(folder / "half", {"a": 40, "b": 20, "c": 10})
    make_videos(folder / "all", {"a": 40, "b": 20, "c": 10, "d": 20, "e": 20, "f": 20})
    extract(folder / "half", folder / "cache")
    return folder


def test_attention_makes_a_large_canvas_dearer_than_its_pixels() -> None:
    small, large = Bucket(480, 864), Bucket(736, 1280)
    pixels = 736 * 1280 / (480 * 864)
    assert frame_cost(PYRAMID, large) / frame_cost(PYRAMID, small) == pytest.approx(pixels)
    # Seconds of one frame of ViT-S, one thread of a CPU: 1.052 and 3.495.
    found = frame_cost(VIT_S, large) / frame_cost(VIT_S, small)
    assert found == pytest.approx(3.495 / 1.052, rel=0.05)


@pytest.mark.parametrize(
    ("made", "taken", "wanted"),
    [
        (0.43, 68.8, Bottleneck("decode", 160.0)),
        (190.0, 95.0, Bottleneck("disk", 2.0)),
        (68.0, 68.0, Bottleneck("decode", 1.0)),
    ],
)
def test_the_slower_of_workers_and_disk_is_named_with_its_margin(
    made: float, taken: float, wanted: Bottleneck
) -> None:
    assert find_bottleneck("decode", made, taken) == wanted


def test_the_last_commits_come_in_order_and_no_more_than_asked(done: Path) -> None:
    plan = plan_of(done / "half", done / "cache")
    tables = ViewIndex(done / "cache" / plan.key).load().tables
    every = last_commits(tables, 100)
    times = [commit.provenance["committed_s"] for commit in every]
    assert len(every) == 6  # shards: three, two and one
    assert times == sorted(times)
    assert last_commits(tables, 2) == every[-2:]


def test_a_view_without_commits_has_no_pace(done: Path, tmp_path: Path) -> None:
    plan = plan_of(done / "half", done / "cache")
    create_root(tmp_path / "cache")
    index = ViewIndex.create(tmp_path / "cache", plan.identity, {})
    assert measured_pace(index.load(), plan.layout) is None
    assert measured_pace(None, plan.layout) is None


def test_a_plan_names_the_bottleneck_and_measures_the_disk(done: Path) -> None:
    command = ["extract", done / "all", "--cache", done / "cache", "--plan", *words()]
    code, out, _ = run(*command, "workers=2")
    assert code == 0
    rows = dict(line.split(maxsplit=1) for line in out.splitlines()[:8])
    assert "free  ok  writes " in rows["disk"]
    assert rows["bottleneck"].startswith(("the network: ", "decoding: ", "writing: "))
    assert " frames/s on 2 workers; the disk takes " in rows["bottleneck"]
    at = run_json(*command)
    made, taken = at["frames_per_s_per_worker"], at["disk_frames_per_s"]
    assert at["workers"] == 1
    assert taken == pytest.approx(
        at["disk_bytes_per_s"] * at["frames_to_do"] / at["bytes_to_do"], rel=1e-3
    )
    assert at["bottleneck"]["slowest"] in {"compute", "decode", "write"}
    assert at["bottleneck"]["margin"] == pytest.approx(taken / made, rel=1e-2)


def test_a_plan_for_a_given_scheduler_speaks_of_one_worker(done: Path) -> None:
    _, out, _ = run(
        "extract", done / "all", "--cache", done / "cache", "--plan", *words(),
        "--scheduler", "tcp://127.0.0.1:9",
    )  # fmt: skip
    assert " frames/s a worker; the disk takes " in out


def test_a_plan_without_commits_says_how_to_measure(done: Path, tmp_path: Path) -> None:
    command = ["extract", done / "half", "--cache", tmp_path / "cache", "--plan", *words()]
    _, out, _ = run(*command)
    assert "bottleneck  not measured; the disk takes " in out
    assert "--first 1 measures what a worker makes" in out
    assert run_json(*command)["bottleneck"] is None


def test_time_and_pace_come_from_the_same_commits(done: Path) -> None:
    plan = plan_of(done / "all", done / "cache")
    assert plan.pace is not None
    assert plan.rate == pytest.approx(plan.pace.frames_per_s)  # one canvas: cost cancels out
    tables = ViewIndex(done / "cache" / plan.key).load().tables
    spent = [json.loads(text)["seconds"] for text in set(tables.shards["stats"].to_pylist())]
    most = max(("compute", "decode", "write"), key=lambda part: sum(one[part] for one in spent))
    assert plan.pace.most == most
