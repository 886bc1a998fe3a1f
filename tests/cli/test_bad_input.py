"""What a user may get wrong: one message, the value in it, what was expected, the right code."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fcache.cache import open_cache
from tests.cli.running import message, run, run_json
from tests.extract.making import extract, make_videos, shard_files, shard_hashes, words


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_videos(tmp_path_factory.mktemp("holiday"), {"a": 20, "b": 3})


@pytest.fixture(scope="module")
def done(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache = tmp_path_factory.mktemp("done") / "cache"
    extract(videos, cache)
    return cache


@pytest.fixture
def copied(done: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(done, tmp_path / "cache"))


def refused(code: int, *said: str, command: list[object]) -> None:
    found, out, err = run(*command)
    text = message(err)
    assert found == code, text
    assert out == ""
    for part in said:
        assert part in text, text


def test_sources_that_name_nothing_are_refused(videos: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    end = ["--cache", tmp_path / "cache", *words()]
    refused(2, "no source", command=["extract", *end])
    refused(2, "no video was found", "'" + str(tmp_path), command=["extract", tmp_path, *end])
    near = videos.with_name(videos.name[:-1])
    refused(2, str(near), f"nearest: {videos.name}", command=["extract", near, *end])
    refused(2, "matches nothing", command=["extract", tmp_path / "*.mkv", *end])
    refused(2, "nosuch.toml", "does not exist", command=["extract", "nosuch.toml", *end])
    refused(2, "root=/x", "manifest=", command=["extract", videos, "root=/x", *end])
    refused(2, "cannot join", command=["extract", videos, "manifest=vipseg", *end])
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"model": "vit_smal_patch14_dinov2"}, ["vit_smal_patch14_dinov2", "vit_small_patch14"]),
        ({"weights": "/nowhere/w.pth"}, ["/nowhere/w.pth"]),
        ({"weights": "random:x"}, ["random:x"]),
        ({"shortside": "32"}, ["'shortside' is not a setting", "nearest: short_side"]),
        ({"short_side": "tall"}, ["short_side=tall"]),
        ({"batch": "3"}, ["batch=3", "16"]),
        ({"dtype": "int4"}, ["dtype=int4", "bfloat16"]),
        ({"size": "32x64"}, ["short_side=", "size="]),
        ({"fps": "2", "stride": "2"}, ["fps=", "stride="]),
        ({"device": "tpu9"}, ["device=tpu9", "cpu"]),
        ({"patch": "15"}, ["patch=15", "14"]),
        ({"recipe": "extrac"}, ["extrac", "extract", "fcache recipes"]),
        ({"split": "val"}, ["split=val"]),
        ({"compile": "true", "device": "cpu"}, ["compile=true"]),
    ],
    ids=str,
)
def test_settings_that_say_no_possible_thing_are_refused(
    videos: Path, tmp_path: Path, setting: dict[str, str], said: list[str]
) -> None:
    end = ["--cache", tmp_path / "cache", "--scheduler", "inline", *words(**setting)]
    refused(2, *said, command=["extract", videos, *end])


def test_every_wrong_setting_is_named_at_once(videos: Path, tmp_path: Path) -> None:
    wrong = words(batch=3, dtype="int4", colour="red")
    end = ["--cache", tmp_path / "cache", *wrong]
    refused(2, "batch=3", "dtype=int4", "'colour'", command=["extract", videos, *end])


def test_weights_of_another_architecture_are_refused(videos: Path, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file({"patch_embed.proj.weight": torch.zeros(8, 3, 16, 16)}, path)
    end = ["--cache", tmp_path / "cache", *words(weights=path)]
    refused(2, "w.safetensors", command=["extract", videos, *end])


def test_wrong_command_lines_are_one_message(videos: Path, tmp_path: Path) -> None:
    refused(2, "--cache", "fcache extract --help", command=["extract", videos])
    refused(2, "'extrat'", "fcache --help", command=["extrat"])
    refused(2, "--bogus", command=["ls", tmp_path, "--bogus"])
    refused(2, "--first", command=["extract", videos, "--cache", tmp_path / "c", "--first", "0"])
    end = ["--cache", tmp_path / "c", *words(), "--scheduler", "tcp"]
    refused(2, "--scheduler tcp", "slurm:FILE", command=["extract", videos, *end])


@pytest.mark.parametrize("command", ["ls", "info", "verify", "why", "probe"])
def test_a_cache_that_is_not_there_is_code_10(tmp_path: Path, done: Path, command: str) -> None:
    more = ["dtype=float16"] if command == "why" else []
    refused(10, str(tmp_path / "no"), "does not exist", command=[command, tmp_path / "no", *more])
    refused(10, str(tmp_path), "no cache", command=[command, tmp_path, *more])
    refused(10, "starts with 'ffff'", command=[command, f"{done}@ffff", *more])


def test_a_cache_path_that_holds_something_else_is_refused(videos: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("do not overwrite")
    end = ["--scheduler", "inline", *words()]
    refused(2, "other files", command=["extract", videos, "--cache", tmp_path / "full", *end])
    file = tmp_path / "full" / "thesis.txt"
    refused(2, "thesis.txt", command=["extract", videos, "--cache", file, *end])
    below = file / "cache"
    refused(1, "thesis.txt", command=["extract", videos, "--cache", below, *end])
    assert file.read_text() == "do not overwrite"


def test_several_views_need_a_key(videos: Path, copied: Path) -> None:
    extract(videos / "b.mp4", copied, flip="true")
    keys = [view.key for view in open_cache(copied).views]
    for command in ("info", "probe"):
        refused(2, *keys, f"'{copied}@", command=[command, copied])
    assert run("info", f"{copied}@{keys[1][:6]}")[0] == 0
    assert run("ls", copied)[1].count("test_vit") == 2


def test_a_flipped_bit_is_found_named_taken_back_and_made_again(videos: Path, copied: Path) -> None:
    before = shard_hashes(copied)
    path = next(path for path in shard_files(copied) if "/tokens/c/1/" in str(path))
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)
    code, out, err = run("verify", copied)
    assert code == 4
    assert f"{path}: chunk 0 fails its checksum (a)" in out
    assert message(err).endswith(f"Next: fcache verify '{copied}' --repair")
    code, out, err = run("verify", copied, "--repair")
    assert (code, "taken back" in message(err)) == (4, True)
    assert run("verify", copied)[0] == 1  # unfinished, and no longer damaged
    assert extract(videos, copied).num_frames == 4  # the second shard of a's 20 frames
    assert shard_hashes(copied) == before
    assert run("verify", copied)[0] == 0


def test_reading_a_flipped_bit_is_refused(copied: Path) -> None:
    from fcache.errors import CacheCorruptError

    for path in shard_files(copied):
        if "/pixels/" in str(path):
            path.write_bytes(b"\xff" + path.read_bytes()[1:])
    with pytest.raises(CacheCorruptError):
        open_cache(copied).read("a")


def test_damaged_bookkeeping_is_code_4_and_names_the_file(videos: Path, copied: Path) -> None:
    (view,) = open_cache(copied).views
    for name in ("index/CURRENT", "index/items/000000.json", "zarr.json"):
        path = view.folder / name
        good = path.read_bytes()
        path.write_bytes(good.replace(b'"', b"'", 1))
        for command in (["verify", copied], ["ls", copied], ["info", copied]):
            code, out, err = run(*command)
            assert (code, path.name in out + err) == (4, True), (command, name, out, err)
            message(err)
        end = ["--cache", copied, "--scheduler", "inline", *words()]
        refused(4, path.name, command=["extract", videos, *end])
        path.write_bytes(good)
    assert run("verify", copied)[0] == 0


def test_labels_that_are_not_there_or_do_not_join_are_refused(done: Path, tmp_path: Path) -> None:
    from PIL import Image

    refused(2, "labels=DIR", command=["probe", done])
    refused(2, str(tmp_path / "no"), command=["probe", done, f"labels={tmp_path / 'no'}"])
    (other := tmp_path / "labels" / "other").mkdir(parents=True)
    Image.new("L", (64, 48), 1).save(other / "00000.png")
    code = ["probe", done, f"labels={tmp_path / 'labels'}"]
    refused(2, "video 'a', frame '00000'", "fcache ls", command=code)
    refused(2, "'step' is not a setting", "steps", command=["probe", done, "step=3"])
    refused(2, "words", command=["probe", done, "words"])
    refused(2, "no folder", command=["probe", done, "--picture", tmp_path / "no" / "x.png"])


def test_an_unknown_status_or_recipe_names_those_there_are(done: Path) -> None:
    refused(2, "--status complet", "nearest: complete", command=["ls", done, "--status", "complet"])
    refused(2, "prob", "nearest: probe", command=["recipes", "prob"])
    refused(2, "no.toml", command=["recipes", "./no.toml"])


def test_why_says_which_fields_differ(done: Path) -> None:
    code, out, _ = run("why", done, "batch=4")
    assert (code, out.split()[0]) == (0, "HIT")
    code, out, _ = run("why", done, "dtype=float16", "short_side=64", "weights=random:1")
    assert code == 5
    assert out.startswith("MISS")
    for field in ("dtype", "short_side", "weights_sha256"):
        assert field in out
    assert "compute_dtype" not in out
    found = run_json("why", done, "dtype=float16", code=5)["views"]
    assert len(found) == 1
    assert found[0]["hit"] is None
    assert "dtype" in found[0]["differences"][0]
    refused(2, "'dtyp' is not a setting", command=["why", done, "dtyp=float16"])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")
def test_folders_without_permission_are_named(videos: Path, tmp_path: Path) -> None:
    (locked := tmp_path / "locked").mkdir(mode=0)
    refused(2, "locked", "cannot be read", command=["extract", locked, "--cache", tmp_path / "c"])
    end = ["--scheduler", "inline", *words()]
    refused(5, "cannot be written", command=["extract", videos, "--cache", locked / "c", *end])


def test_a_reader_that_goes_away_is_no_error(done: Path) -> None:
    import sys

    command = f"{sys.executable} -m fcache ls '{done}' --videos | true; echo ${{PIPESTATUS[0]}}"
    ended = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, check=True, timeout=60
    )
    assert (ended.stdout, ended.stderr) == ("0\n", "")
