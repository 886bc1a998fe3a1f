"""Shards are claimed ahead of their turn, and tasks of one worker overlap at their ends."""

from __future__ import annotations

from pathlib import Path

import pytest
from distributed import LocalCluster

from fcache.extract.shards import ShardSequence
from fcache.store.claims import Claims
from tests.bench.vitg import QUICK, create_index
from tests.extract.making import extract, make_videos, shard_hashes

LENGTHS = {"a": 20, "b": 5, "c": 18, "d": 3}


def test_worker_of_two_threads_stores_the_bits_of_one(tmp_path: Path) -> None:
    videos = make_videos(tmp_path / "videos", LENGTHS)
    extract(videos, tmp_path / "inline")
    with LocalCluster(
        n_workers=1,
        threads_per_worker=2,
        processes=False,
        protocol="tcp",
        host="127.0.0.1",
        dashboard_address=None,
    ) as cluster:
        events: list[dict] = []
        summary = extract(
            videos, tmp_path / "cache", scheduler=cluster.scheduler_address, events=events
        )
    assert summary.num_frames == sum(LENGTHS.values())
    assert sum(event["event"] == "commit" for event in events) == 6
    assert shard_hashes(tmp_path / "cache") == shard_hashes(tmp_path / "inline")


def test_shard_is_taken_ahead_unless_another_writer_holds_it(tmp_path: Path) -> None:
    index, items = create_index(tmp_path, QUICK)
    bucket, shard = QUICK.bucket, items[0].row_of(0) // 16
    with Claims(index.index) as theirs:
        with Claims(index.index) as ours, ShardSequence(index, ours, 0, {}, print) as shards:
            assert theirs.take(bucket.name, shard)
            assert not shards.take(bucket, shard)
            theirs.release(bucket.name, shard)
            assert shards.take(bucket, shard)
            assert shards.take(bucket, shard)
            assert not theirs.take(bucket.name, shard)
        assert theirs.take(bucket.name, shard)  # what was never turned to is given up


@pytest.mark.parametrize("batch", [1, 16])
def test_shards_are_the_same_however_far_writing_lags(
    batch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fcache.extract.shards.BEHIND_BYTES", 1)
    videos = make_videos(tmp_path / "videos", LENGTHS)
    extract(videos, tmp_path / "cache", batch=batch)
    monkeypatch.undo()
    extract(videos, tmp_path / "other", batch=batch)
    assert shard_hashes(tmp_path / "cache") == shard_hashes(tmp_path / "other")
