"""Second copies of records: written with them, behind them after a kill, and never in the way."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fcache.errors import CacheCorruptError
from fcache.store.cache import StoreCache
from fcache.store.files import MIRROR, copy_of, seal
from fcache.store.index import ViewIndex
from fcache.store.mirror import pairs
from fcache.store.records import Name, Outcome
from fcache.store.verify import check_copies
from tests.store.making import BUCKET, PLAIN, fill, make_cache, request
from tests.store.test_verify import KINDS, check, contents, flip, make_every_kind_of_file

COPIED = ("view document", "CURRENT", "journal", "frames table", "shards table", "manifest")


class Killed(BaseException):
    """The process was killed here."""


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_every_kind_of_file(tmp_path_factory.mktemp("sound"), PLAIN).folder


@pytest.fixture
def index(sound: Path, tmp_path: Path) -> ViewIndex:
    shutil.copytree(sound.parent, tmp_path / "cache")
    return ViewIndex(tmp_path / "cache" / sound.name)


def conditions(index: ViewIndex) -> set[str]:
    return {pair.look()[0] for pair in pairs(index.index)}


def test_every_record_that_nothing_else_could_restore_has_a_copy(index: ViewIndex) -> None:
    names = {str(pair.path.relative_to(index.folder)) for pair in pairs(index.index)}
    assert names == {
        "zarr.json",
        "index/CURRENT",
        "index/items/000000.json",
        "index/items/000001.json",
        "index/manifests/000000.json",
        "index/tables/chunks.000001.npy",
        *(f"index/tables/{kind}.000001.parquet" for kind in ("frames", "shards", "ended")),
    }
    assert conditions(index) == {"whole"}
    copied = {path for path in (index.index / MIRROR).rglob("*") if path.is_file()}
    assert copied == {pair.copy for pair in pairs(index.index)}


@pytest.mark.parametrize("kind", COPIED)
def test_damaged_copy_is_found_and_restored_while_readers_see_nothing(
    index: ViewIndex, kind: str
) -> None:
    cache, copy = index.folder.parent, copy_of(index.index, KINDS[kind](index))
    before = contents(cache)
    for damage in (lambda: flip(copy, 5), lambda: copy.write_bytes(b"")):
        damage()
        assert StoreCache(cache).videos == ["a", "b", "later"]
        assert [one.path for one in check(cache)] == [copy]
        assert [one.path for one in check(cache, repair=True)] == [copy]
        assert contents(cache) == before


@pytest.mark.parametrize("kind", COPIED)
def test_two_damaged_copies_are_beyond_repair_and_said_to_be(index: ViewIndex, kind: str) -> None:
    cache, path = index.folder.parent, KINDS[kind](index)
    copy = copy_of(index.index, path)
    flip(path, 9)
    copy.unlink()
    before = contents(cache)
    (finding,) = check(cache, repair=True)
    assert finding.path == path
    assert "the file fails its checksum, and its second copy is missing" in finding.problem
    if kind == "manifest":
        assert finding.remedy == "remove"
        assert check(cache) == []
        index.embed({"videos": []}, "f" * 64)
        assert index.manifests() == [{"videos": []}]
        return
    assert finding.remedy is None
    assert f"from a backup, or delete '{index.folder}' and extract again" in finding.problem
    assert contents(cache) == before
    path.unlink()
    copy.write_bytes(b"")
    assert "is missing, and its second copy fails" in check(cache)[0].problem


def test_cache_of_before_there_were_copies_gets_them_at_the_next_write(index: ViewIndex) -> None:
    before = contents(index.folder.parent)
    shutil.rmtree(index.index / MIRROR)
    assert check_copies(index.index) == ([], 9)
    assert check(index.folder.parent) == []
    index.reserve([], [])
    assert check_copies(index.index) == ([], 0)
    assert contents(index.folder.parent) == before


def test_cache_of_before_there_were_copies_gets_them_by_repair(index: ViewIndex) -> None:
    before = contents(index.folder.parent)
    shutil.rmtree(index.index / MIRROR)
    assert check(index.folder.parent, repair=True) == []
    assert contents(index.folder.parent) == before


def test_damaged_file_is_never_copied(index: ViewIndex) -> None:
    shutil.rmtree(index.index / MIRROR)
    for kind in ("manifest", "shards table"):
        flip(KINDS[kind](index), 20)
    index.reserve([], [])
    assert {pair.path for pair in pairs(index.index) if not pair.copy.exists()} == {
        KINDS["manifest"](index),
        KINDS["shards table"](index),
    }


def test_copies_of_tables_go_with_them(index: ViewIndex) -> None:
    for number in range(3):
        index.end(Outcome(f"{number:024d}", "done", 1))
        index.fold()
    held = {path.name for path in (index.index / MIRROR / "tables").iterdir()}
    parquet = (f"{kind}.000004.parquet" for kind in ("frames", "shards", "ended"))
    assert held == {"chunks.000002.npy", *parquet}
    assert conditions(index) == {"whole"}


def reserve(index: ViewIndex) -> None:
    wanted = request("new", 3)
    index.reserve([wanted], [Name("new", wanted.item)])


WRITES: dict[str, Callable[[ViewIndex], None]] = {
    "reserve": reserve,
    "fold": ViewIndex.fold,
    "forget": lambda index: index.forget(BUCKET, [0, 3]),
    "embed": lambda index: index.embed({"videos": ["new"]}, "f" * 64),
}


def rename_up_to(monkeypatch: pytest.MonkeyPatch, count: int) -> list[Path]:
    """Lets that many files get their names; then the process is as if killed."""
    named: list[Path] = []
    replace = Path.replace

    def rename(self: Path, target: Path) -> Path:
        if len(named) == count:
            raise Killed
        named.append(Path(target))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", rename)
    return named


def kill_at_every_file(index: ViewIndex, write: Callable[[ViewIndex], None]):
    """Yields after a kill before each of a write's renames in turn, always from the same start."""
    start = index.folder.parent.with_name("start")
    shutil.copytree(index.folder.parent, start)
    for count in range(100):
        shutil.rmtree(index.folder.parent)
        shutil.copytree(start, index.folder.parent)
        with pytest.MonkeyPatch.context() as monkeypatch:
            named = rename_up_to(monkeypatch, count)
            try:
                write(ViewIndex(index.folder))
            except Killed:
                pass
            else:
                assert count > 1
                return
        yield named


@pytest.mark.parametrize("kind", WRITES)
def test_kill_between_a_file_and_its_copy_is_no_damage(index: ViewIndex, kind: str) -> None:
    behind = 0
    for _ in kill_at_every_file(index, WRITES[kind]):
        assert "b" in StoreCache(index.folder.parent).videos
        assert check_copies(index.index)[0] == []
        # Arrays grow before the journal does; the next job sets them right.
        assert {one.remedy for one in check(index.folder.parent)} <= {"rewrite"}
        behind += "behind" in conditions(index)
        WRITES[kind](ViewIndex(index.folder))
        reserve(ViewIndex(index.folder))
        assert conditions(index) == {"whole"}
        assert check(index.folder.parent) == []
    assert behind > 0


@pytest.mark.parametrize("kind", WRITES)
def test_file_damaged_after_such_a_kill_is_restored_to_a_true_state(
    index: ViewIndex, kind: str
) -> None:
    """The copy may be the one of before: what it names is there still, so nothing is lost."""
    for _ in kill_at_every_file(index, WRITES[kind]):
        path = index.index / "CURRENT"
        before = StoreCache(index.folder.parent).view()
        videos, items = before.videos, before.state.items
        flip(path, 7)
        assert check(index.folder.parent, repair=True)[0].path == path
        after = StoreCache(index.folder.parent).view()
        # What forget has given up may be there again: if it is damaged, it is found again.
        assert after.videos == videos or (kind == "forget" and {*videos} < {*after.videos})
        assert after.state.items == items
        assert check(index.folder.parent) == []


def test_view_document_that_was_lost_is_not_made_anew(index: ViewIndex) -> None:
    cache, path = index.folder.parent, index.folder / "zarr.json"
    before = path.read_bytes()
    path.unlink()
    with pytest.raises(CacheCorruptError, match=r"zarr\.json' is missing") as caught:
        ViewIndex.create(cache, PLAIN, {"fcache": "another"})
    assert caught.value.run == f"fcache verify '{cache}' --repair"
    check(cache, repair=True)
    assert path.read_bytes() == before


def test_jobs_that_made_a_view_at_once_settle_on_one_document(tmp_path: Path) -> None:
    _, first, _ = make_cache(tmp_path, lengths={"a": 3})
    path, copy = first.folder / "zarr.json", copy_of(first.index, first.folder / "zarr.json")
    path.unlink(), copy.unlink()
    second = ViewIndex.create(tmp_path, PLAIN, {"fcache": "the other job"})
    for job in (first, second):
        job.reserve([], [])
        assert conditions(job) == {"whole"}
        assert check(tmp_path) == []


def test_record_that_was_put_in_whole_by_hand_stands(index: ViewIndex) -> None:
    """Sound in itself, it differs from its copy: the file counts."""
    path = index.index / "manifests" / "000000.json"
    path.write_bytes(seal({"sha256": "0" * 64, "manifest": {"videos": ["mine"]}}))
    assert check_copies(index.index) == ([], 1)
    assert check(index.folder.parent, repair=True) == []
    assert index.manifests() == [{"videos": ["mine"]}]
    assert conditions(index) == {"whole"}


def test_copies_are_taken_of_what_a_later_job_adds(index: ViewIndex) -> None:
    state = index.load()
    item = index.extend(state.items[request("b", 3).item], 20)
    fill(index, item, 20, {item.row_of(16) // 16})
    index.fold()
    assert conditions(index) == {"whole"}
