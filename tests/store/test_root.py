"""Opening paths: what is a cache, what is a view, and where a key prefix begins."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fcache.errors import CacheCorruptError, CacheError, CacheNotFoundError, ConfigError
from fcache.store.cache import StoreCache, create_root, split_key
from fcache.store.index import ViewIndex
from tests.store.making import PLAIN, PYRAMID, make_cache
from tests.store.test_verify import check


def test_key_prefix_follows_the_last_at_sign(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    assert split_key(f"{cache}") == (cache, "")
    assert split_key(f"{cache}@3f") == (cache, "3f")
    assert split_key(f"{cache}@") == (cache, "")
    assert split_key(f"{cache}@oops") == (cache, "oops")  # said to be no view, when it is opened
    assert split_key(f"{tmp_path}/absent@3f") == (tmp_path / "absent", "3f")


def test_path_may_hold_at_signs(tmp_path: Path) -> None:
    cache = tmp_path / "me@home" / "cache@disk"
    assert split_key(str(cache)) == (cache, "")  # to be made: "disk" is no key
    cache.mkdir(parents=True)
    assert split_key(str(cache)) == (cache, "")
    assert split_key(f"{cache}@3f") == (cache, "3f")
    assert split_key(f"{tmp_path}/me@home/new") == (tmp_path / "me@home" / "new", "")


def test_views_are_chosen_by_prefix(tmp_path: Path) -> None:
    first = make_cache(tmp_path, PLAIN, {"a": 1})[1].folder.name
    second = make_cache(tmp_path, PYRAMID, {"b": 1})[1].folder.name
    assert first[0] != second[0]
    cache = StoreCache(tmp_path)
    assert {view.key for view in cache.views} == {first, second}
    assert cache.view(second[:4]).videos == ["b"]
    with pytest.raises(ConfigError, match=r"has 2 views: .* Choose one by") as caught:
        _ = cache.videos
    chosen = re.search(r"Choose one by '(.*)'", str(caught.value))[1]
    assert StoreCache(*split_key(chosen)).videos in (["a"], ["b"])
    assert StoreCache(tmp_path, first[:3]).videos == ["a"]
    for prefix in ("zz", f"{first[:2]}zz"):
        with pytest.raises(CacheNotFoundError, match=f"'{prefix}'"):
            StoreCache(tmp_path, prefix)
        with pytest.raises(CacheNotFoundError, match=f"has no view '{prefix}'"):
            cache.view(prefix)


def test_making_a_cache_again_keeps_it(tmp_path: Path) -> None:
    make_cache(tmp_path / "cache", PLAIN, {"a": 1})
    create_root(tmp_path / "cache")
    assert StoreCache(tmp_path / "cache").videos == ["a"]


def test_cache_is_not_made_over_other_things(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").write_text("x")
    (tmp_path / "zarr").mkdir()
    (tmp_path / "zarr" / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group"}')
    for name in ("file", "folder"):
        with pytest.raises(ConfigError, match="holds other files and is no cache"):
            create_root(tmp_path / name)
    with pytest.raises(CacheCorruptError, match="not a group of fcache's"):
        create_root(tmp_path / "zarr")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / ".zarr.json.0123456789ab.tmp").touch()  # another job's, at this moment
    create_root(tmp_path / "empty")
    assert StoreCache(tmp_path / "empty").views == ()


def test_jobs_that_make_the_same_cache_at_once_agree(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from fcache.store.root import create_root;"
        "from fcache.store.index import ViewIndex; from tests.store.making import PLAIN;"
        "sys.stdin.readline();"
        "[(create_root(Path(sys.argv[1]) / str(k)),"
        " ViewIndex.create(Path(sys.argv[1]) / str(k), PLAIN, {})) for k in range(30)]"
    )
    jobs = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdin=subprocess.PIPE)
        for _ in range(3)
    ]
    for job in jobs:
        job.stdin.write(b"\n")
        job.stdin.close()
    assert [job.wait(60) for job in jobs] == [0, 0, 0]
    assert len(list(tmp_path.glob("*/*/zarr.json"))) == 30


def test_what_is_no_cache_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(CacheNotFoundError, match="does not exist"):
        StoreCache(tmp_path / "absent")
    with pytest.raises(CacheNotFoundError, match="is no cache"):
        StoreCache(tmp_path)


def test_view_given_as_a_cache_points_to_its_cache(tmp_path: Path) -> None:
    index = make_cache(tmp_path / "cache", PLAIN, {"a": 1})[1]
    with pytest.raises(CacheNotFoundError, match="is a view; expected the cache") as caught:
        StoreCache(index.folder)
    path = caught.value.run.split("'")[1]
    assert StoreCache(*split_key(path)).videos == ["a"]


def test_cache_of_a_newer_layout_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_root(tmp_path / "cache")
    monkeypatch.setattr("fcache.store.root.LAYOUT_VERSION", 0)
    with pytest.raises(CacheError, match="has layout 1; this fcache reads up to 0"):
        StoreCache(tmp_path / "cache")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_that_cannot_be_written_is_an_error_a_user_can_mend(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir(mode=0o500)
    with pytest.raises(CacheError, match="expected a writable folder"):
        create_root(tmp_path / "cache")


def test_damaged_view_is_named_and_the_others_stay_readable(tmp_path: Path) -> None:
    damaged: ViewIndex = make_cache(tmp_path, PLAIN, {"a": 1})[1]
    sound = make_cache(tmp_path, PYRAMID, {"b": 1})[1]
    path = damaged.folder / "zarr.json"
    path.write_text(path.read_text().replace("tiny", "tony"))
    with pytest.raises(CacheCorruptError, match=damaged.folder.name):
        StoreCache(tmp_path)
    assert StoreCache(tmp_path, sound.folder.name).videos == ["b"]


@pytest.mark.parametrize("how", ["damaged", "lost"])
def test_damaged_documents_do_not_keep_a_cache_from_being_mended(tmp_path: Path, how: str) -> None:
    views = [make_cache(tmp_path, kind, {"a": 1})[1].folder for kind in (PLAIN, PYRAMID)]
    paths = [tmp_path / "zarr.json", *sorted(view / "zarr.json" for view in views)]
    before = [path.read_bytes() for path in paths]
    for path in paths:
        if how == "lost":
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[1:])
    assert [one.path for one in check(tmp_path)] == paths
    assert [one.path for one in check(tmp_path, repair=True)] == paths
    assert [path.read_bytes() for path in paths] == before
    assert check(tmp_path) == []


def test_group_of_another_program_is_never_written_over(tmp_path: Path) -> None:
    (tmp_path / "obs" / "index").mkdir(parents=True)  # as AnnData's
    text = '{"zarr_format": 3, "node_type": "group"}'
    (tmp_path / "zarr.json").write_text(text)
    with pytest.raises(CacheCorruptError, match="not a group of fcache's") as caught:
        check(tmp_path, repair=True)
    assert caught.value.run is None
    assert (tmp_path / "zarr.json").read_text() == text


def test_view_is_never_made_a_cache_of(tmp_path: Path) -> None:
    folder = make_cache(tmp_path, PLAIN, {"a": 1})[1].folder
    data = (folder / "zarr.json").read_bytes()
    with pytest.raises(CacheNotFoundError, match="is a view"):
        check(folder, repair=True)
    (folder / "zarr.json").write_bytes(data[1:])
    with pytest.raises(CacheCorruptError) as caught:
        check(folder, repair=True)
    assert (folder / "zarr.json").read_bytes() == data[1:]
    assert caught.value.run is None
