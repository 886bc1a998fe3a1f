"""Random single-bit flips over every file of a real cache: each is found, each is mended.

``FCACHE_TEST_FLIPS`` says how many: half of them fall evenly on all bytes, half on all files.

Each flip is looked for alone: ``fcache verify`` must name its file and nothing else, or be silent
where nobody reads the byte, which the commit record or ``CURRENT`` proves. Then flips in different
files are set together, mended by ``--repair`` and, where something has to be made again, by the
same ``extract``; the whole cache is compared with what it was. That several are set at once hides
nothing: ``--repair`` must name exactly their files, and every file is compared.

Left out: ``lock``, which has no bytes; ``claims``, temporary files and ``verify.json``, which mean
something to a job at work only, and are not there after one.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fcache.cache import open_cache
from fcache.store.current import Current
from fcache.store.files import MIRROR, seal, unseal
from fcache.store.index import ViewIndex
from fcache.store.layout import SHARD_ROWS, Bucket
from tests.cli.running import run_json
from tests.extract.making import PYRAMID, make_video, words
from tests.store.test_verify import contents, flip

FLIPS = int(os.environ.get("FCACHE_TEST_FLIPS", "50"))
TOGETHER = 12  # flips that are mended at once
VIEWS: tuple[dict[str, Any], ...] = (
    {"short_side": 64, "dtype": "float16"},
    {**PYRAMID, "dtype": "int8"},
)
# The times in a commit record: all that is different where a shard is made again.
PASSING = {"provenance": ("started_s", "committed_s"), "stats": ("seconds",)}

Group = tuple[str, str, int]  # view, bucket, shard


@dataclass(frozen=True)
class Cache:
    """A cache with every kind of file, what it is made from, and a copy that nothing happens to."""

    videos: Path
    path: Path
    golden: Path

    def extract(self, view: dict[str, Any], *, folding: bool = False) -> int:
        """The job that made it, killed before it folds or not; returns the frames it computed."""
        command = ["extract", self.videos, "--cache", self.path, "--scheduler", "inline"]
        with pytest.MonkeyPatch.context() as monkeypatch:
            if not folding:
                monkeypatch.setattr(ViewIndex, "fold", lambda self: None)
            return int(run_json(*command, *words(**view), code=3)["frames"])  # 3: one is broken

    def reset(self) -> None:
        """Makes the cache what it was."""
        shutil.rmtree(self.path)
        shutil.copytree(self.golden, self.path)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    folder = tmp_path_factory.mktemp("flips")
    made = Cache(folder / "videos", folder / "cache", folder / "golden")
    make_video(made.videos / "a.mp4", 16)
    make_video(made.videos / "tall.mp4", 3, height=64, width=48)
    (made.videos / "broken.mp4").write_bytes(b"not a video")
    for view in VIEWS:
        made.extract(view, folding=True)
    make_video(made.videos / "b.mp4", 21)
    made.extract(VIEWS[0], folding=True)  # a second generation of tables
    for name, num_frames in {"later": 19, "whole": 16}.items():
        make_video(made.videos / f"{name}.mp4", num_frames)
    make_video(made.videos / "tall_later.mp4", 5, height=64, width=48)
    for view in VIEWS:
        made.extract(view)
    leave_an_end(made)
    assert run_json("verify", made.path)["findings"] == []
    shutil.copytree(made.path, made.golden)
    return made


def leave_an_end(made: Cache) -> None:
    """Makes the last shard of a video one whose job was killed before it saw the video's end."""
    for view in open_cache(made.path).views:
        frames = view.frames("whole")
        name = f"{frames.item.bucket.name}/{frames.rows[0] // SHARD_ROWS:08d}.json"
        part = view.index.index / "parts" / name
        part.write_bytes(seal({**unseal(part), "ended": {}}))
    assert [made.extract(view) for view in VIEWS] == [0, 0]
    assert len(list(made.path.glob("*/index/ended/*.json"))) == len(VIEWS)


@dataclass(frozen=True)
class Flip:
    """One bit of one file, which is named by its path below the cache."""

    name: str
    offset: int
    bit: int

    def set(self, cache: Path) -> None:
        flip(cache / self.name, self.offset, self.bit)


def draw(cache: Path, count: int, rng: random.Random) -> list[Flip]:
    sizes = {
        str(path.relative_to(cache)): path.stat().st_size
        for path in sorted(cache.rglob("*"))
        if path.is_file() and path.name != "lock"
    }
    drawn = []
    for number in range(count):
        (name,) = rng.choices(list(sizes), list(sizes.values()) if number % 2 else None)
        drawn.append(Flip(name, rng.randrange(sizes[name]), rng.randrange(8)))
    return drawn


class Truth:
    """What the untouched cache holds, and what its records say of each byte."""

    def __init__(self, cache: Path) -> None:
        self.files = named(cache)
        self.rows = rows_of(cache)
        self.groups: dict[str, Group] = {}  # of shard files and commit records
        self.num_frames: Counter[Group] = Counter()
        self._ends: dict[str, Group] = {}  # of ends that no commit record carries
        self._read: dict[str, list[range]] = {}
        self._in_force: set[str] = set()
        for view in open_cache(cache).views:
            self._learn(view.key, view.index)

    def is_read(self, flip: Flip) -> bool:
        """Whether anybody reads the byte: not in a gap between chunks, nor in tables put by."""
        if "/tables/" in flip.name:
            return flip.name in self._in_force
        return any(flip.offset in span for span in self._read.get(flip.name, [range(1 << 60)]))

    def unit(self, flip: Flip) -> object:
        """What is mended as one: a row group, or a file and its second copy.

        A video's end goes with its last shard: where both are made again, one tells of the other.
        """
        copied = flip.name.replace(f"index/{MIRROR}/zarr", "zarr").replace(f"{MIRROR}/", "")
        return self.groups.get(flip.name) or self._ends.get(flip.name, copied)

    def _learn(self, key: str, index: ViewIndex) -> None:
        state = index.load()
        for table in Current.read(index.index).tables.values():
            of_tables = f"tables/{table.name}"
            self._in_force |= {f"{key}/index/{at}{of_tables}" for at in ("", f"{MIRROR}/")}
        for bucket, array, shard in list(state.shards.keys()):
            (spec,) = (s for s in index.layout.arrays(Bucket.parse(bucket)) if s.name == array)
            record = state.shards.record((bucket, array, shard))
            name = f"{key}/{bucket}/{spec.shard_path(shard)}"
            for one in (name, f"{key}/index/parts/{bucket}/{shard:08d}.json"):
                self.groups[one] = (key, bucket, shard)
            end = range(record.size_bytes - 16 * spec.shard_chunks - 4, record.size_bytes)
            self._read[name] = [end, *(range(at, at + size) for _, at, size, _ in record.chunks)]
        for path in index.index.glob("ended/*.json"):
            item = state.items[path.stem]
            shard = item.row_of(item.num_rows - 1) // SHARD_ROWS
            self._ends[f"{key}/index/ended/{path.name}"] = (key, item.bucket.name, shard)
        for frame in state.tables.frames.table().to_pylist():
            self.num_frames[key, frame["bucket"], frame["row"] // SHARD_ROWS] += 1


def named(cache: Path) -> dict[str, bytes]:
    """Every file by its path below the cache."""
    return {str(path.relative_to(cache)): data for path, data in contents(cache).items()}


def rows_of(cache: Path) -> list[Any]:
    """What the records say, wherever they lie: each frame, each shard file, each video's end."""
    found = []
    for view in open_cache(cache).views:
        state = view.index.load()
        frames, shards = (t.table().to_pylist() for t in (state.tables.frames, state.tables.shards))
        records = []
        for row in shards:
            told = {}
            for column, passing in PASSING.items():
                held = json.loads(row[column])
                told[column] = {name: held[name] for name in held if name not in passing}
            key = row["bucket"], row["array"], row["shard"]
            records.append((key, state.shards.record(key), row["num_frames"], told))
        rows = [frames, records, state.tables.ended.items()]
        found.append([sorted(kind, key=repr) for kind in rows])
    return found


def rounds(flips: list[Flip], truth: Truth) -> Iterator[list[Flip]]:
    """Deals the flips out, so that no two of a round touch the same."""
    waiting = list(flips)
    while waiting:
        together: dict[object, Flip] = {}
        for one in waiting:
            if len(together) < TOGETHER:
                together.setdefault(truth.unit(one), one)
        for one in together.values():
            waiting.remove(one)
        yield list(together.values())


def found_by_verify(cache: Path, *options: str, code: int) -> list[dict[str, Any]]:
    findings: list[dict[str, Any]] = run_json("verify", cache, *options, code=code)["findings"]
    for one in findings:
        one["name"] = str(Path(one["path"]).relative_to(cache))
    return findings


def find_alone(cache: Path, one: Flip, truth: Truth) -> bool:
    """Sets a flip, looks for it, takes it back."""
    one.set(cache)
    is_read = truth.is_read(one)
    findings = found_by_verify(cache, code=4 if is_read else 0)
    assert {finding["name"] for finding in findings} == ({one.name} if is_read else set()), one
    one.set(cache)
    return is_read


def mend_together(cache: Cache, together: list[Flip], truth: Truth) -> Counter[str]:
    """Sets flips, mends them, compares; returns how many were mended in which way."""
    for one in together:
        one.set(cache.path)
    unread = [one for one in together if not truth.is_read(one)]
    if len(unread) < len(together):
        findings = found_by_verify(cache.path, "--repair", code=4)
        assert {one["name"] for one in findings} == {one.name for one in together} - {
            one.name for one in unread
        }
    else:
        findings = []
    for one in unread:  # nobody's bytes are nobody's to mend
        if (cache.path / one.name).exists():  # tables that were put by go with the next
            one.set(cache.path)
    remade = {truth.groups[one["name"]] for one in findings if one["remedy"] == "remake"}
    gone = {one["name"] for one in findings if one["remedy"] == "remove"}
    compare(cache.path, truth, remade, gone, extracted=False)
    if remade or gone:
        computed = sum(cache.extract(view) for view in VIEWS)
        assert computed == sum(truth.num_frames[group] for group in remade)
        compare(cache.path, truth, remade, set(), extracted=True)
        assert rows_of(cache.path) == truth.rows
    assert found_by_verify(cache.path, code=0) == []
    return Counter(one["remedy"] for one in findings)


def compare(
    cache: Path, truth: Truth, remade: set[Group], gone: set[str], *, extracted: bool
) -> None:
    """Compares every file, but for what a shard that is made again must change.

    Its commit record holds other times; if it was folded, it lies beside the tables, which are a
    generation without it, and ``CURRENT`` names that. What they say is compared by ``rows_of``.
    """
    views = {view for view, _, _ in remade}

    def may_differ(name: str) -> bool:
        if truth.groups.get(name) in remade:
            return "/parts/" in name or not extracted
        view, _, rest = name.partition("/index/")
        return view in views and rest.removeprefix(f"{MIRROR}/").startswith(("CURRENT", "tables/"))

    found = {name: data for name, data in named(cache).items() if not may_differ(name)}
    wanted = {name: data for name, data in truth.files.items() if not may_differ(name)}
    assert found.keys() == wanted.keys() - gone
    assert [name for name in found if found[name] != wanted[name]] == []


def kind_of(name: str) -> str:
    rest = name.partition("/index/")[2]
    if rest:
        return "/".join(["index", *rest.split("/")[: 2 if rest.startswith(MIRROR) else 1]])
    return "zarr.json" if name.endswith("zarr.json") else f"shards of {name.split('/')[2]}"


def test_random_flips_are_found_and_mended_bit_for_bit(cache: Cache) -> None:
    truth = Truth(cache.golden)
    flips = draw(cache.golden, FLIPS, random.Random(FLIPS))
    read = {one: find_alone(cache.path, one, truth) for one in flips}
    mended: Counter[str] = Counter()
    for together in rounds(flips, truth):
        mended += mend_together(cache, together, truth)
        cache.reset()
    kinds = Counter(kind_of(one.name) for one in flips)
    unread = Counter(kind_of(one.name) for one in flips if not read[one])
    print(f"\n{FLIPS} flips over {len(truth.files)} files, found and mended: {dict(mended)}")
    for kind in sorted(kinds):
        print(f"  {kind:24} {kinds[kind]:5}, of them in bytes nobody reads: {unread[kind]}")
    assert sum(mended.values()) + sum(unread.values()) == FLIPS
    assert sum(unread.values()) < FLIPS / 2
