"""``fcache verify`` as it is typed: samples, an interrupt and what follows, repair."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fcache.store.files import MIRROR, unseal
from fcache.store.index import ViewIndex
from fcache.store.layout import SHARD_ROWS
from fcache.store.records import Name, Part
from fcache.store.tables import Tables
from tests.cli.running import message, run, run_json
from tests.extract.running import finish, spoken, start
from tests.store.making import BUCKET, PLAIN, PYRAMID, fill, make_cache, request
from tests.store.test_verify import contents, flip, shard_file


@pytest.fixture
def index(tmp_path: Path) -> ViewIndex:
    return make_cache(tmp_path / "cache", PLAIN, {"a": 60, "b": 20})[1]


NUM_SHARDS = 3000


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of many shard files, all links to the same two: it takes a while to read."""
    cache = tmp_path_factory.mktemp("large") / "cache"
    _, index, _ = make_cache(cache, PLAIN, {"first": SHARD_ROWS})
    wanted = request("all", NUM_SHARDS * SHARD_ROWS)
    item = index.reserve([wanted], [Name("all", wanted.item)])[wanted.item]
    (path,) = (index.index / "parts").glob("*/*.json")
    part = replace(Part.from_json(unseal(path)), ended={})
    frames = [replace(frame, item=item.item) for frame in part.frames]
    parts = []
    for first, shard in item.shards():
        for spec in index.layout.arrays(BUCKET):
            source, target = (
                index.folder / BUCKET.name / spec.shard_path(number) for number in (0, shard)
            )
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(source, target)
        moved = (
            replace(frame, row=shard * SHARD_ROWS + place, index=first + place)
            for place, frame in enumerate(frames)
        )
        parts.append(replace(part, shard=shard, frames=tuple(moved)))
    tables = Tables.of_parts(parts).with_ended({item.item: NUM_SHARDS * SHARD_ROWS})
    tables.save(index.index, index.load().items)
    return cache


@pytest.fixture
def linked(large: Path, tmp_path: Path) -> Path:
    shutil.copytree(large, tmp_path / "cache", copy_function=os.link)
    return tmp_path / "cache"


def interrupt(cache: Path, *more: object) -> str:
    """Runs verify until it has told of progress, then Ctrl-C; returns its message."""
    process = start("verify", cache, *more)
    assert process.stderr is not None
    assert '"progress"' in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    code, out, err = finish(process)
    assert (code, out) == (130, ""), err
    return "\n".join(spoken(err))


def test_sample_says_what_it_read_of_how_much(index: ViewIndex) -> None:
    cache = index.folder.parent
    code, out, _ = run("verify", cache, "--sample", "25%", "--seed", 4)
    assert code == 0
    assert out.startswith("checked a sample of 3 of 12 shard files (--sample 25% --seed 4), ")
    assert out.endswith(": 0 problems\n")
    told = run_json("verify", cache, "--sample", 2)
    assert told["sample"] == {"amount": "2", "seed": told["sample"]["seed"], "files": 2, "of": 12}
    seeds = {run_json("verify", cache, "--sample", 1)["sample"]["seed"] for _ in range(4)}
    assert len(seeds) > 1
    flip(shard_file(index, 0, 2), 5)
    codes = [run("verify", cache, "--sample", 6, "--seed", seed)[0] for seed in range(8)]
    assert set(codes) == {0, 4}


def test_options_that_contradict_each_other_are_refused(index: ViewIndex) -> None:
    for words, told in {
        ("--seed", 3): "--seed 3 says which sample",
        ("--resume", "--sample", "5%"): "leave --sample and --seed out",
        ("--sample", "0"): "--sample 0 is no part of a cache",
    }.items():
        code, _, err = run("verify", index.folder.parent, *words)
        assert (code, told in message(err)) == (2, True), err


def test_ctrl_c_says_how_far_it_came_and_the_command_that_goes_on(linked: Path) -> None:
    (view,) = linked.glob("*/index")
    broken = min(linked.glob("*/*/pixels/c/*/*/*/*"))
    for path in (broken, linked / "zarr.json"):
        data = path.read_bytes()
        path.unlink()  # a link
        path.write_bytes(data)
        flip(path, 5)
    (view / "CURRENT").unlink()
    told = interrupt(linked, "--repair")
    assert told.startswith("fcache: stopped after ")
    assert f" of {2 * NUM_SHARDS + 2:,} shard files, 3 problems so far.\n" in told
    assert told.endswith(f"Next: fcache verify '{linked}' --resume --repair")
    assert (view / "verify.json").exists()
    code, out, err = run("verify", linked, "--resume", "--repair")
    assert code == 4
    assert f"{broken}: chunk 0 fails its checksum (first)" in out
    first = json.loads(err.splitlines()[0])
    assert (first["event"], first["total"]) == ("progress", 2 * NUM_SHARDS + 2)
    assert first["done"] > 0
    assert message(err) == (
        f"fcache: 3 problems in '{linked}', 1 restored from a second copy, 1 written again, "
        "1 shards taken back; run the same extract again."
    )
    assert not (view / "verify.json").exists()
    assert run_json("verify", linked, code=1) == {
        "bytes": 2 * NUM_SHARDS // 2 * sum(p.stat().st_size for p in _links(linked)),
        "findings": [],
        "unfinished": ["first"],
    }


def _links(cache: Path) -> list[Path]:
    return [next(cache.glob(f"*/*/{name}/c/1/*/*/*")) for name in ("pixels",)] + [
        next(cache.glob("*/*/tokens/c/1/*/*/*/*"))
    ]


def test_sample_that_was_interrupted_goes_on_as_that_sample(linked: Path) -> None:
    told = interrupt(linked, "--sample", "90%", "--seed", 1)
    assert told.endswith(f"Next: fcache verify '{linked}' --resume")
    code, out, _ = run("verify", linked, "--resume")
    assert code == 0
    assert "checked a sample of 5,402 of 6,002 shard files (--sample 90% --seed 1)" in out


def test_new_verify_says_that_another_was_interrupted(linked: Path) -> None:
    interrupt(linked)
    code, _, err = run("verify", linked)
    assert (code, json.loads(err.splitlines()[0])["event"]) == (0, "interrupted_before")
    code, _, err = run("verify", linked, "--resume")
    assert (code, json.loads(err.splitlines()[0])["event"]) == (0, "nothing_to_resume")


@pytest.fixture
def read_only(linked: Path, tmp_path: Path) -> Iterator[Path]:
    for command in (["--bind"], ["-o", "remount,ro,bind"]):
        mount = ["mount", *command, str(linked), str(linked)]
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no folder can be mounted read-only here: {done.stderr.strip()}")
    yield linked
    subprocess.run(["umount", str(linked)], check=True)


def test_on_read_only_media_an_interrupt_is_said_to_be_final(read_only: Path) -> None:
    told = interrupt(read_only, "--sample", "90%", "--seed", 1)
    assert "shard files, 0 problems so far; it cannot be resumed: '" in told
    assert "cannot be written: Read-only file system" in told
    assert told.endswith(f"Next: fcache verify '{read_only}' --sample 90% --seed 1")
    assert run("verify", read_only)[0] == 0


def test_repair_says_what_it_did_to_each_kind(index: ViewIndex) -> None:
    cache = index.folder.parent
    before = contents(cache)
    flip(cache / "zarr.json", 9)
    flip(index.folder / "zarr.json", 9)
    flip(index.index / "CURRENT", 9)
    flip(index.index / MIRROR / "items" / "000000.json", 9)
    code, out, err = run("verify", cache)
    assert code == 4
    assert f"view {index.folder.name}: no shard file was read, its records come first" in out
    assert message(err) == (
        f"fcache: 4 problems in '{cache}'.\nNext: fcache verify '{cache}' --repair"
    )
    code, _, err = run("verify", cache, "--repair")
    assert code == 4
    assert message(err) == (
        f"fcache: 4 problems in '{cache}', 3 restored from a second copy, 1 written again."
    )
    assert contents(cache) == before
    flip(index.index / "CURRENT", 9)
    (index.index / MIRROR / "CURRENT").unlink()
    code, out, err = run("verify", cache, "--repair")
    assert code == 4
    assert f"or delete '{index.folder}' and extract again" in out
    assert message(err) == f"fcache: 1 problems in '{cache}', 1 beyond repair."


def test_copies_that_lack_are_told_of_and_no_problem(index: ViewIndex) -> None:
    cache = index.folder.parent
    shutil.rmtree(index.index / MIRROR)
    code, out, _ = run("verify", cache)
    assert (code, "3 records have no second copy yet" in out) == (0, True)
    assert run("verify", cache, "--repair")[0] == 0
    assert "second copy" not in run("verify", cache)[1]


def test_only_the_view_that_is_named_is_read_and_mended(index: ViewIndex) -> None:
    cache = index.folder.parent
    other = make_cache(cache, PYRAMID, {"a": 3})[1]
    flip(other.index / "CURRENT", 9)
    flip(index.index / "CURRENT", 9)
    before = contents(other.folder)
    assert run("verify", f"{cache}@{index.folder.name[:5]}", "--repair")[0] == 4
    assert run("verify", f"{cache}@{index.folder.name[:5]}")[0] == 0
    assert contents(other.folder) == before
    assert run("verify", cache)[0] == 4


def test_damaged_shards_of_several_canvases_and_views_are_all_taken_back(tmp_path: Path) -> None:
    _, index, items = make_cache(tmp_path, PLAIN, {"a": 20})
    wide = replace(BUCKET, width=128)
    wanted = request("wide", 20, wide)
    items["wide"] = index.reserve([wanted], [Name("wide", wanted.item)])[wanted.item]
    fill(index, items["wide"], 20)
    other = make_cache(tmp_path, PYRAMID, {"a": 20})[1]
    before = {path: data for path, data in contents(tmp_path).items() if "c" in path.parts}
    broken = {
        index.folder / BUCKET.name / "tokens/c/0/0/0/0/0",
        index.folder / wide.name / "pixels/c/1/0/0/0",
        other.folder / BUCKET.name / "stage2/c/1/0/0/0",
        other.folder / BUCKET.name / "pixels/c/1/0/0/0",  # of the same row group
    }
    for path in broken:
        flip(path, 5)
    _, _, err = run("verify", tmp_path, "--repair")
    assert "4 problems" in message(err)
    assert "3 shards taken back; run the same extract again." in message(err)
    lacking = {}
    for view in (index, other):
        state = view.load()
        lacking[view.folder] = {
            (item.bucket.name, shard)
            for item in state.items.values()
            for _, shard in state.missing(item, view.feature_array)
        }
    assert lacking == {
        index.folder: {(BUCKET.name, 0), (wide.name, 1)},
        other.folder: {(BUCKET.name, 1)},
    }
    fill(index, items["a"], 20, {0})
    fill(index, items["wide"], 20, {1})
    fill(other, other.load().items[items["a"].item], 20, {1})
    assert before.items() <= contents(tmp_path).items()
    assert run("verify", tmp_path)[0] == 0
