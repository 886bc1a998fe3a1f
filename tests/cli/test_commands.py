"""What commands print for a cache that is sound."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from fcache.manifest import load_manifest
from tests.cli.running import run, run_json
from tests.extract.making import extract, make_videos, tree, words


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
    assert "1 videos are complete" not in out


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
