"""What commands print for a cache that is sound."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fcache.cache import open_cache
from fcache.extract.precision import ERROR_COLUMNS
from fcache.manifest import load_manifest
from fcache.store.inspect import commit_stats
from tests.cli.running import message, run, run_json
from tests.extract.making import extract, make_videos, tree, words
from tests.sources.media import moving_frames


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_videos(tmp_path_factory.mktemp("videos"), {"a": 20, "b": 3})
    (folder / "z.mp4").write_bytes(b"not a video")
    return folder


@pytest.fixture(scope="module")
def done(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache = tmp_path_factory.mktemp("done") / "cache"
    extract(videos, cache)
    return cache


def command(videos: Path, cache: Path, *more: object, **changes: object) -> list[object]:
    return [
        "extract", videos, "--cache", cache, "--scheduler", "inline", *words(**changes), *more
    ]  # fmt: skip


def test_a_json_manifest_is_extracted_like_one_of_toml(videos: Path, tmp_path: Path) -> None:
    described = run("data", "init", videos, "-o", tmp_path / "m.json", "stride=2")
    assert described[0] == 3  # z cannot be read
    content = run_json(*command(tmp_path / "m.json", tmp_path / "cache"), code=3)
    assert (content["frames"], list(content["quarantined"])) == (12, ["z"])
    (held,) = run_json("info", tmp_path / "cache", "--manifest")["manifests"]
    assert held["sampling"] == {"stride": 2}


def test_extract_says_what_it_did_and_ends_with_3_for_the_quarantined(
    videos: Path, tmp_path: Path
) -> None:
    code, out, err = run(*command(videos, tmp_path / "cache"))
    assert code == 3
    assert out.startswith("extracted 23 frames, ")
    assert "frames/s) into view " in out
    assert "1 quarantined:\n  z: " in out
    for line in err.splitlines():
        assert json.loads(line)["command"] in {"read", "extract"}
    code, out, _ = run(*command(videos, tmp_path / "cache"))
    assert (code, out.splitlines()[0].split(" in ")[0]) == (
        3,
        "nothing to do: 2 videos are complete",
    )
    content = run_json(*command(videos / "a.mp4", tmp_path / "cache"))
    assert (content["frames"], content["videos"], content["quarantined"]) == (0, 1, {})


def test_a_job_that_could_store_nothing_does_not_claim_completeness(tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "x.mp4").touch()
    code, out, _ = run(*command(tmp_path / "v", tmp_path / "cache"))
    assert code == 3
    assert "complete" not in out


def test_a_bare_command_shows_its_help_and_no_complaint() -> None:
    code, out, err = run()
    assert code == 2
    assert "extract" in out + err
    assert "fcache: " not in err


@pytest.mark.parametrize("name", ["foo", "slurm:nope"])
def test_a_scheduler_that_is_none_is_refused_before_anything_else(
    videos: Path, done: Path, name: str
) -> None:
    code, _, err = run(*command(videos, done, "--scheduler", name))
    assert code == 2
    assert name.removeprefix("slurm:") in message(err)


def test_reused_frames_are_told_of(tmp_path: Path) -> None:
    frames = tmp_path / "v" / "a"
    frames.mkdir(parents=True)
    for number, rgb in enumerate(moving_frames(4, 48, 64)):
        Image.fromarray(rgb).save(frames / f"{number:05d}.png")
    assert run(*command(tmp_path / "v", tmp_path / "cache"))[0] == 0
    code, out, _ = run(*command(tmp_path / "v", tmp_path / "cache", "stride=2"))
    assert code == 0
    assert out.startswith("reused 2 frames that view ")


def test_progress_counts_to_the_end_with_rate_and_time_left(videos: Path, tmp_path: Path) -> None:
    _, _, err = run(*command(videos, tmp_path / "cache"))
    lines = [json.loads(line) for line in err.splitlines()]
    last = [line for line in lines if line["event"] == "progress" and line["unit"] == "frames"][-1]
    assert (last["done"], last["total"], last["eta_s"]) == (23, 23, 0)
    assert last["per_s"] > 0
    assert last["bytes_per_s"] > 0
    assert any(line.get("weights") == "random:0" for line in lines)


def test_the_plan_writes_nothing_and_says_what_would_be_done(
    videos: Path, done: Path, tmp_path: Path
) -> None:
    code, out, _ = run(*command(videos, tmp_path / "cache", "--plan"))
    assert code == 0
    assert "2 videos  23 frames" in out
    assert "not measured; --first 1 measures it" in out
    assert "UNTRAINED" in out
    assert "quarantined z: " in out
    assert not (tmp_path / "cache").exists()
    before = tree(done)
    code, out, _ = run(*command(videos, done, "--plan"))
    assert tree(done) == before
    assert "2 videos done, 0 to do (0 frames), 1 quarantined" in out
    assert "measured at the last commits" in out
    content = run_json(*command(videos, tmp_path / "cache", "--plan"))
    assert (content["frames_to_do"], content["buckets"]) == (23, ["32x64"])


def test_the_plan_foretells_the_bytes(videos: Path, done: Path, tmp_path: Path) -> None:
    planned = run_json(*command(videos, tmp_path / "cache", "--plan"))["bytes_to_do"]
    held = run_json("ls", done)["views"][0]["size_bytes"]
    assert 0.95 * held < planned < 1.05 * held


def test_first_draws_a_picture_and_states_the_measured_rate(videos: Path, tmp_path: Path) -> None:
    code, out, _ = run(*command(videos, tmp_path / "cache", "--first", 1))
    assert code == 0
    assert out.startswith("extracted 20 frames")
    path = tmp_path / "cache.first.png"
    assert f"picture {path}" in out
    with Image.open(path) as picture:
        assert min(picture.size) > 100
    plan = run_json(*command(videos, tmp_path / "cache", "--plan"))
    assert plan["frames_per_s_per_worker"] > 0
    assert plan["frames_to_do"] == 3


@pytest.mark.parametrize(
    "changes",
    [
        {"short_side": "40..60", "crop": "32", "crops": 2},
        {"dtype": "int8"},
        {"dtype": "bfloat16", "model": "test_resnet", "blocks": "none", "short_side": 64},
    ],
    ids=["crops", "int8", "pyramid"],
)
def test_first_draws_every_kind_of_view(videos: Path, tmp_path: Path, changes) -> None:
    code, out, err = run(*command(videos, tmp_path / "cache", "--first", 1, **changes))
    assert code == 0, err
    frames = 20 * changes.get("crops", 1)
    assert out.startswith(f"extracted {frames} frames")
    with Image.open(tmp_path / "cache.first.png") as picture:
        assert len(picture.getcolors(1 << 24)) > 1000


def test_first_draws_an_image_of_a_packed_set(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for number in range(3):
        noise = np.random.default_rng(number).integers(0, 256, (48, 64, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / f"set/{number}.png")
    images = sorted((tmp_path / "set").iterdir())
    code, _, err = run("extract", *images, *command("", tmp_path / "cache", "--first", 2)[2:])
    assert code == 0, err
    with Image.open(tmp_path / "cache.first.png") as picture:
        assert len(picture.getcolors(1 << 24)) > 1000


def test_a_cache_may_be_the_current_folder(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert run(*command(videos / "b.mp4", Path("."), "--first", 1))[0] == 0
    assert (tmp_path / "here.first.png").exists()
    assert run("ls", ".")[0] == 0


def test_ls_lists_views_and_videos(done: Path) -> None:
    code, out, err = run("ls", done)
    assert (code, err) == (0, "")
    head, row = out.splitlines()
    assert head.split()[:3] == ["KEY", "MODEL", "DTYPE"]
    assert row.split()[1:6] == ["test_vit", "float32", "32x64", "2/3", "23"]
    _, out, _ = run("ls", done, "--videos")
    states = [line.split()[1:3] for line in out.splitlines()[1:]]
    assert states == [["a", "complete"], ["b", "complete"], ["z", "quarantined"]]
    _, out, _ = run("ls", done, "--status", "quarantined")
    assert [line.split()[1] for line in out.splitlines()[1:]] == ["z"]
    rows = run_json("ls", done, "--videos")["videos"]
    assert [(row["video_id"], row["num_frames"]) for row in rows] == [("a", 20), ("b", 3), ("z", 0)]
    assert run_json("ls", done)["views"][0]["state"] == "complete*"


@pytest.fixture(scope="module")
def crops(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache = tmp_path_factory.mktemp("crops") / "cache"
    extract(videos, cache, short_side="40..60", crop="32x48", crops=2)
    return cache


def test_crops_of_a_video_are_one_video_and_a_row_each(crops: Path, done: Path) -> None:
    _, out, _ = run("ls", crops)
    head, row = out.splitlines()
    assert head.split()[3:7] == ["CANVASES", "VIDEOS", "CROPS", "FRAMES"]
    assert row.split()[3:7] == ["32x64", "2/3", "2", "46"]
    (view,) = run_json("ls", crops)["views"]
    assert (view["complete"], view["quarantined"], view["num_crops"]) == (2, 1, 2)
    _, out, _ = run("ls", crops, "--videos")
    head, *rows = out.splitlines()
    assert head.split()[1:4] == ["VIDEO", "CROP", "STATE"]
    assert [row.split()[1:4] for row in rows] == [
        ["a", "0", "complete"], ["a", "1", "complete"],
        ["b", "0", "complete"], ["b", "1", "complete"],
        ["z", "-", "quarantined"],
    ]  # fmt: skip
    drawn = [(row["video_id"], row["draw"]) for row in run_json("ls", crops, "--videos")["videos"]]
    assert drawn == [("a", 0), ("a", 1), ("b", 0), ("b", 1), ("z", None)]
    assert "CROP" not in run("ls", done)[1] + run("ls", done, "--videos")[1]


def test_a_video_counts_once_however_often_it_is_cached(videos: Path, tmp_path: Path) -> None:
    for stride in (1, 2):
        extract([videos / "a.mp4", videos / "b.mp4"], tmp_path / "cache", stride=stride)
    (view,) = run_json("ls", tmp_path / "cache")["views"]
    assert (view["complete"], view["partial"], view["num_frames"]) == (2, 0, 23)


def test_info_tells_of_crops_in_words(crops: Path) -> None:
    _, out, _ = run("info", crops)
    assert "view        crop 32x48 of short side 40..60, 2 draws of seed 0, patch=16\n" in out
    assert "videos      2 complete, 0 partial, 1 in quarantine" in out


def test_info_gives_a_size_as_it_is_typed(videos: Path, tmp_path: Path) -> None:
    extract(videos / "b.mp4", tmp_path / "cache", size="32x96", short_side="none")
    assert "size=32x96" in run("info", tmp_path / "cache")[1]


def test_info_tells_of_frames_that_are_used_again(videos: Path, tmp_path: Path) -> None:
    extract(videos / "a.mp4", tmp_path / "cache", stride=4)
    extract(videos / "a.mp4", tmp_path / "cache")
    _, out, _ = run("info", tmp_path / "cache")
    assert "frames      20 (" in out
    assert "reused      5 frames lie in rows of other videos" in out
    content = run_json("info", tmp_path / "cache")
    assert (content["num_frames"], content["num_borrowed"]) == (20, 5)


def test_info_tells_of_packed_images(tmp_path: Path) -> None:
    for number in range(3):
        noise = np.random.default_rng(number).integers(0, 256, (48, 64, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{number}.png")
    extract(sorted(tmp_path.glob("*.png")), tmp_path / "cache")
    assert "packed      3 single images, up to 16 to a shard" in run("info", tmp_path / "cache")[1]
    assert run_json("info", tmp_path / "cache")["num_packed"] == 3


def test_info_tells_what_int8_costs_and_where_the_time_went(videos: Path, tmp_path: Path) -> None:
    code, _, err = run(*command(videos, tmp_path / "cache", dtype="int8"))
    assert code == 3, err
    _, out, _ = run("info", tmp_path / "cache")
    assert re.search(r"\nscales +the largest values in 23 frames  sha256 [0-9a-f]{16}\n", out)
    assert re.search(r"\ntime +\d+ % of the workers' time (in the network|waiting for \w+)", out)
    head, *rows = out.splitlines()[-5:]
    assert head == "STAGE   REL L2  BULK REL L2    COSINE  WORST TOKEN"
    assert [row.split()[0] for row in rows] == ["0", "1", "2", "3"]
    content = run_json("info", tmp_path / "cache")
    view = open_cache(tmp_path / "cache").view()
    assert content["calibration"] == {
        "num_frames": 23,
        "sha256": view.index.attributes["calibration"]["sha256"],
    }
    # 23 frames of 24 x 43 valid pixels: two rows of tokens, three columns.
    assert [stage["num_tokens"] for stage in content["errors"]] == [23 * 2 * 3] * 4
    sums = np.sum([part["errors"] for part in commit_stats(view)], axis=0)
    signal, noise = (ERROR_COLUMNS.index(name) for name in ("signal", "noise"))
    for stage, told in enumerate(content["errors"]):
        assert told["relative_l2"] == pytest.approx(
            (sums[stage, noise] / sums[stage, signal]) ** 0.5
        )
    assert set(content["seconds"]) == {"decode", "compute", "write"}
    assert run_json("info", tmp_path / "cache")["errors"]


def test_info_says_what_a_view_is_and_prints_its_manifest(done: Path, tmp_path: Path) -> None:
    code, out, err = run("info", done)
    assert (code, err) == (0, "")
    for said in ("test_vit", "random:0  UNTRAINED", "short_side=32", "after blocks 1, 2, 4, 5"):
        assert said in out
    assert "torch" in out.splitlines()[-1]
    content = run_json("info", done)
    assert content["identity"]["dtype"] == "float32"
    assert content["provenance"]["recipe"]["model"] == "test_vit"
    assert content["provenance"]["made_by"][0]["batch"] == 1
    _, out, _ = run("info", done, "--manifest")
    (tmp_path / "m.toml").write_text(out)
    manifest = load_manifest(str(tmp_path / "m.toml"))
    assert [video.id for video in manifest.videos] == ["a", "b", "z"]
    assert len(run_json("info", done, "--manifest")["manifests"]) == 1


def test_verify_reads_everything(done: Path) -> None:
    held = run_json("ls", done)["views"][0]["size_bytes"]
    assert run_json("verify", done) == {"bytes": held, "findings": [], "unfinished": []}
    code, out, _ = run("verify", done)
    assert (code, out.rpartition(":")[2]) == (0, " 0 problems\n")


def test_recipes_are_listed_and_printed_by_name_and_path(tmp_path: Path) -> None:
    _, out, _ = run("recipes")
    assert "extract" in out
    _, text, _ = run("recipes", "extract")
    (tmp_path / "mine.toml").write_text(text)
    assert run("recipes", tmp_path / "mine.toml") == (0, text, "")
    assert set(run_json("recipes")["recipes"]) >= {"extract", "probe"}
    assert run_json("recipes", "probe")["recipe"]["stage"] == "probe"


@pytest.mark.parametrize(
    "words",
    [["--help"], ["--version"], ["ls", "{done}"], ["ls", "{done}", "--videos"], ["info", "{done}"],
     ["verify", "{done}"], ["recipes"]],
    ids=str,
)  # fmt: skip
def test_quick_commands_import_neither_torch_nor_dask(done: Path, words: list[str]) -> None:
    code = (
        "import sys\nfrom fcache.cli.main import main\n"
        f"sys.argv = ['fcache', *{[word.format(done=done) for word in words]!r}]\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\n"
        "heavy = {'torch', 'timm', 'dask', 'distributed', 'av'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done_ = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert done_.returncode == 0, done_.stderr


def test_importing_fcache_and_opening_a_cache_need_no_torch(done: Path) -> None:
    code = (
        "import sys, fcache\n"
        "assert 'zarr' not in sys.modules and 'numpy' not in sys.modules\n"
        f"clip = fcache.open_cache({str(done)!r}).read('a', [0, 19])\n"
        "assert clip.stages[0].shape == (2, 2, 4, 64), clip.stages[0].shape\n"
        "assert 'torch' not in sys.modules"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert ended.returncode == 0, ended.stderr
