"""How fast a worker was at the last commits, and what would hold an extraction up."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal

from fcache.store.commits import last_commits
from fcache.store.index import ViewState
from fcache.store.layout import Bucket, ViewLayout

RECENT_SHARDS = 64
_TIMED = {"started_s", "committed_s", "num_frames", "host", "pid"}

Part = Literal["decode", "compute", "write"]
Slowest = Literal["decode", "compute", "write", "disk"]


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast one worker was, and what its time went into.

    Attributes:
        frames_per_s: Frames it committed.
        cost_per_s: The same in units of ``frame_cost``.
        most: What it spent most of the time on: waiting for frames, the network, or waiting for
            the file system.
    """

    frames_per_s: float
    cost_per_s: float
    most: Part


def frame_cost(layout: ViewLayout, bucket: Bucket) -> float:
    """Returns how long a frame on a canvas takes, against one on another; in no unit.

    A block of a ViT does 24 C^2 operations for each of N tokens, and 4 N C more for attention. For
    ViT-S on a CPU that holds within 3 % from 256x448 to 736x1280, where the time per pixel grows to
    2.2 times.
    """
    height, width = layout.grid(bucket, 0)
    attention = height * width / (6 * layout.channels[0]) if layout.plain else 0.0
    return height * width * (1 + attention)


def measured_pace(state: ViewState | None, layout: ViewLayout) -> Pace | None:
    """Returns the pace at a view's last commits; None without any that tell."""
    seconds, num_frames, costs = 0.0, 0, 0.0
    spent: Counter[str] = Counter()
    free_s: dict[tuple[str, int], float] = {}
    for commit in last_commits(state.tables, RECENT_SHARDS) if state else []:
        made = commit.provenance
        if not made.keys() >= _TIMED:
            continue
        worker = made["host"], made["pid"]
        # A worker opens the next shard while the one before is being committed.
        seconds += made["committed_s"] - max(made["started_s"], free_s.get(worker, 0.0))
        free_s[worker] = made["committed_s"]
        num_frames += made["num_frames"]
        costs += made["num_frames"] * frame_cost(layout, commit.bucket)
        spent.update(commit.stats.get("seconds", {}))
    if seconds <= 0:
        return None
    most: Part = max(("compute", "decode", "write"), key=lambda part: spent[part])
    return Pace(num_frames / seconds, costs / seconds, most)


@dataclass(frozen=True, slots=True)
class Bottleneck:
    """What holds an extraction up.

    Attributes:
        slowest: ``disk`` if workers make more than it takes, else what the workers are slowest at.
        margin: How many times faster the other of the two is, workers or disk.
    """

    slowest: Slowest
    margin: float


def find_bottleneck(most: Part, made_per_s: float, taken_per_s: float) -> Bottleneck:
    """Says whether the workers or the disk limit an extraction; the workers if both do.

    Args:
        most: What workers spend most of their time on.
        made_per_s: Frames per second all workers make.
        taken_per_s: Frames per second the disk takes.
    """
    if made_per_s > taken_per_s:
        return Bottleneck("disk", made_per_s / taken_per_s)
    return Bottleneck(most, taken_per_s / made_per_s)
