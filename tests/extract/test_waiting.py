"""Two jobs on one cache: one that waits for the other's shards reads no source in vain."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from fcache.cache import open_cache
from fcache.extract import job, prefetch
from fcache.extract.job import JobSummary
from fcache.extract.request import plan_request, read_request
from fcache.store.claims import Claims
from fcache.store.index import ViewIndex
from fcache.store.layout import Bucket
from fcache.store.verify import unfinished
from tests.extract.images import make_image, make_images
from tests.extract.making import assert_same, expected, make_video, plan_of, stored, words
from tests.extract.running import wait_until

BUCKET = Bucket(32, 64)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The sources that are decoded from here on."""
    seen: list[Path] = []
    real = prefetch.decode

    def watched(path: Path, *more, **options):
        seen.append(path)
        return real(path, *more, **options)

    monkeypatch.setattr(prefetch, "decode", watched)
    monkeypatch.setattr(job, "WAIT_S", 0.02)
    return seen


class Running:
    """A job in a thread, and what it has told."""

    def __init__(self, source: Path | str, cache: Path, **changes) -> None:
        request = read_request([str(source), *words(**changes)])
        plan, manifest = plan_request(request, cache)
        self.events: list[dict] = []
        self._pool = ThreadPoolExecutor(1)
        self._ended: Future[JobSummary] = self._pool.submit(
            job.run_job,
            plan,
            manifest,
            request.config,
            scheduler="inline",
            report=self.events.append,
        )

    def wait_until_it_waits(self) -> None:
        wait_until(
            lambda: self._ended.done() or any(e["event"] == "waiting" for e in self.events), 20
        )
        assert not self._ended.done()

    def result(self) -> JobSummary:
        summary = self._ended.result(timeout=30)
        self._pool.shutdown()
        return summary


def reserve_only(source: Path | str, cache: Path) -> ViewIndex:
    """A view whose rows are given away, and nothing more."""
    plan = plan_of(source, cache)
    index = ViewIndex.create(cache, plan.identity, {})
    index.reserve([one.request for one in plan.sources], [one.name for one in plan.sources])
    return index


@pytest.mark.parametrize("length", [10, 16, 40])
def test_a_video_whose_shards_another_job_writes_is_not_opened(
    tmp_path: Path, opened: list[Path], length: int
) -> None:
    source, cache = make_video(tmp_path / "videos" / "v.mp4", length), tmp_path / "cache"
    index = reserve_only(source.parent, cache)
    with Claims(index.index) as other:
        for shard in range(-(-length // 16)):
            assert other.take(BUCKET.name, shard)
        running = Running(source.parent, cache)
        running.wait_until_it_waits()
        hidden = source.rename(tmp_path / "hidden.mp4")  # who reads it now loses it
        time.sleep(0.3)
        assert opened == []
        hidden.rename(source)
    summary = running.result()
    assert (summary.num_frames, summary.quarantined) == (length, {})
    assert_same(stored(cache, "v"), expected(source))


def test_what_is_open_is_computed_once_while_the_rest_is_waited_for(
    tmp_path: Path, opened: list[Path]
) -> None:
    source, cache = make_video(tmp_path / "videos" / "v.mp4", 40), tmp_path / "cache"
    index = reserve_only(source.parent, cache)
    with Claims(index.index) as other:
        assert other.take(BUCKET.name, 1)
        assert other.take(BUCKET.name, 2)
        running = Running(source.parent, cache)
        running.wait_until_it_waits()
        time.sleep(0.3)
        assert opened == [source]
        assert sum(event.get("frames", 0) for event in running.events) == 16
    assert running.result().num_frames == 40
    assert 2 <= len(opened) <= 3  # the other lets go of its two shards one after the other
    assert_same(stored(cache, "v"), expected(source))


def test_a_source_that_is_broken_is_said_to_be_whatever_else_is_waited_for(
    tmp_path: Path, opened: list[Path]
) -> None:
    (folder := tmp_path / "v").mkdir()
    for number in range(40):
        make_image(folder / f"{number:03d}.png")
    data = (folder / "005.png").read_bytes()
    (folder / "005.png").write_bytes(data[: len(data) // 2])
    index = reserve_only(folder, tmp_path / "cache")
    with Claims(index.index) as other:
        assert other.take(BUCKET.name, 2)
        summary = Running(folder, tmp_path / "cache").result()
    assert list(summary.quarantined) == ["v"]
    assert "005.png" in summary.quarantined["v"]
    assert opened == [folder]


def test_images_whose_shard_another_job_writes_are_not_opened(
    tmp_path: Path, opened: list[Path]
) -> None:
    source, cache = make_images(tmp_path / "set", [f"i{n}" for n in range(20)]), tmp_path / "cache"
    index = reserve_only(source, cache)
    with Claims(index.index) as other:
        assert other.take(BUCKET.name, 0)
        running = Running(source, cache)
        running.wait_until_it_waits()
        time.sleep(0.3)
        assert len(opened) == 4
    assert running.result().num_frames == 20
    assert len(opened) == 20
    view = open_cache(cache).view()
    assert unfinished(view.index, view.index.load()) == []


def test_shards_that_another_job_begins_meanwhile_are_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, cache = make_video(tmp_path / "videos" / "v.mp4", 150), tmp_path / "cache"
    index = reserve_only(source.parent, cache)
    converted: list[int] = []
    begun = threading.Event()
    real = prefetch.draw

    def watched(rgb, placement):
        converted.append(len(converted))
        if len(converted) == 1:
            for shard in range(3, 10):  # the first shard's first frame is at hand
                assert other.take(BUCKET.name, shard)
            begun.set()
        return real(rgb, placement)

    monkeypatch.setattr(prefetch, "draw", watched)
    monkeypatch.setattr(job, "WAIT_S", 0.02)
    with Claims(index.index) as other:
        running = Running(source.parent, cache)
        running.wait_until_it_waits()
        assert begun.is_set()
        assert len(converted) == 3 * 16
    assert running.result().num_frames == 150
    assert_same(stored(cache, "v"), expected(source))
