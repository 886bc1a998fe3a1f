"""Tiny videos for the metrics, a string of digits a frame."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fcache.eval.quirks import Definition
from fcache.eval.vps import VideoPanopticScores
from fcache.manifest import Category
from tests.eval.vectors import Labelled, Listed, Pair

CAR, DOG, SKY, ROAD = range(4)
CATEGORIES = [
    Category(id=CAR, name="car", isthing=True),
    Category(id=DOG, name="dog", isthing=True),
    Category(id=SKY, name="sky", isthing=False),
    Category(id=ROAD, name="road", isthing=False),
]


def ids(text: str) -> np.ndarray:
    """One row of pixels; '.' is void."""
    return np.array([[0 if character == "." else int(character) for character in text]], np.int32)


def pair(
    truth: str,
    prediction: str,
    truth_rows: Sequence[tuple[int, int]],
    prediction_rows: Sequence[tuple[int, int]],
    *,
    crowd: Sequence[int] = (),
    areas: dict[int, int] | None = None,
    frame: str = "0",
) -> Pair:
    """A frame of segments (id, category)."""
    return Pair(
        "v",
        frame,
        ids(truth),
        ids(prediction),
        listed(truth, truth_rows, crowd, areas),
        listed(prediction, prediction_rows, (), None),
    )


def listed(
    text: str, rows: Sequence[tuple[int, int]], crowd: Sequence[int], areas: dict[int, int] | None
) -> Listed:
    """Rows as JSON would have them."""
    return Listed.of(
        [
            {
                "id": number,
                "category_id": category,
                "iscrowd": number in crowd,
                "area": (areas or {}).get(number, text.count(str(number))),
            }
            for number, category in rows
        ]
    )


def scored(
    videos: Sequence[Sequence[Pair]],
    definition: Definition = "official",
    windows: Sequence[int] = (1, 2),
) -> VideoPanopticScores:
    """Scores of videos."""
    scores = VideoPanopticScores(CATEGORIES, windows, definition)
    for video in videos:
        for frame in video:
            scores.add(frame)
        scores.end_video()
    return scores


def labelled(
    truth: Sequence[str], prediction: Sequence[str], gap: int | None = None
) -> list[Labelled]:
    """Frames of labels, a digit a pixel."""
    return [
        Labelled(
            "v",
            str(t),
            np.array([list(map(int, left))], np.uint8),
            np.array([list(map(int, right))], np.uint8),
            after_gap=t == gap,
        )
        for t, (left, right) in enumerate(zip(truth, prediction, strict=True))
    ]
