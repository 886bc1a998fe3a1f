"""Cutting what is missing into tasks of whole shards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from fcache.extract.plan import PlannedSource
from fcache.sources.listing import Source
from fcache.store.index import ViewState
from fcache.store.layout import SHARD_ROWS, Bucket
from fcache.store.records import Item

TASK_SHARDS = 64  # a longer video is cut, so that workers can share it
TASKS_PER_WORKER = 4  # but no finer: each task decodes its video from the start
BUNDLE_SHARDS = 16  # short videos go together, so that a device need not wait between them


@dataclass(frozen=True, slots=True)
class Member:
    """One source's part in a task: the item it is, and the content the plan saw."""

    item: Item
    source: Source
    sha256: str


@dataclass(frozen=True, slots=True)
class VideoRun:
    """Whole shards of one item.

    Attributes:
        first_frames: First own frame of each missing shard, in order.
        open_ended: Whether it goes on to the end of the source, past the reserved rows.
    """

    member: Member
    first_frames: tuple[int, ...]
    open_ended: bool

    @property
    def members(self) -> tuple[Member, ...]:
        """The one there is."""
        return (self.member,)

    @property
    def num_shards(self) -> int:
        """Shards to make, as far as is known."""
        return max(1, len(self.first_frames))

    @property
    def shards(self) -> list[tuple[Bucket, int]]:
        """The shards it is known to make."""
        item = self.member.item
        return [(item.bucket, item.row_of(first) // SHARD_ROWS) for first in self.first_frames]


@dataclass(frozen=True, slots=True)
class ImageRun:
    """One shard that single images share, in the order of their rows.

    The order does not depend on how the sources are listed: the file made again is the same.
    """

    members: tuple[Member, ...]

    @property
    def num_shards(self) -> int:
        """The one there is."""
        return 1

    @property
    def shards(self) -> list[tuple[Bucket, int]]:
        """The one there is."""
        item = self.members[0].item
        return [(item.bucket, item.row_of(0) // SHARD_ROWS)]


Run = VideoRun | ImageRun


@dataclass(frozen=True, slots=True)
class ShardTask:
    """Whole shards for one worker, one run after another.

    Attributes:
        generation: The tables that lacked these shards.
    """

    runs: tuple[Run, ...]
    generation: int

    @property
    def members(self) -> Iterator[Member]:
        """Every source's part."""
        return (member for run in self.runs for member in run.members)

    def alone(self) -> list[ShardTask]:
        """A task for each run: alone, it shows over which one a worker dies."""
        return [replace(self, runs=(run,)) for run in self.runs]


def make_tasks(
    todo: Iterable[PlannedSource],
    state: ViewState,
    array: str,
    num_workers: int = 1,
    together: int = 1,
) -> list[ShardTask]:
    """Cuts what is missing into tasks: long videos into several, short ones together.

    Args:
        todo: What to extract; each of its items has rows.
        state: The view's bookkeeping.
        array: Any array of the view.
        num_workers: Workers to share the tasks.
        together: Images that a task has at least, where there are so many.
    """
    todo = list(todo)
    num_missing = sum(len(state.missing(state.items[one.request.item], array)) for one in todo)
    share = num_missing // (TASKS_PER_WORKER * num_workers)
    runs: list[Run] = []
    images: dict[tuple[Bucket, int], list[Member]] = {}
    for planned in todo:
        item = state.items[planned.request.item]
        if item.packed:
            for _, shard in state.missing(item, array):
                images.setdefault((item.bucket, shard), []).append(_member(planned, item))
        else:
            runs += _video_runs(planned, item, state, array, max(TASK_SHARDS, share))
    runs += [
        ImageRun(tuple(sorted(members, key=lambda member: member.item.row_of(0))))
        # Shards of few images stand side by side, for those who compute them together.
        for _, members in sorted(images.items(), key=lambda shard: (-len(shard[1]), shard[0]))
    ]
    return [
        ShardTask(tuple(bundle), state.generation)
        for bundle in _bundles(runs, min(BUNDLE_SHARDS, max(1, share)), together)
    ]


def _member(planned: PlannedSource, item: Item) -> Member:
    return Member(item, planned.source, planned.sha256)


def _video_runs(
    planned: PlannedSource, item: Item, state: ViewState, array: str, size: int
) -> list[VideoRun]:
    """The missing shards of a video, at most ``size`` to a run."""
    ended = state.is_done(item)
    firsts = [first for first, _ in state.missing(item, array)]
    cuts = [firsts[i : i + size] for i in range(0, len(firsts), size)]
    if not ended and (not cuts or cuts[-1][-1] + SHARD_ROWS < item.num_rows):
        cuts.append([])  # every reserved shard is there, but where the video ends is not known
    return [
        VideoRun(_member(planned, item), tuple(cut), not ended and number == len(cuts) - 1)
        for number, cut in enumerate(cuts)
    ]


def _bundles(runs: Sequence[Run], size: int, together: int) -> Iterator[list[Run]]:
    """Groups runs in order, at most ``size`` shards to a group that holds several.

    A group of images goes on until it has ``together``.
    """
    bundle: list[Run] = []
    held = num_images = 0
    for run in runs:
        lacks = isinstance(run, ImageRun) and 0 < num_images < together
        if bundle and not lacks and held + run.num_shards > size:
            yield bundle
            bundle, held, num_images = [], 0, 0
        bundle.append(run)
        held += run.num_shards
        num_images += len(run.members) if isinstance(run, ImageRun) else 0
    if bundle:
        yield bundle
