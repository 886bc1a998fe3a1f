"""Every score against the official evaluators' recorded numbers."""

from __future__ import annotations

import numpy as np
import pytest

from fcache.eval.quality import MatchCounts, PanopticQuality
from fcache.eval.stq import SegmentationTrackingQuality
from fcache.eval.vpq import ImagePanopticQuality, VideoPanopticQuality
from fcache.eval.vss import VideoSemanticQuality
from tests.eval import vectors
from tests.eval.vectors import close
from tests.shared import needs_shared

VPS = [
    "vps_absent", "vps_all_empty", "vps_all_short", "vps_crowd", "vps_easy", "vps_empty",
    "vps_half", "vps_hard", "vps_identical", "vps_idswitch", "vps_manyids", "vps_medium",
    "vps_relabelled", "vps_short", "vps_void", "vpsq_catflip", "vpsq_crowds", "vpsq_json_area",
    "vpsq_pred_void", "vpsq_thing_first", "vpsq_unlisted_gt",
]  # fmt: skip
VSS = [
    "vss_absent", "vss_all_short", "vss_all_void", "vss_easy", "vss_hard", "vss_identical",
    "vss_medium", "vss_nan_clip", "vss_nonvoid_identical", "vss_pred255", "vss_short",
    "vss_static_wrong",
]  # fmt: skip
PQ = [
    "pq_easy", "pq_empty_one", "pq_hard", "pq_identical", "pq_medium", "pq_things_only",
    "pq_void_crowd",
]  # fmt: skip


def check_quality(found: PanopticQuality, wanted: dict, ids: list[int]) -> None:
    for group in ("All", "Things", "Stuff"):
        quality = getattr(found, group.lower())
        if "official_raises" in wanted[group]:
            assert np.isnan([quality.pq, quality.sq, quality.rq]).all()
            assert "ZeroDivisionError" in quality.undefined
        else:
            assert quality.num_categories == wanted[group]["n"]
            for name in ("pq", "sq", "rq"):
                assert close(getattr(quality, name), wanted[group][name])
    if "per_class" in wanted:
        check_counts(found, wanted["per_class"], ids)


def check_counts(found: PanopticQuality, wanted: dict, ids: list[int]) -> None:
    counts: MatchCounts = found.counts
    scored = [i for i in range(len(ids)) if counts.tp[i] + counts.fp[i] + counts.fn[i]]
    assert {str(ids[i]) for i in scored} == wanted.keys()
    for i in scored:
        row = wanted[str(ids[i])]
        assert (counts.tp[i], counts.fp[i], counts.fn[i]) == (row["tp"], row["fp"], row["fn"])
        assert close(counts.iou[i], row["iou"])
        assert close(found.pq[i], row["pq"])
        assert close(found.sq[i], row["sq"])
        assert close(found.rq[i], row["rq"])


@needs_shared
@pytest.mark.parametrize("case", VPS)
def test_vpq_and_stq_equal_the_official_numbers(case):
    expected = vectors.load(case)[0]["expected"]
    categories = vectors.categories()
    vpq = VideoPanopticQuality(categories, windows=(1, 2, 4, 6, 8))
    leaderboard = VideoPanopticQuality(categories)
    stq = SegmentationTrackingQuality(categories)
    for tables in vectors.video_tables(case):
        for metric in (vpq, leaderboard, stq):
            for table in tables:
                metric.add(table)
            metric.end_video()

    five, four, tracking = vpq.result(), leaderboard.result(), stq.result()
    for k, quality in five.windows.items():
        check_quality(quality, expected["vpq"][str(k)], list(range(124)))
    for result, ks in ((four, "1246"), (five, "1246"), (five, "12468")):
        wanted = [expected["vpq"][f"mean_{ks}_{group}"] for group in ("All", "Things", "Stuff")]
        found = [result.mean([*map(int, ks)], group) for group in ("all", "things", "stuff")]
        if ks == "1246":
            assert repr(found) == repr([result.vpq, result.vpq_things, result.vpq_stuff])
        assert all(close(100 * a, b, 1e-11) for a, b in zip(found, wanted, strict=True))
        assert (wanted[0] is None) == any(f"VPQ_{k}" in result.undefined for k in ks)

    wanted = expected["stq"]
    assert close(tracking.stq, wanted["STQ"])
    assert close(tracking.aq, wanted["AQ"])
    assert close(tracking.sq, wanted["IoU"])
    for video, *row in zip(
        tracking.videos,
        *(wanted[f"{name}_per_seq"] for name in ("STQ", "AQ", "IoU", "Length")),
        strict=True,
    ):
        assert all(map(close, (video.stq, video.aq, video.sq), row))
        assert video.num_frames == row[-1]


@needs_shared
@pytest.mark.parametrize("case", PQ)
def test_pq_equals_panopticapi(case):
    facts, _ = vectors.load(case)
    categories = vectors.categories(facts["categories"])
    metric = ImagePanopticQuality(categories)
    for table in vectors.image_tables(case):
        metric.add(table)
    result = metric.result()
    expected = facts["expected"]["pq"]
    check_quality(result.quality, expected, [category.id for category in categories])
    assert expected["full_pq_compute_ran"] == (not result.undefined)
    assert result.num_images == len(facts["images"])


@needs_shared
@pytest.mark.parametrize("case", VSS)
def test_semantic_scores_equal_the_official_numbers(case):
    expected = vectors.load(case)[0]["expected"]
    metric = VideoSemanticQuality(vectors.categories(), offset=1)
    for frames in vectors.semantic_videos(case):
        for frame in frames:
            metric.add(frame)
        metric.end_video()
    result = metric.result()
    assert close(result.miou, expected["mIoU"])
    assert close(result.weighted_iou, expected["wIoU"])
    assert close(result.pixel_accuracy, expected["pixel_acc"])
    assert close(result.category_accuracy, expected["class_acc"])
    assert sum(result.truth_pixels.values()) == expected["gt_pixels"]
    assert sum(pixels > 0 for pixels in result.truth_pixels.values()) == expected["n_gt_classes"]
    for category, iou in expected["iou_per_gt_class"].items():
        assert close(result.iou[int(category)], iou)
    for n in (8, 16):
        clips = expected[f"VC{n}_clips"]
        assert close(result.consistency.vc[n], expected[f"VC{n}"])
        assert result.consistency.num_clips[n] == sum(value is not None for value in clips)
        assert (f"VC{n}" in result.undefined) == (expected[f"VC{n}"] is None)


@needs_shared
def test_the_lists_of_cases_are_complete():
    assert vectors.names("vps") == VPS
    assert vectors.names("vss") == VSS
    assert vectors.names("pq") == PQ
