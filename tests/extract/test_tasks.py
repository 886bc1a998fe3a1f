"""Cutting into tasks: every missing shard once, and one task that finds the end."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from fcache.extract import tasks
from fcache.extract.plan import ExtractPlan, PlannedSource
from fcache.extract.tasks import ImageRun, make_tasks
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
        pace=None,
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
    runs = [run for task in make_tasks(plan.todo(), state, "tokens") for run in task.runs]
    assert [run.first_frames for run in runs] == starts
    assert [run.open_ended for run in runs] == open_ended


def test_all_reserved_shards_without_an_end_leave_a_task_that_looks_for_it(tmp_path: Path) -> None:
    plan, _ = planned(tmp_path, 32, 32, set())
    index = ViewIndex(plan.cache / plan.key)
    (item,) = index.load().items.values()
    with suppress(IndexError):  # after the two shards there are rows for
        fill(index, item, 100)
    state = index.load()
    assert state.missing(item, "tokens") == []
    (task,) = make_tasks(plan.todo(), state, "tokens")
    (run,) = task.runs
    assert (run.first_frames, run.open_ended) == ((), True)


def test_few_workers_get_few_tasks_since_each_decodes_from_the_start(tmp_path: Path) -> None:
    plan, state = planned(tmp_path, 16 * 1000, 16, set())

    def count(num_workers: int) -> int:
        return len(make_tasks(plan.todo(), state, "tokens", num_workers))

    assert count(1) == 4
    assert count(3) == 13  # 1000 // 12 = 83 shards each
    assert count(100) == 16  # of TASK_SHARDS = 64


def many(tmp_path: Path, lengths: list[int], *, packed: bool = False):
    """A view of videos, or images, of which nothing is there."""
    create_root(tmp_path / "cache")
    index = ViewIndex.create(tmp_path / "cache", PLAIN, {})
    wanted = [replace(request(f"v{n}", length), packed=packed) for n, length in enumerate(lengths)]
    items = index.reserve(wanted, [])
    todo = [
        PlannedSource(
            Source(f"v{n}", tmp_path / f"v{n}", "image" if packed else "video", None),
            one.content,
            items[one.item],
            "new",
            length,
            length,
        )
        for n, (one, length) in enumerate(zip(wanted, lengths, strict=True))
    ]
    return todo, index


def test_short_videos_go_together_and_every_one_goes_once(tmp_path: Path) -> None:
    todo, index = many(tmp_path, [24] * 100)
    made = make_tasks(todo, index.load(), "tokens", 2)
    assert [sum(run.num_shards for run in task.runs) for task in made] == [16] * 12 + [8]
    names = [member.source.video_id for task in made for member in task.members]
    assert names == [f"v{n}" for n in range(100)]
    assert [len(alone.runs) for alone in made[0].alone()] == [1] * 8


def test_few_short_videos_are_shared_by_the_workers(tmp_path: Path) -> None:
    todo, index = many(tmp_path, [16] * 8)
    assert len(make_tasks(todo, index.load(), "tokens", 2)) == 8


def test_images_of_a_shard_are_one_run(tmp_path: Path) -> None:
    todo, index = many(tmp_path, [1] * 40, packed=True)
    made = make_tasks(todo, index.load(), "tokens")
    runs = [run for task in made for run in task.runs]
    assert all(isinstance(run, ImageRun) for run in runs)
    assert [len(run.members) for run in runs] == [16, 16, 8]
    assert [shard for run in runs for _, shard in run.shards] == [0, 1, 2]
