"""Cutting what is missing into tasks of whole shards."""

from __future__ import annotations

from dataclasses import dataclass

from fcache.extract.plan import ExtractPlan
from fcache.sources.listing import Source
from fcache.store.index import ViewState
from fcache.store.layout import SHARD_ROWS, num_shards
from fcache.store.records import Item

TASK_SHARDS = 64  # a longer video is cut, so that workers can share it
TASKS_PER_WORKER = 4  # but no finer: each task decodes its video from the start


@dataclass(frozen=True, slots=True)
class ShardTask:
    """Whole shards of one item, for one worker.

    Attributes:
        first_frames: First frame of each missing shard, in order.
        open_ended: Whether the task goes on to the end of the source, past the reserved rows.
        generation: The tables that lacked these shards.
    """

    item: Item
    source: Source
    sha256: str
    first_frames: tuple[int, ...]
    open_ended: bool
    generation: int


def make_tasks(plan: ExtractPlan, state: ViewState, num_workers: int = 1) -> list[ShardTask]:
    """Cuts what is missing into tasks, long videos into several.

    Args:
        plan: What to extract; each of its items has rows.
        state: The view's bookkeeping.
        num_workers: Workers to share the tasks.
    """
    array = "tokens" if plan.layout.plain else "stage0"
    size = max(TASK_SHARDS, num_shards(plan.todo_frames) // (TASKS_PER_WORKER * num_workers))
    tasks = []
    for planned in plan.todo():
        item = state.items[planned.request.item]
        outcome = state.outcomes.get(item.item)
        ended = outcome is not None and outcome.status == "done"
        firsts = [first for first, _ in state.missing(item, array)]
        cuts = [firsts[i : i + size] for i in range(0, len(firsts), size)]
        if not ended and (not cuts or cuts[-1][-1] + SHARD_ROWS < item.num_rows):
            cuts.append([])  # every reserved shard is there, but where the video ends is not known
        tasks += [
            ShardTask(
                item=item,
                source=planned.source,
                sha256=planned.sha256,
                first_frames=tuple(cut),
                open_ended=not ended and number == len(cuts) - 1,
                generation=state.generation,
            )
            for number, cut in enumerate(cuts)
        ]
    return tasks
