"""``fcache copy`` as a user runs it, and what other commands say of a copy."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from fcache.cache import open_cache
from tests.cli.running import message, run, run_json
from tests.extract.making import extract, make_videos, tree
from tests.store.making import PLAIN, make_cache


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished cache of two videos; nobody changes it."""
    folder = tmp_path_factory.mktemp("source")
    videos = make_videos(folder / "videos", {"a": 20, "b": 3})
    extract(videos, folder / "cache", dtype="float16")
    return folder / "cache"


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("broken")
    videos = make_videos(folder / "videos", {"a": 2})
    (videos / "z.mp4").write_bytes(b"not a video")
    extract(videos, folder / "cache")
    return folder / "cache"


@pytest.fixture(scope="module")
def copied(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that holds a view and its int8 copy."""
    cache = Path(shutil.copytree(source, tmp_path_factory.mktemp("copied") / "cache"))
    assert run("copy", cache, cache, "dtype=int8")[0] == 0
    return cache


def key_of(cache: Path, dtype: str) -> str:
    (key,) = [v.key for v in open_cache(cache).views if v.index.layout.dtype == dtype]
    return key


def test_it_says_what_was_copied_and_what_that_costs(source: Path, tmp_path: Path) -> None:
    code, out, err = run("copy", source, tmp_path / "copy", "dtype=int8", "device=cpu")
    assert code == 0, err
    first, head, *rows, size = out.splitlines()
    assert re.fullmatch(
        r"copied 23 frames, \d+ kB in 0:00:0\d \([\d.e+]+ frames/s\) into view [0-9a-f]{16}", first
    )
    assert head == "STAGE   REL L2  BULK REL L2    COSINE  WORST TOKEN"
    for stage, row in enumerate(rows):
        number = r"0\.\d+ %"
        assert re.fullmatch(rf" +{stage} +{number} +{number}  0\.9999\d\d +{number}", row)
    assert len(rows) == 4
    assert re.fullmatch(r"size  \d+ kB as float16 -> \d+ kB as int8 \(\d+%\)", size)
    lines = [json.loads(line) for line in err.splitlines()]
    assert {line["unit"] for line in lines} == {"frames looked at", "frames"}
    assert (lines[-1]["done"], lines[-1]["total"]) == (23, 23)
    code, out, _ = run("copy", source, tmp_path / "copy", "dtype=int8")
    assert code == 0
    assert out.startswith("nothing to do: 23 frames are copied in view ")


def test_it_prints_one_json_object(source: Path, tmp_path: Path) -> None:
    content = run_json("copy", source, tmp_path / "copy", "dtype=int8")
    assert content["view"] == key_of(source, "float16")
    assert content["key"] == key_of(tmp_path / "copy", "int8")
    assert (content["videos"], content["frames"], content["frames_copied"]) == (2, 23, 23)
    assert content["left_out"] == {"partial": 0, "quarantined": 0}
    assert len(content["errors"]) == 4
    assert set(content["errors"][0]) == {
        "num_tokens", "relative_l2", "bulk_relative_l2", "cosine", "worst_token",
    }  # fmt: skip
    assert content["bytes_before"] > 0 < content["bytes_after"]


def test_int8_takes_little_more_than_half_of_float16(tmp_path: Path) -> None:
    wide = {**PLAIN["backbone"], "stages": [{"channels": 1536, "stride": 16}] * 4}
    make_cache(tmp_path / "cache", {**PLAIN, "backbone": wide}, {"a": 3})
    content = run_json("copy", tmp_path / "cache", tmp_path / "copy", "dtype=int8", "--plan")
    features = 3 * 4 * 24 * 1536 * 2  # frames, stages, tokens, channels, bytes
    saved = content["bytes_before"] - content["bytes_after"]
    assert 0.4 * features < saved < 0.5 * features


def test_the_plan_writes_nothing_and_says_what_would_be_done(source: Path, tmp_path: Path) -> None:
    before = tree(source)
    code, out, err = run("copy", source, tmp_path / "copy", "dtype=float32", "--plan")
    assert (code, err) == (0, "")
    view, copy, *lines = out.splitlines()
    assert view == f"view    {key_of(source, 'float16')}  test_vit  float16"
    assert re.fullmatch("copy    [0-9a-f]{16}  float32", copy)
    assert lines[0] == "source  2 videos  23 frames"
    assert lines[-2:] == [
        "resume  0 frames done, 23 to do",
        f"nothing was written to '{tmp_path / 'copy'}'. Remove --plan to start.",
    ]
    assert not (tmp_path / "copy").exists()
    assert tree(source) == before
    _, out, _ = run("copy", source, tmp_path / "copy", "dtype=int8", "--plan")
    assert "copy    key known after calibration  int8" in out
    planned = run_json("copy", source, tmp_path / "copy", "dtype=int8", "--plan")
    assert (planned["key"], planned["frames_to_do"]) == (None, 23)
    run("copy", source, tmp_path / "copy", "dtype=int8")
    planned = run_json("copy", source, tmp_path / "copy", "dtype=int8", "--plan")
    assert planned["key"] == key_of(tmp_path / "copy", "int8")
    assert (planned["frames_to_do"], planned["bytes_to_do"]) == (0, 0)


def test_the_plan_foretells_the_bytes(source: Path, tmp_path: Path) -> None:
    planned = run_json("copy", source, tmp_path / "copy", "dtype=int8", "--plan")["bytes_to_do"]
    run("copy", source, tmp_path / "copy", "dtype=int8")
    held = run_json("ls", tmp_path / "copy")["views"][0]["size_bytes"]
    assert 0.95 * held < planned < 1.05 * held


def test_what_is_in_quarantine_is_left_out_and_said(broken: Path, tmp_path: Path) -> None:
    code, out, _ = run("copy", broken, tmp_path / "copy", "dtype=bfloat16")
    assert code == 3
    assert out.splitlines()[-1] == "left out  videos: 1 in quarantine"
    code, out, _ = run("copy", broken, tmp_path / "copy", "dtype=bfloat16", "--plan")
    assert code == 0
    assert "left out  videos: 1 in quarantine" in out


def test_the_same_command_finds_its_own_copy_beside_the_source(copied: Path) -> None:
    before = tree(copied)
    code, out, _ = run("copy", copied, copied, "dtype=int8")
    assert code == 0
    assert out.startswith("nothing to do")
    assert tree(copied) == before


def refused(code: int, said: str, *words: object) -> None:
    found, out, err = run("copy", *words)
    assert (found, out) == (code, ""), err
    assert said in message(err)


def test_wrong_words_are_explained(source: Path, copied: Path, tmp_path: Path) -> None:
    new = tmp_path / "copy"
    refused(2, "'dtype' is needed", source, new)
    refused(2, "'dtpe' is not a setting; nearest: dtype", source, new, "dtpe=int8")
    refused(2, "dtype=int4: input should be 'float16'", source, new, "dtype=int4")
    refused(2, "'int8' is no setting; expected key=value", source, new, "int8")
    refused(2, "is of float16: nothing to convert", source, new, "dtype=float16")
    refused(2, "device=gpu is no device", source, new, "dtype=int8", "device=gpu")
    refused(10, "no view whose key starts with 'ff00ff'", f"{source}@ff00ff", new, "dtype=int8")
    refused(10, "does not exist", tmp_path / "nosuch", new, "dtype=int8")
    refused(2, "has 2 views", copied, new, "dtype=float32")
    assert not new.exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    refused(2, "holds other files", source, tmp_path / "other", "dtype=int8")


def test_info_says_what_a_copy_is_and_what_it_costs(copied: Path) -> None:
    key, parent = key_of(copied, "int8"), key_of(copied, "float16")
    code, out, _ = run("info", f"{copied}@{key}")
    assert code == 0
    assert f"copied      from view {parent} (float16)" in out
    assert re.search(
        r"^scales +the largest values in 23 frames  sha256 [0-9a-f]{16}$", out, re.MULTILINE
    )
    assert re.search(r"^time +\d+ % of the workers' time \w+", out, re.MULTILINE)
    assert "STAGE   REL L2  BULK REL L2    COSINE  WORST TOKEN" in out
    content = run_json("info", f"{copied}@{key}")
    assert content["identity"]["derived_from"] == parent
    assert content["calibration"]["num_frames"] == 23
    assert len(content["errors"]) == 4
    assert set(content["seconds"]) == {"read", "compute", "write"}


def test_ls_names_the_view_that_a_copy_is_of(copied: Path) -> None:
    parent = key_of(copied, "float16")
    rows = {row.split()[0]: row for row in run("ls", copied)[1].splitlines()[1:]}
    assert f"  int8 of {parent[:8]}  " in rows[key_of(copied, "int8")]
    assert "  float16  " in rows[parent]
    views = {view["key"]: view["derived_from"] for view in run_json("ls", copied)["views"]}
    assert views == {parent: None, key_of(copied, "int8"): parent}


def test_why_says_in_words_that_a_view_is_a_copy(copied: Path) -> None:
    key, parent = key_of(copied, "int8"), key_of(copied, "float16")
    code, out, _ = run("why", f"{copied}@{key}", "dtype=float32")
    assert code == 5
    assert f"derived_from: a copy of view {parent} -> computed from the sources" in out
    code, out, _ = run("why", copied, "dtype=float16")
    assert code == 0
    assert f"HIT   {parent} holds it (asked from {key})" in out


def test_a_copy_is_verified_like_any_view(copied: Path) -> None:
    code, out, err = run("verify", copied)
    assert code == 0, (out, err)
