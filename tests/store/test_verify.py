"""Every damage to a cache is found, and found where it is."""

from __future__ import annotations

import random
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fcache.errors import CacheCorruptError
from fcache.store.cache import StoreCache
from fcache.store.current import Current
from fcache.store.files import MIRROR, seal, unseal
from fcache.store.index import ViewIndex
from fcache.store.layout import SHARD_ROWS
from fcache.store.locks import locked
from fcache.store.records import Name, Outcome
from fcache.store.repair import examine, examine_root, mend
from fcache.store.root import view_folders
from fcache.store.verify import Finding, check_metadata, check_shards, unfinished
from tests.store.making import BUCKET, PLAIN, PYRAMID, fill, make_cache, request


def check(cache: Path, *, repair: bool = False) -> list[Finding]:
    """All that ``fcache verify`` looks at, and mends."""
    findings = examine_root(cache, repair=repair)
    for folder in view_folders(cache):
        view = examine(folder, repair=repair)
        findings += view.findings
        if view.index is not None and view.state is not None:
            found = [one for c in check_shards(view.index, view.state) for one in c.findings]
            if repair and found:
                mend(view.index, found)
            findings += found
    return findings


@pytest.fixture(scope="module", params=[PLAIN, PYRAMID], ids=["plain", "pyramid"])
def sound(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_every_kind_of_file(tmp_path_factory.mktemp("sound"), request.param).folder


@pytest.fixture
def index(sound: Path, tmp_path: Path) -> ViewIndex:
    shutil.copytree(sound.parent, tmp_path / "cache")
    return ViewIndex(tmp_path / "cache" / sound.name)


def make_every_kind_of_file(path: Path, identity: dict[str, object]) -> ViewIndex:
    """A cache with tables, commit records beside them, a quarantine, an end and a manifest."""
    _, index, items = make_cache(path, identity, {"a": 20, "b": 3})
    index.fold()
    wanted = request("later", 20)
    item = index.reserve([wanted], [Name("later", wanted.item)])[wanted.item]
    fill(index, item, 20)
    index.end(Outcome("broken", "quarantined", 0, "cut short", "z"))
    index.end(Outcome(items["b"].item, "done", 3))
    index.embed({"videos": ["a", "b", "later"]}, "e" * 64)
    assert check(path) == []
    return index


def contents(cache: Path) -> dict[Path, bytes]:
    """Every file."""
    return {path: path.read_bytes() for path in cache.rglob("*") if path.is_file()}


def flip(path: Path, offset: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1 << bit
    path.write_bytes(data)


def shard_file(index: ViewIndex, array: int, shard: int) -> Path:
    return index.folder / BUCKET.name / index.layout.arrays(BUCKET)[array].shard_path(shard)


def is_read(index: ViewIndex, path: Path, offset: int) -> bool:
    """Whether a byte means anything: not in a gap between chunks, nor in tables put by."""
    if path.parent.name == "tables":
        return path.name in {table.name for table in Current.read(index.index).tables.values()}
    if "c" not in path.relative_to(index.folder.parent).parts:
        return True
    _, bucket, array, _, shard, *_ = path.relative_to(index.folder.parent).parts
    record = index.load().shards.record((bucket, array, int(shard)))
    index_start = (
        record.size_bytes
        - 4
        - 16 * next(spec.shard_chunks for spec in index.layout.arrays(BUCKET) if spec.name == array)
    )
    return offset >= index_start or any(
        start <= offset < start + size for _, start, size, _ in record.chunks
    )


def test_fifty_random_flips_are_found(index: ViewIndex) -> None:
    cache = index.folder.parent
    files = sorted(path for path in cache.rglob("*") if path.is_file() and path.stat().st_size)
    chance = random.Random(50)
    found = gaps = 0
    while found < 50:
        path = chance.choice(files)
        data = path.read_bytes()
        offset, bit = chance.randrange(len(data)), chance.randrange(8)
        if not is_read(index, path, offset):
            gaps += 1
            flip(path, offset, bit)
            assert check(cache) == [], f"{path} byte {offset} is said to be read by nobody"
        else:
            flip(path, offset, bit)
            assert check(cache) != [], f"{path} byte {offset} bit {bit}"
            found += 1
        path.write_bytes(data)
    assert gaps < 50
    assert check(cache) == []


KINDS = {
    "root document": lambda index: index.folder.parent / "zarr.json",
    "view document": lambda index: index.folder / "zarr.json",
    "bucket document": lambda index: index.folder / BUCKET.name / "zarr.json",
    "array document": lambda index: index.folder / BUCKET.name / "pixels" / "zarr.json",
    "journal": lambda index: index.index / "items" / "000000.json",
    "commit record": lambda index: next((index.index / "parts").glob("*/*.json")),
    "frames table": lambda index: index.index / "tables" / "frames.000001.parquet",
    "shards table": lambda index: index.index / "tables" / "shards.000001.parquet",
    "chunk records": lambda index: index.index / "tables" / "chunks.000001.npy",
    "ended table": lambda index: index.index / "tables" / "ended.000001.parquet",
    "CURRENT": lambda index: index.index / "CURRENT",
    "quarantine": lambda index: index.index / "quarantine" / "broken.json",
    "end": lambda index: next((index.index / "ended").glob("*.json")),
    "manifest": lambda index: next((index.index / "manifests").glob("*.json")),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_record_is_checked_from_its_first_byte_to_its_last(
    index: ViewIndex, kind: str
) -> None:
    path = KINDS[kind](index)
    data = path.read_bytes()
    chance = random.Random(kind)
    inside = [chance.randrange(len(data)) for _ in range(4)]
    for offset in (0, *inside, len(data) - 1):
        flip(path, offset, chance.randrange(8))
        assert check(index.folder.parent) != [], offset
        path.write_bytes(data)
    for cut in (0, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:cut])
        assert check(index.folder.parent) != [], cut


# What the next extract makes again: the video is unfinished then, and said so.
MADE_AGAIN = {"commit record", "quarantine", "end"}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_record_is_mended_to_the_last_bit(index: ViewIndex, kind: str) -> None:
    cache, path = index.folder.parent, KINDS[kind](index)
    before, chance = contents(cache), random.Random(kind)
    size = path.stat().st_size
    for offset in (0, chance.randrange(size), size - 1):
        flip(path, offset, chance.randrange(8))
        (finding,) = check(cache, repair=True)
        assert finding.path == path
        assert check(cache) == []
        if kind in MADE_AGAIN:
            break
        assert contents(cache) == before
    assert path.exists() == (kind not in MADE_AGAIN)


@pytest.mark.parametrize("kind", KINDS)
def test_lost_file_is_noticed_and_restored(index: ViewIndex, kind: str) -> None:
    cache, path = index.folder.parent, KINDS[kind](index)
    before = contents(cache)
    path.unlink()
    if kind in MADE_AGAIN:
        assert check(cache) == []
        assert ("later" in unfinished(index, index.load())) == (kind == "commit record")
        return
    assert [one.path for one in check(cache)] == [path]
    assert [one.path for one in check(cache, repair=True)] == [path]
    assert contents(cache) == before


# ``info --manifest`` reads manifests, the next job mends documents; all else stops every reader. A
# folder without its root document is taken for a cache by ``verify`` alone.
STOPPING = ("root document", "view document", "CURRENT", "journal", "frames table")


@pytest.mark.parametrize(
    ("kind", "how"),
    [(kind, "cut") for kind in STOPPING] + [(kind, "lost") for kind in STOPPING[1:]],
)
def test_damaged_record_stops_readers_with_the_command_that_mends_it(
    index: ViewIndex, kind: str, how: str
) -> None:
    cache, path = index.folder.parent, KINDS[kind](index)
    if how == "cut":
        path.write_bytes(path.read_bytes()[:-9])
    else:
        path.unlink()
    with pytest.raises(CacheCorruptError, match=path.name) as caught:
        StoreCache(cache).view().index.load()
    assert caught.value.run == f"fcache verify '{cache}' --repair"


@pytest.mark.parametrize("number", [0, 1, 2])
def test_lost_journal_record_stops_readers_and_writers(index: ViewIndex, number: int) -> None:
    state = index.load()
    index.reserve([], [Name("alias", next(iter(state.items)))])
    path = index.index / "items" / f"{number:06d}.json"
    path.unlink()
    with pytest.raises(
        CacheCorruptError, match=f"{number:06d}.json' is missing; the journal has 3"
    ):
        index.load()
    with pytest.raises(CacheCorruptError, match="is missing"):
        index.reserve([request("x", 3)], [])
    assert "is missing" in check(index.folder.parent, repair=True)[0].problem
    assert check(index.folder.parent) == []


def test_lost_journal_and_CURRENT_together_are_noticed(index: ViewIndex) -> None:  # noqa: N802
    for path in (*(index.index / "items").iterdir(), index.index / "CURRENT"):
        path.unlink()
    with pytest.raises(CacheCorruptError, match="CURRENT' is missing"):
        index.load()


def test_journal_record_without_its_count_is_what_a_kill_leaves(index: ViewIndex) -> None:
    before = (index.index / "CURRENT").read_bytes()
    wanted = request("killed", 3)
    item = index.reserve([wanted], [Name("killed", wanted.item)])[wanted.item]
    (index.index / "CURRENT").write_bytes(before)
    assert check(index.folder.parent) == []
    more = index.reserve([request("next", 3)], [])[request("next", 3).item]
    assert more.extents[0][0] == item.extents[0][0] + SHARD_ROWS
    assert Current.read(index.index).journal == 4


def test_arrays_that_a_killed_job_grew_are_set_right_by_the_next(index: ViewIndex) -> None:
    for spec in index.layout.arrays(BUCKET):
        path = index.folder / BUCKET.name / spec.name / "zarr.json"
        path.write_bytes(spec.zarr_json(99))
    assert len(check(index.folder.parent)) == len(index.layout.arrays(BUCKET))
    index.reserve([], [])
    assert check(index.folder.parent) == []


def test_records_are_not_compared_while_a_job_changes_them(index: ViewIndex) -> None:
    document = index.folder / BUCKET.name / "pixels" / "zarr.json"
    before = document.read_bytes()
    copy = index.index / MIRROR / "CURRENT"
    found: list[list[Finding]] = []
    looking = threading.Thread(target=lambda: found.append(check(index.folder.parent)))
    with locked(index.index / "lock"):
        flip(document, 9)
        flip(copy, 9)
        looking.start()
        looking.join(0.3)
        assert looking.is_alive()
        flip(copy, 9)
        document.write_bytes(before)
    looking.join()
    assert found == [[]]


DAMAGES: dict[str, tuple[Callable[[bytearray], object], str]] = {
    "payload": (lambda data: data.__setitem__(50, data[50] ^ 1), "chunk 0 fails its checksum"),
    "index": (lambda data: data.__setitem__(-20, data[-20] ^ 1), "the index fails its checksum"),
    "index crc": (lambda data: data.__setitem__(-1, data[-1] ^ 1), "the index fails its checksum"),
    "cut": (lambda data: data.pop(), "were committed"),
    "empty": (lambda data: data.clear(), "the file has 0 bytes"),
    "longer": (lambda data: data.append(0), "were committed"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("array", [0, -1], ids=["features", "pixels"])
def test_damaged_shard_is_found_with_its_videos_and_made_again(
    index: ViewIndex, array: int, damage: str
) -> None:
    path = shard_file(index, array, 2)
    good = path.read_bytes()
    change, problem = DAMAGES[damage]
    data = bytearray(good)
    change(data)
    path.write_bytes(data)
    (finding,) = check(index.folder.parent)
    assert (finding.path, finding.bucket, finding.shard) == (path, BUCKET, 2)
    assert finding.videos == ("b",)
    assert problem in finding.problem
    index.forget(finding.bucket, [finding.shard])
    state = index.load()
    assert unfinished(index, state) == ["b"]
    fill(index, state.items[request("b", 3).item], 3)
    assert check(index.folder.parent) == []
    assert path.read_bytes() == good


def test_flipped_stored_checksum_is_found(index: ViewIndex) -> None:
    record = index.load().shards.record((BUCKET.name, "pixels", 2))
    _, start, size, _ = record.chunks[0]
    flip(shard_file(index, -1, 2), start + size - 1)
    (finding,) = check(index.folder.parent)
    assert finding.problem == "chunk 0 fails its checksum"


def test_missing_and_unreadable_shards_are_found(index: ViewIndex) -> None:
    shard_file(index, 0, 0).unlink()
    path = shard_file(index, 0, 1)
    path.unlink()
    path.mkdir()
    assert [(one.shard, one.problem, one.videos) for one in check(index.folder.parent)] == [
        (0, "the file is missing", ("a",)),
        (1, "the file cannot be read: Is a directory", ("a",)),
    ]


def test_whole_shard_of_other_values_is_not_taken_for_the_committed_one(index: ViewIndex) -> None:
    good, other = shard_file(index, 0, 0), shard_file(index, 0, 3)
    assert good.stat().st_size == other.stat().st_size
    good.write_bytes(other.read_bytes())
    findings = check(index.folder.parent)
    assert {(one.shard, one.videos) for one in findings} == {(0, ("a",))}
    assert len(findings) == SHARD_ROWS * index.layout.arrays(BUCKET)[0].chunks_per_row


def test_damaged_commit_records_are_taken_back_by_forgetting_their_shards(
    index: ViewIndex,
) -> None:
    paths = sorted((index.index / "parts").glob("*/*.json"))
    assert len(paths) == 2
    for path in paths:
        flip(path, 10)
    with pytest.raises(CacheCorruptError):
        index.fold()
    findings = check(index.folder.parent)
    assert [(one.path, one.bucket, one.shard) for one in findings] == [
        (paths[0], BUCKET, 3),
        (paths[1], BUCKET, 4),
    ]
    index.forget(BUCKET, [3, 4])
    assert check(index.folder.parent) == []
    state = index.load()
    assert unfinished(index, state) == ["later"]
    fill(index, state.items[request("later", 20).item], 20)
    assert StoreCache(index.folder.parent).videos == ["a", "b", "later"]


def test_records_that_are_cheap_to_lose_are_given_up(index: ViewIndex) -> None:
    paths = [KINDS[kind](index) for kind in ("quarantine", "end")]
    for path in paths:
        flip(path, 10)
    findings = check(index.folder.parent)
    assert [one.path for one in findings] == paths
    assert all("the next extract" in one.problem for one in findings)
    assert check(index.folder.parent, repair=True) == findings
    assert not any(path.exists() for path in paths)
    assert check(index.folder.parent) == []


def test_bit_that_changes_no_value_is_found(index: ViewIndex) -> None:
    path = KINDS["commit record"](index)
    record = unseal(path)
    data = seal({**record, "stats": {"error": 1e-05}})
    path.write_bytes(data)
    assert check(index.folder.parent) == []
    path.write_bytes(data.replace(b"1e-05", b"1E-05"))
    assert unseal(path)["stats"] == {"error": 1e-05}
    assert [one.path for one in check(index.folder.parent)] == [path]


def test_frames_of_an_item_the_journal_does_not_know_are_found(index: ViewIndex) -> None:
    state = index.load()
    del state.items[request("a", 20).item]
    (finding,) = check_metadata(index, state)
    assert "20 frames are committed for item" in finding.problem


def test_frame_in_a_row_of_another_item_is_found(index: ViewIndex) -> None:
    path = KINDS["commit record"](index)
    record = unseal(path)
    record["frames"][0]["row"] = 5
    path.write_bytes(seal(record))
    findings = check(index.folder.parent)
    # Where it lies and where it belongs: which of the two is wrong cannot be told.
    assert [(one.bucket, one.shard) for one in findings] == [(BUCKET, 0), (BUCKET, 3)]
    assert "in a row that is not its own" in findings[0].problem
    check(index.folder.parent, repair=True)
    assert check(index.folder.parent) == []


def test_frame_that_its_commit_record_lacks_is_found(index: ViewIndex) -> None:
    path = KINDS["commit record"](index)
    record = unseal(path)
    del record["frames"][3]
    path.write_bytes(seal(record))
    (finding,) = check(index.folder.parent)
    assert (finding.bucket, finding.shard) == (BUCKET, 3)


def test_unfinished_counts_neither_complete_nor_quarantined_videos(index: ViewIndex) -> None:
    wanted = [request("quarantined", 3), request("begun", 20), request("waiting", 3)]
    names = ["quarantined", "begun", "waiting"]
    items = index.reserve(
        wanted, [Name(name, one.item) for name, one in zip(names, wanted, strict=True)]
    )
    index.end(Outcome(wanted[0].item, "quarantined", 0, "cut short"))
    begun = items[wanted[1].item]
    fill(index, replace(begun, extents=begun.extents), 20, {begun.row_of(0) // SHARD_ROWS})
    assert unfinished(index, index.load()) == ["begun", "waiting"]
