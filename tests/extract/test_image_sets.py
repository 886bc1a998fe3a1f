"""A set of single images as large and as mixed as COCO: few shard files, little padding."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from fcache.extract.plan import KnownSource
from fcache.extract.request import read_request
from fcache.extract.survey import make_plan
from fcache.extract.tasks import ImageRun, make_tasks
from fcache.sources.listing import Source
from fcache.store.cache import create_root
from fcache.store.index import ViewIndex
from fcache.store.layout import SHARD_ROWS
from fcache.store.records import Item
from tests.extract.images import filled, make_image
from tests.extract.making import assert_same, assert_sound, expected, extract, stored, words

NUM_IMAGES = 118_000  # about COCO's train2017
# Its long sides are 640 px for nine images in ten; most short ones come from a few cameras.
COMMON_SHORT = (480, 427, 426, 425, 428, 424)


def sizes(rng: random.Random) -> tuple[int, int]:
    long = 640 if rng.random() < 0.9 else rng.randint(300, 640)
    short = rng.choice(COMMON_SHORT) if rng.random() < 0.75 else rng.randint(200, long)
    short = min(short, long)
    return (short, long) if rng.random() < 0.7 else (long, short)


def padding(items: list[Item]) -> float:
    """The part of all canvases that no image covers."""
    covered = sum(int(i.placement["crop_h"]) * int(i.placement["crop_w"]) for i in items)
    return 1 - covered / sum(item.bucket.height * item.bucket.width for item in items)


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        (1, {"short_side": "800", "long_side_max": "1333"}),
        (8, {"short_side": "480..1080", "crop": "604"}),
    ],
    ids=["whole", "crops"],
)
def test_a_set_like_coco_gets_few_shards_and_little_padding(
    tmp_path: Path, part: int, changes: dict[str, str]
) -> None:
    rng, cache = random.Random(0), tmp_path / "cache"
    known = [
        KnownSource(
            Source(f"{n:012d}", tmp_path / f"{n:012d}.jpg", "image", "train"),
            f"{n:064x}",
            1,
            *sizes(rng),
        )
        for n in range(NUM_IMAGES // part)
    ]
    request = read_request([str(make_image(tmp_path / "any.png")), *words(**changes)])
    plan = make_plan(cache, request.identity, known, request.config, trust_manifest=True)
    create_root(cache)
    index = ViewIndex.create(cache, plan.identity, {})
    made = index.reserve((s.request for s in plan.sources), (s.name for s in plan.sources))
    items = list(made.values())
    assert len(items) == NUM_IMAGES // part
    rows = {(item.bucket, item.row_of(0)) for item in items}
    assert len(rows) == NUM_IMAGES // part
    shards = {(bucket, row // SHARD_ROWS) for bucket, row in rows}
    assert len(shards) <= 10_000 // part
    assert padding(items) <= 0.1
    tasks = make_tasks(plan.todo(), index.load(), index.feature_array, 8)
    runs = [run for task in tasks for run in task.runs]
    assert all(isinstance(run, ImageRun) for run in runs)
    assert len(runs) == len(shards)
    assert sum(len(run.members) for run in runs) == NUM_IMAGES // part


def test_a_small_set_of_many_sizes_is_extracted_into_few_shards(tmp_path: Path) -> None:
    rng, cache, folder = random.Random(1), tmp_path / "cache", tmp_path / "set"
    twenty = [tuple(side // 8 for side in sizes(rng)) for _ in range(20)]
    for number in range(200):
        make_image(folder / f"{number:03d}.png", twenty[number % 20])
    summary = extract(f"{folder}/*.png", cache, short_side=48, dtype="float16")
    assert (summary.num_videos, summary.num_frames) == (200, 200)
    held = filled(cache)
    buckets = {bucket for bucket, _ in held}
    assert len(held) <= 200 // SHARD_ROWS + len(buckets)
    for number in range(0, 200, 23):
        pixels, stages = expected(folder / f"{number:03d}.png", "image", short_side=48)
        halves = [stage.astype("float16") for stage in stages]
        assert_same(stored(cache, f"{number:03d}"), (pixels, halves))
    assert_sound(cache)
