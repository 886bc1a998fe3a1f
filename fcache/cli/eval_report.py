"""Results of ``fcache eval`` as names and numbers, in the scales that leaderboards print.

VPQ and PQ, with the SQ and RQ of images, go from 0 to 100, everything else from 0 to 1. Names are
those of ``manifests/published.toml``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from fcache.eval.quirks import Quirk
from fcache.eval.vpq import GROUPS
from fcache.manifest import Board, Category

if TYPE_CHECKING:
    from fcache.eval.quality import PanopticQuality
    from fcache.eval.vpq import PqResult
    from fcache.eval.vps import VpsResult
    from fcache.eval.vss import VssResult

PERCENT = 100.0
SUFFIXES = dict(zip(GROUPS, ("", "_things", "_stuff"), strict=True))


@dataclass(frozen=True, slots=True)
class Report:
    """What a command prints.

    Attributes:
        scores: By name, NaN where undefined.
        grouped: Names of scores that exist over all categories, things and stuff.
        undefined: By name, why a score is NaN.
        quirks: What in the published scripts changed a score.
        counts: Videos, frames or images.
        classes: A row for each category that was scored.
    """

    scores: dict[str, float]
    grouped: tuple[str, ...]
    undefined: dict[str, str]
    quirks: tuple[Quirk, ...]
    counts: dict[str, int]
    classes: tuple[dict[str, Any], ...]


def vps_report(result: VpsResult, categories: Sequence[Category]) -> Report:
    """Returns VPQ_k, their mean and VPQ_1 - VPQ_6, STQ, AQ and SQ."""
    vpq, stq = result.vpq, result.stq
    means = zip(SUFFIXES.values(), (vpq.vpq, vpq.vpq_things, vpq.vpq_stuff), strict=True)
    scores = {f"VPQ{suffix}": PERCENT * mean for suffix, mean in means}
    for k, quality in vpq.windows.items():
        scores |= _groups(f"VPQ_{k}", quality, "pq")
    scores["stability"] = PERCENT * vpq.stability
    scores |= {"STQ": stq.stq, "AQ": stq.aq, "SQ": stq.sq}
    undefined = dict(result.undefined)
    if math.isnan(vpq.stability):
        undefined["stability"] = "it is VPQ_1 - VPQ_6, of which one is undefined"
    classes = []
    for index, category in enumerate(categories):
        row = {f"VPQ_{k}": PERCENT * float(q.pq[index]) for k, q in vpq.windows.items()}
        row["IoU"] = float(stq.iou[index])
        if not all(map(math.isnan, row.values())):
            classes.append({**_named(category), **row})
    return Report(
        scores=scores,
        grouped=("VPQ", *(f"VPQ_{k}" for k in vpq.windows)),
        undefined=undefined,
        quirks=_scaled(result.quirks, "VPQ"),
        counts={"videos": result.num_videos, "frames": result.num_frames},
        classes=tuple(classes),
    )


def vss_report(result: VssResult, categories: Sequence[Category], num_videos: int) -> Report:
    """Returns mIoU, weighted IoU, accuracies and VC_n."""
    scores = {
        "mIoU": result.miou,
        "weighted IoU": result.weighted_iou,
        "pixel accuracy": result.pixel_accuracy,
        "category accuracy": result.category_accuracy,
        **{f"VC{n}": value for n, value in result.consistency.vc.items()},
    }
    classes = [
        {
            **_named(category),
            "IoU": result.iou[category.id],
            "true pixels": result.truth_pixels[category.id],
        }
        for category in sorted(categories, key=lambda category: category.id)
        if result.truth_pixels[category.id] or not math.isnan(result.iou[category.id])
    ]
    return Report(
        scores=scores,
        grouped=(),
        undefined=result.undefined,
        quirks=result.quirks,
        counts={"videos": num_videos, "frames": result.num_frames},
        classes=tuple(classes),
    )


def pq_report(result: PqResult, categories: Sequence[Category]) -> Report:
    """Returns PQ, SQ and RQ."""
    quality, names = result.quality, ("PQ", "SQ", "RQ")
    scores: dict[str, float] = {}
    for name in names:
        scores |= _groups(name, quality, name.lower())
    undefined = {
        f"{name}{key.removeprefix('PQ')}": why
        for key, why in result.undefined.items()
        for name in names
    }
    counts = quality.counts
    classes = [
        {
            **_named(category),
            **{name: PERCENT * float(getattr(quality, name.lower())[index]) for name in names},
            "TP": int(counts.tp[index]),
            "FP": int(counts.fp[index]),
            "FN": int(counts.fn[index]),
        }
        for index, category in enumerate(categories)
        if not math.isnan(quality.pq[index])
    ]
    return Report(
        scores=scores,
        grouped=names,
        undefined=undefined,
        quirks=_scaled(result.quirks, "PQ"),
        counts={"images": result.num_images},
        classes=tuple(classes),
    )


def ranked(
    board: Board, scores: Mapping[str, float], definition: str
) -> tuple[list[str], list[dict[str, Any]]]:
    """Returns a board's metrics, and its rows with this run's among them, best first."""
    metrics = list(dict.fromkeys(name for row in board.rows for name in row.scores))
    ours = {name: scores[name] for name in metrics}
    rows = [{**row.model_dump(), "ours": False} for row in board.rows]
    name = f"this run, {definition} definition"
    rows.append({"method": name, "split": "", "source": "", "scores": ours, "ours": True})
    leading = metrics[0]

    def key(row: Mapping[str, Any]) -> float:
        value = row["scores"].get(leading, math.nan)
        return math.inf if math.isnan(value) else -value

    return metrics, sorted(rows, key=key)


def _groups(name: str, quality: PanopticQuality, attribute: str) -> dict[str, float]:
    return {
        f"{name}{suffix}": PERCENT * getattr(getattr(quality, group), attribute)
        for group, suffix in SUFFIXES.items()
    }


def _named(category: Category) -> dict[str, Any]:
    kind = "thing" if category.isthing else "stuff"
    return {"id": category.id, "class": category.name, "kind": kind}


def _scaled(quirks: Sequence[Quirk], of: str) -> tuple[Quirk, ...]:
    return tuple(
        replace(quirk, value=PERCENT * quirk.value, without=PERCENT * quirk.without)
        if quirk.metric.startswith(of)
        else quirk
        for quirk in quirks
    )
