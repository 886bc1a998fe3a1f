"""VPQ, STQ, mIoU and VC the plain way: whole windows stacked and sorted again for each k.

What the published scripts do, written from the definitions: the numbers that ``bench_eval`` checks
fcache against, and the work it is timed beside. Only what the benchmark's data needs: every id is
listed, and no crowd.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Rows = list[dict[str, Any]]
NUM_CATEGORIES = 124


def read_ids(path: Path) -> np.ndarray:
    """A panoptic PNG's segment ids."""
    rgb = np.array(Image.open(path), dtype=np.uint32)
    return rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2]


def vpq(videos: Sequence[dict[str, Any]], num_frames: int) -> float:
    """VPQ_k over all categories, 0..1."""
    sums = np.zeros((4, NUM_CATEGORIES))  # IoU, TP, FP, FN
    for video in videos:
        truth = [read_ids(path) for path in video["truth"]]
        prediction = [read_ids(path) for path in video["prediction"]]
        for start in range(len(truth) - num_frames + 1):
            frames = slice(start, start + num_frames)
            window = np.stack(truth[frames]), np.stack(prediction[frames])
            add_window(sums, window, video["truth_rows"][frames], video["prediction_rows"][frames])
    weight = sums[1] + (sums[2] + sums[3]) / 2
    return float((sums[0] / np.maximum(weight, 1))[weight > 0].mean())


def add_window(
    sums: np.ndarray,
    window: tuple[np.ndarray, np.ndarray],
    truth_rows: Sequence[Rows],
    prediction_rows: Sequence[Rows],
) -> None:
    """Adds the matches of one window."""
    truths: dict[int, dict[str, int]] = {}
    guesses: dict[int, dict[str, int]] = {}
    for rows, tubes in ((truth_rows, truths), (prediction_rows, guesses)):
        for row in (row for frame in rows for row in frame):
            tube = tubes.setdefault(row["id"], {"category": row["category_id"], "area": 0})
            tube["area"] += row["area"]
    for number, area in zip(*np.unique(window[1], return_counts=True), strict=True):
        if number:
            guesses[int(number)]["area"] = int(area)
    pairs = window[0].astype(np.uint64) << 32 | window[1].astype(np.uint64)
    shared = {
        (int(key) >> 32, int(key) & 0xFFFFFFFF): int(count)
        for key, count in zip(*np.unique(pairs, return_counts=True), strict=True)
    }
    matched: tuple[set[int], set[int]] = (set(), set())
    for (left, right), pixels in shared.items():
        if left not in truths or right not in guesses:
            continue
        category = truths[left]["category"]
        union = truths[left]["area"] + guesses[right]["area"] - pixels - shared.get((0, right), 0)
        if category == guesses[right]["category"] and pixels / union > 0.5:
            sums[:2, category] += pixels / union, 1
            matched[0].add(left)
            matched[1].add(right)
    for left in truths.keys() - matched[0]:
        sums[3, truths[left]["category"]] += 1
    for right in guesses.keys() - matched[1]:
        if shared.get((0, right), 0) / guesses[right]["area"] <= 0.5:
            sums[2, guesses[right]["category"]] += 1


def stq(videos: Sequence[dict[str, Any]], things: set[int]) -> float:
    """STQ, 0..1."""
    size = NUM_CATEGORIES + 1
    confusion = np.zeros((size, size), np.int64)
    association, num_tracks = 0.0, 0
    for video in videos:
        areas: tuple[dict[int, int], ...] = tuple(defaultdict(int) for _ in range(3))
        numbers: tuple[dict[int, int], dict[int, int]] = ({}, {})
        for position in range(len(video["truth"])):
            maps = [
                labelled(read_ids(video[side][position]), video[f"{side}_rows"][position], known)
                for side, known in zip(("truth", "prediction"), numbers, strict=True)
            ]
            add_frame(confusion, areas, maps, things)
        for left, area in areas[0].items():
            num_tracks += 1
            for right, other in areas[1].items():
                pixels = areas[2].get(left << 24 | right, 0)
                association += pixels * pixels / (area + other - pixels) / area
    confusion[-1] = 0
    hit = np.diag(confusion)
    union = confusion.sum(0) + confusion.sum(1) - hit
    return float(np.sqrt(association / num_tracks * (hit / np.maximum(union, 1))[union > 0].mean()))


def labelled(ids: np.ndarray, rows: Rows, known: dict[int, int]) -> np.ndarray:
    """Labels (category << 16) + number, a mask a segment."""
    labels = np.full(ids.shape, (255 << 16) + 255, np.int64)
    for row in rows:
        number = known.setdefault(row["id"], len(known))
        labels[ids == row["id"]] = (row["category_id"] << 16) + number
    return labels


def add_frame(
    confusion: np.ndarray,
    areas: Sequence[dict[int, int]],
    maps: Sequence[np.ndarray],
    things: set[int],
) -> None:
    """Adds one frame's pixels, pixel by pixel as the class does."""
    categories = [np.where(m >> 16 == 255, NUM_CATEGORIES, m >> 16) for m in maps]
    cells = categories[0].reshape(-1) * len(confusion) + categories[1].reshape(-1)
    for cell, count in zip(*np.unique(cells, return_counts=True), strict=True):
        confusion[cell // len(confusion), cell % len(confusion)] += count
    masks = [np.zeros(maps[0].shape, np.bool_) for _ in maps]
    for mask, category in zip(masks, categories, strict=True):
        for thing in things:
            mask |= category == thing
    crowd = masks[0] & (maps[0] & 0xFFFF == 0)
    left, right = masks[0] & ~crowd, masks[1] & ~crowd
    both = left & right
    for area, labels in zip(
        areas, (maps[0][left], maps[1][right], maps[0][both] << 24 | maps[1][both]), strict=True
    ):
        for label, count in zip(*np.unique(labels, return_counts=True), strict=True):
            area[int(label)] += int(count)


def semantic(videos: Sequence[tuple[list[Path], list[Path]]]) -> tuple[float, float]:
    """mIoU and weighted IoU, 0..1."""
    confusion = np.zeros((NUM_CATEGORIES, NUM_CATEGORIES), np.int64)
    for truths, predictions in videos:
        for left, right in zip(truths, predictions, strict=True):
            truth = np.array(Image.open(left)).astype(np.int64) - 1
            prediction = np.array(Image.open(right)).astype(np.int64)
            known = (truth >= 0) & (truth < NUM_CATEGORIES)
            cells = NUM_CATEGORIES * truth[known] + prediction[known]
            confusion += np.bincount(cells, minlength=NUM_CATEGORIES**2).reshape(confusion.shape)
    hit, rows = np.diag(confusion), confusion.sum(1)
    iou = hit / np.maximum(rows + confusion.sum(0) - hit, 1)
    return float(iou[rows > 0].mean()), float(iou @ rows / rows.sum())


def consistency(videos: Sequence[tuple[list[Path], list[Path]]], num_frames: int) -> float:
    """VC_n, 0..1."""
    clips = []
    for paths in videos:
        sides = [[np.array(Image.open(path)) for path in side] for side in paths]
        for start in range(len(sides[0]) - num_frames):
            stay = []
            for side in sides:
                same = np.ones(side[0].shape, np.bool_)
                for frame in side[start + 1 : start + num_frames]:
                    same &= frame == side[start]
                stay.append(same)
            clips.append((stay[0] & stay[1]).sum() / stay[0].sum())
    return float(np.mean(clips))
