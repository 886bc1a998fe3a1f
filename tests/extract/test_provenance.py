"""Provenance: what made each shard is recorded, and a difference warns; only identity decides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import PIL
import pytest
import torch

from fcache.cache import open_cache
from fcache.extract import producer, worker
from fcache.store.commits import last_commits
from fcache.store.inspect import origins
from tests.extract.images import make_images
from tests.extract.making import assert_same, extract, make_videos, shard_hashes, stored

LENGTHS = {"a": 5, "b": 3}


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_videos(tmp_path_factory.mktemp("videos"), LENGTHS)


def pretend(monkeypatch: pytest.MonkeyPatch, **changes: str) -> None:
    """Workers of here on say that they are made of other versions."""
    for module, name in ((producer, "versions"), (worker, "decoder_versions")):
        real = getattr(module, name)

        def changed(*args: Any, real=real, **more: Any) -> dict[str, str]:
            found = real(*args, **more)
            return {**found, **{key: changes[key] for key in changes if key in found}}

        monkeypatch.setattr(module, name, changed)


def records(cache: Path) -> list[dict[str, Any]]:
    """What every row group says it was made with, in the order they were committed."""
    tables = open_cache(cache).view().state.tables
    return [commit.provenance for commit in last_commits(tables, 99)]


def warnings(events: list[dict[str, Any]]) -> list[dict[str, list[str]]]:
    return [event["differences"] for event in events if event["event"] == "provenance"]


def test_every_row_group_says_what_decoded_and_what_computed_it(
    videos: Path, tmp_path: Path
) -> None:
    extract(videos, tmp_path / "cache")
    for record in records(tmp_path / "cache"):
        assert record["torch"] == torch.__version__
        assert record["pillow"] == PIL.__version__
        assert record["pyav"].startswith(f"{av.__version__}, libavcodec ")
        assert {"timm", "device", "attention", "batch", "host", "pid"} <= record.keys()


def test_what_decodes_no_video_names_no_video_decoder(tmp_path: Path) -> None:
    extract(make_images(tmp_path / "set", ["x", "y"]), tmp_path / "cache")
    (record,) = records(tmp_path / "cache")
    assert "pyav" not in record
    assert record["pillow"] == PIL.__version__


@pytest.mark.parametrize(
    "changes",
    [{"attention": "xformers 0"}, {"pyav": "1.0"}, {"torch": "1.0", "timm": "0.1"}],
    ids=str,
)
def test_another_version_warns_once_is_recorded_and_computes_only_what_lacks(
    videos: Path, tmp_path: Path, changes: dict[str, str]
) -> None:
    cache = tmp_path / "cache"
    with pytest.MonkeyPatch.context() as patch:
        pretend(patch, **changes)
        extract(videos / "a.mp4", cache)
    before, (first,) = shard_hashes(cache), records(cache)
    assert {name: first[name] for name in changes} == changes
    events: list[dict[str, Any]] = []
    assert extract([videos / "a.mp4", videos / "b.mp4"], cache, events=events).num_frames == 3
    _, second = records(cache)
    assert warnings(events) == [{name: [changes[name], second[name]] for name in changes}]
    assert before.items() <= shard_hashes(cache).items()
    (view,) = open_cache(cache).views
    assert view.videos == ["a", "b"]
    assert len(origins(view)) == 2
    # Both are known of the view from now on.
    make_videos(tmp_path / "more", {"c": 2})
    events.clear()
    assert extract([videos, tmp_path / "more"], cache, events=events).num_frames == 2
    assert warnings(events) == []


def test_versions_that_differ_decide_no_bit_of_the_key(videos: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        pretend(patch, torch="1.0", pyav="1.0", pillow="1.0")
        extract(videos, tmp_path / "one")
    extract(videos, tmp_path / "other")
    one, other = (open_cache(tmp_path / name).view() for name in ("one", "other"))
    assert one.key == other.key
    for name in LENGTHS:
        assert_same(stored(tmp_path / "one", name), stored(tmp_path / "other", name))


def test_the_batch_and_the_machine_warn_of_nothing(videos: Path, tmp_path: Path) -> None:
    extract(videos / "a.mp4", tmp_path / "cache")
    events: list[dict[str, Any]] = []
    extract(videos, tmp_path / "cache", batch=4, events=events)
    assert warnings(events) == []
    assert [record["batch"] for record in records(tmp_path / "cache")] == [1, 4]


def test_nothing_is_warned_of_where_nothing_is_computed(videos: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        pretend(patch, torch="1.0")
        extract(videos, tmp_path / "cache")
    events: list[dict[str, Any]] = []
    assert extract(videos, tmp_path / "cache", events=events).num_frames == 0
    assert warnings(events) == []
