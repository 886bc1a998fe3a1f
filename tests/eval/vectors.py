"""The official evaluators' cases as frames that the metrics take."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from fcache.eval.tables import FrameTable, Tabulator
from fcache.manifest import Category
from tests.shared import SHARED

FOLDER = SHARED / "vectors" / "metrics"
QUIRKY = [
    "vps_all_short", "vpsq_catflip", "vpsq_crowds", "vpsq_json_area", "vpsq_pred_void",
    "vpsq_thing_first", "vpsq_unlisted_gt",
]  # fmt: skip


@dataclass(frozen=True)
class Listed:
    """A ``SegmentList``."""

    ids: np.ndarray
    category_ids: np.ndarray
    is_crowd: np.ndarray
    areas: np.ndarray

    @classmethod
    def of(cls, rows: list[dict[str, Any]]) -> Listed:
        """From JSON rows."""
        return cls(
            np.array([row["id"] for row in rows], np.int64),
            np.array([row["category_id"] for row in rows], np.int64),
            np.array([row.get("iscrowd", 0) for row in rows], np.bool_),
            np.array([row.get("area", -1) for row in rows], np.int64),
        )


@dataclass(frozen=True)
class Pair:
    """A ``PanopticPair``."""

    video_id: str
    frame_name: str
    truth_ids: np.ndarray
    prediction_ids: np.ndarray
    truth_segments: Listed
    prediction_segments: Listed


@dataclass(frozen=True)
class Labelled:
    """A ``SemanticPair``."""

    video_id: str
    frame_name: str
    truth: np.ndarray
    prediction: np.ndarray
    after_gap: bool = False


def names(family: str) -> list[str]:
    """The cases of a family, from the JSON's own word."""
    paths = sorted(FOLDER.glob("*_*.json"))
    return [p.stem for p in paths if f'"family":"{family}"' in p.read_text()[:400]]


def facts(case: str) -> dict[str, Any]:
    """Returns a case's JSON."""
    table: dict[str, Any] = json.loads((FOLDER / f"{case}.json").read_text())
    return table


def load(case: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Returns a case's JSON and arrays."""
    with np.load(FOLDER / f"{case}.npz") as arrays:
        return facts(case), dict(arrays)


def categories(rows: list[dict[str, Any]] | None = None) -> list[Category]:
    """Those of a case, or VIPSeg's, by ascending id."""
    if rows is None:
        rows = json.loads((FOLDER / "categories_vipseg.json").read_text())
    return [Category(id=r["id"], name=str(r["id"]), isthing=bool(r["isthing"])) for r in rows]


def video_tables(case: str) -> Iterator[list[FrameTable]]:
    """Tables of the videos of a ``vps`` case."""
    facts, arrays = load(case)
    tabulator = Tabulator(categories())
    for number, video in enumerate(facts["videos"]):
        truth, prediction = arrays[f"gt_{number}"], arrays[f"pred_{number}"]
        yield [
            tabulator.table(
                Pair(
                    video["video_id"],
                    f"{t:05d}",
                    truth[t],
                    prediction[t],
                    Listed.of(video["gt_segments"][t]),
                    Listed.of(video["pred_segments"][t]),
                )
            )
            for t in range(len(truth))
        ]


def semantic_videos(case: str) -> Iterator[list[Labelled]]:
    """Frames of the videos of a ``vss`` case."""
    facts, arrays = load(case)
    for number, video in enumerate(facts["videos"]):
        truth, prediction = arrays[f"gt_{number}"], arrays[f"pred_{number}"]
        name = video["video_id"]
        yield [Labelled(name, f"{t:05d}", truth[t], prediction[t]) for t in range(len(truth))]


def image_tables(case: str) -> list[FrameTable]:
    """Tables of the images of a ``pq`` case."""
    facts, arrays = load(case)
    tabulator = Tabulator(categories(facts["categories"]))
    return [
        tabulator.table(
            Pair(
                f"image {number}",
                "0",
                arrays[f"gt_{number}"],
                arrays[f"pred_{number}"],
                Listed.of(image["gt_segments"]),
                Listed.of(image["pred_segments"]),
            )
        )
        for number, image in enumerate(facts["images"])
    ]


def close(value: float, wanted: float | None, tolerance: float = 1e-12) -> bool:
    """Whether a value is the recorded one; None is NaN."""
    return bool(np.isnan(value)) if wanted is None else abs(value - wanted) <= tolerance
