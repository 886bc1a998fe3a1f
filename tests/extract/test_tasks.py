"""Cutting into tasks: every missing shard once, and one task that finds the end."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest

from fcache.extract import tasks
from fcache.extract.plan import ExtractPlan, PlannedSource
from fcache.extract.tasks import make_tasks
from fcache.sources.listing import Source
from fcache.store.cache import create_root
from fcache.store.index import ViewIndex
from tests.store.making import PLAIN, fill, request


def planned(tmp_path: Path, expected: int, actual: int, shards: set[int]):
    """A view of one video of which some shards are there."""
    create_root(tmp_path / "cache")
    index = ViewIndex.create(tmp_path / "cache", PLAIN, {})
    wanted = request("x", expected)
    item = index.reserve([wanted], [])[wanted.item]
    fill(index, item, actual, shards)
    source = Source("x", tmp_path / "x", "video", None)
    plan = ExtractPlan(
        cache=tmp_path / "cache",
        key=index.folder.name,
        identity=PLAIN,
        sources=(PlannedSource(source, "x", item, "partial", expected, expected),),
        rejected=(),
        free_bytes=1,
        cached_bytes=0,
        rate=None,
    )
    return plan, index.load()


@pytest.mark.parametrize(
    ("shards", "starts", "open_ended"),
    [
        (set(), [(0, 16), (32, 48)], [False, True]),
        ({0, 3}, [(16, 32)], [False]),  # the last is there and said how many frames there are
        ({1}, [(0, 32), (48,)], [False, True]),
        ({0, 1, 2, 3}, [], []),
    ],
)
def test_missing_shards_are_cut_and_the_last_task_finds_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shards, starts, open_ended
) -> None:
    monkeypatch.setattr(tasks, "TASK_SHARDS", 2)
    monkeypatch.setattr(tasks, "TASKS_PER_WORKER", 100)
    plan, state = planned(tmp_path, 60, 60, shards)
    made = make_tasks(plan, state)
    assert [task.first_frames for task in made] == starts
    assert [task.open_ended for task in made] == open_ended


def test_all_reserved_shards_without_an_end_leave_a_task_that_looks_for_it(tmp_path: Path) -> None:
    plan, _ = planned(tmp_path, 32, 32, set())
    index = ViewIndex(plan.cache / plan.key)
    (item,) = index.load().items.values()
    with suppress(IndexError):  # after the two shards there are rows for
        fill(index, item, 100)
    state = index.load()
    assert state.missing(item, "tokens") == []
    (task,) = make_tasks(plan, state)
    assert (task.first_frames, task.open_ended) == ((), True)


def test_few_workers_get_few_tasks_since_each_decodes_from_the_start(tmp_path: Path) -> None:
    plan, state = planned(tmp_path, 16 * 1000, 16, set())
    assert len(make_tasks(plan, state, 1)) == 4
    assert len(make_tasks(plan, state, 3)) == 13  # 1000 // 12 = 83 shards each
    assert len(make_tasks(plan, state, 100)) == 16  # of TASK_SHARDS = 64
