"""Panoptic scores on frames small enough to score by hand, each quirk and what is wrong input."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fcache.errors import LabelError
from fcache.eval.quirks import TEXTS
from fcache.eval.stq import SegmentationTrackingQuality
from fcache.eval.tables import FrameTable, Segments
from fcache.eval.vpq import VideoPanopticQuality
from fcache.eval.vps import ImagePanopticScores, VideoPanopticScores
from tests.eval import vectors
from tests.eval.made import CAR, CATEGORIES, DOG, ROAD, SKY, pair, scored
from tests.shared import needs_shared


def quirk_names(scores: VideoPanopticScores) -> set[tuple[str, str]]:
    return {(quirk.metric, quirk.name) for quirk in scores.result().quirks}


def test_a_frame_is_scored_as_by_hand():
    # car 1: 4 of 4 + 1 pixels; sky 2: 3 of 4; the void pixel under car 7 costs nothing.
    frame = pair("1111222 2.".replace(" ", ""), "7777722 27".replace(" ", ""),
                 [(2, SKY), (1, CAR)], [(7, CAR), (2, SKY)])  # fmt: skip
    result = scored([[frame]], windows=(1,)).result()
    quality = result.vpq.windows[1]
    assert quality.things.pq == pytest.approx(4 / 5)
    assert quality.stuff.pq == pytest.approx(3 / 4)
    assert result.vpq.vpq == quality.all.pq == pytest.approx((4 / 5 + 3 / 4) / 2)
    # In |p| the void pixel counts: 4 shared, 4 true, 6 predicted.
    assert result.stq.aq == pytest.approx(4 / 6)
    assert result.stq.sq == pytest.approx((4 / 5 + 3 / 4) / 2)
    assert result.quirks == ()
    assert result.undefined == {}


def test_half_is_no_match_and_half_on_void_is_still_wrong():
    frame = pair("1122....", "5..266..", [(1, CAR), (2, SKY)], [(5, CAR), (2, SKY), (6, DOG)])
    counts = scored([[frame]], windows=(1,)).result().vpq.windows[1].counts
    assert counts.tp.tolist() == [0, 0, 0, 0]
    assert counts.fn.tolist() == [1, 0, 1, 0]
    assert counts.fp.tolist() == [1, 0, 1, 0]  # dog 6 lies on void wholly
    half = pair("11..", "5557"[:4], [(1, CAR)], [(5, CAR), (7, DOG)])
    assert scored([[half]], windows=(1,)).result().vpq.windows[1].counts.tp[CAR] == 1


def test_a_switched_id_costs_windows_but_not_frames():
    one = pair("1122", "1122", [(2, SKY), (1, CAR)], [(1, CAR), (2, SKY)], frame="0")
    two = pair("1122", "3322", [(2, SKY), (1, CAR)], [(3, CAR), (2, SKY)], frame="1")
    result = scored([[one, two]]).result()
    assert result.vpq.windows[1].all.pq == 1
    assert result.vpq.windows[2].things.pq == 0
    assert result.vpq.windows[2].stuff.pq == 1
    assert result.stq.aq == pytest.approx(0.5)


def test_things_without_stuff_leave_stuff_undefined_with_a_reason():
    result = scored([[pair("11..", "11..", [(1, CAR)], [(1, CAR)])]], windows=(1,)).result()
    assert math.isnan(result.vpq.vpq_stuff)
    assert "ZeroDivisionError" in result.undefined["VPQ_1_stuff"]
    assert result.undefined["VPQ_stuff"] == "VPQ_1 of its mean undefined"
    assert not {"VPQ", "VPQ_1", "VPQ_things"} & result.undefined.keys()


def test_no_video_and_an_unlabelled_one_have_reasons():
    empty = VideoPanopticScores(CATEGORIES).result()
    assert math.isnan(empty.vpq.vpq)
    assert math.isnan(empty.stq.stq)
    assert {"VPQ_1", "VPQ_6", "STQ", "SQ"} <= empty.undefined.keys()
    void = scored([[pair("....", "11..", [], [(1, CAR)])]], windows=(1,)).result()
    assert math.isnan(void.stq.sq)
    assert void.stq.videos[0].aq == 0


CROWDED = pair(
    "1122334", "8899334", [(4, SKY), (1, CAR), (2, CAR), (3, CAR)],
    [(4, SKY), (8, CAR), (9, CAR), (3, CAR)], crowd=(1, 2),
)  # fmt: skip
ONE_ON_CROWDS = pair(
    "1122334", "8888334", [(4, SKY), (1, CAR), (2, CAR), (3, CAR)],
    [(4, SKY), (8, CAR), (3, CAR)], crowd=(1, 2),
)  # fmt: skip
UNLISTED = pair("1155", "1166", [(1, SKY)], [(1, SKY), (6, CAR)])
FIRST_THING = pair("1122", "1122", [(1, CAR), (2, SKY)], [(1, CAR), (2, SKY)])
WRONG_AREA = pair("1112", "1112", [(2, SKY), (1, CAR)], [(2, SKY), (1, CAR)], areas={1: 4})
LESS = pair("1112", "11.2", [(2, SKY), (1, CAR)], [(2, SKY), (1, CAR)])
FLIP = [
    pair("1122", "1122", [(2, SKY), (1, CAR)], [(2, SKY), (1, CAR)], frame="0"),
    pair("1122", "1122", [(2, SKY), (1, CAR)], [(2, SKY), (1, DOG)], frame="1"),
]


@pytest.mark.parametrize(
    ("frames", "metric", "name"),
    [
        ([CROWDED], "VPQ_1", "last_crowd_per_class_wins"),
        ([ONE_ON_CROWDS], "STQ", "stq_ignores_iscrowd"),
        ([UNLISTED], "VPQ_1", "gt_png_id_not_in_json"),
        ([FIRST_THING, FIRST_THING], "STQ", "stq_first_thing_is_crowd"),
        ([WRONG_AREA], "VPQ_1", "gt_area_from_json"),
        ([LESS], "STQ", "stq_void_column_counts"),
        (FLIP, "VPQ_2", "pred_category_first_frame_wins"),
        ([LESS], "VPQ_2", "no_windows"),
    ],
)
def test_every_quirk_is_named_with_the_score_without_it(frames, metric, name):
    official = scored([frames]).result()
    quirks = {(quirk.metric, quirk.name): quirk for quirk in official.quirks}
    quirk = quirks[metric, name]
    assert TEXTS[name] in quirk.text
    assert "video 'v' frame '0'" in quirk.text
    clean = scored([frames], "clean").result()
    assert clean.quirks == ()
    value = {"STQ": official.stq.stq}.get(metric)
    if value is None:
        k = int(metric[-1])
        value = official.vpq.windows[k].all.pq
        assert quirk.without == pytest.approx(clean.vpq.windows[k].all.pq)
    elif sum(key[0] == metric for key in quirks) == 1:
        assert quirk.without == pytest.approx(clean.stq.stq)
    assert quirk.value == value or (math.isnan(quirk.value) and math.isnan(value))
    assert quirk.without != quirk.value


def test_two_crowds_of_a_class_excuse_as_by_hand():
    official = scored([[CROWDED]], windows=(1,)).result().vpq.windows[1].counts
    clean = scored([[CROWDED]], "clean", windows=(1,)).result().vpq.windows[1].counts
    assert (official.fp[CAR], clean.fp[CAR]) == (1, 0)


def test_clean_leaves_out_true_segments_without_a_pixel():
    frame = pair("22..", "22..", [(2, SKY), (1, CAR)], [(2, SKY)], areas={1: 0})
    assert scored([[frame]], windows=(1,)).result().vpq.windows[1].counts.fn[CAR] == 1
    assert scored([[frame]], "clean", windows=(1,)).result().vpq.windows[1].counts.fn[CAR] == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"truth": "11222"}, r"the prediction is 1x4 and the ground truth 1x5"),
        ({"prediction": "1193"}, r"map holds segment id 3, which its JSON does not list"),
        ({"prediction": "1111"}, r"JSON lists segment id 9, of which its map has no pixel"),
        ({"prediction_rows": [(1, CAR), (9, 77)]}, r"category id 77 is none of the 4"),
        ({"truth_rows": [(1, CAR), (2, 99)]}, r"ground truth: category id 99"),
        ({"prediction_rows": [(1, CAR), (9, SKY), (9, SKY)]}, r"id 9 is listed twice"),
        ({"prediction_rows": [(1, CAR), (9, SKY), (0, SKY)]}, r"a segment has id 0"),
        ({"areas": {1: -1}}, r"states no area for segment id 1"),
    ],
)
def test_what_does_not_fit_is_named_with_video_and_frame(change, words):
    good = {
        "truth": "1122",
        "prediction": "1199",
        "truth_rows": [(1, CAR), (2, SKY)],
        "prediction_rows": [(1, CAR), (9, SKY)],
    }
    scored([[pair(**good)]])
    with pytest.raises(LabelError, match=rf"^video 'v' frame '7'.*{words}"):
        scored([[pair(**{**good, **change}, frame="7")]])


def test_clean_scores_need_no_stated_area():
    frame = pair("1122", "1122", [(2, SKY), (1, CAR)], [(1, CAR), (2, SKY)], areas={1: -1})
    assert scored([[frame]], "clean").result().vpq.vpq == 1


def test_an_open_video_is_refused():
    scores = VideoPanopticScores(CATEGORIES)
    scores.add(LESS)
    with pytest.raises(ValueError, match=r"open after 1 frames; call end_video\(\)"):
        scores.result()
    with pytest.raises(ValueError, match="open after 1 frames"):
        VideoPanopticScores(CATEGORIES).merge(scores)
    with pytest.raises(ValueError, match="windows="):
        VideoPanopticQuality(CATEGORIES, (0, 2))


def test_images_are_scored_as_windows_of_one_frame():
    scores = ImagePanopticScores(CATEGORIES)
    frames = [CROWDED, LESS, UNLISTED]
    for frame in frames:
        scores.add(frame)
    scores.end_video()
    result = scores.result()
    assert result.quality.all == scored([frames], windows=(1,)).result().vpq.windows[1].all
    assert result.num_images == 3
    assert {quirk.metric for quirk in result.quirks} == {"PQ"}


@needs_shared
@pytest.mark.parametrize("case", ["vps_crowd", "vps_short", "vpsq_catflip", "vps_void"])
def test_merged_workers_give_the_same_scores_and_quirks(case):
    categories = vectors.categories()

    def score(metrics):
        for tables, metric in zip(vectors.video_tables(case), metrics, strict=False):
            for table in tables:
                metric.add(table)
            metric.end_video()

    for kind in (VideoPanopticQuality, SegmentationTrackingQuality):
        one = kind(categories)
        score([one] * 9)
        parts = [kind(categories) for _ in range(9)]
        score(parts)
        total = kind(categories)
        for part in parts:
            total.merge(part)
        mine, theirs = one.result(), total.result()
        assert [(q.metric, q.name, q.num_places, q.first) for q in mine.quirks] == [
            (q.metric, q.name, q.num_places, q.first) for q in theirs.quirks
        ]
        assert mine.undefined == theirs.undefined
        pick = (lambda r: r.vpq) if hasattr(mine, "vpq") else (lambda r: r.stq)
        assert pick(mine) == pytest.approx(pick(theirs), abs=1e-14, nan_ok=True)


@needs_shared
@pytest.mark.parametrize("case", vectors.QUIRKY)
def test_cases_made_for_a_quirk_name_it(case):
    wanted = set(vectors.load(case)[0]["quirks"]) - {"stuff_group_empty"}
    metrics = (
        VideoPanopticQuality(vectors.categories()),
        SegmentationTrackingQuality(vectors.categories()),
    )
    for tables in vectors.video_tables(case):
        for metric in metrics:
            for table in tables:
                metric.add(table)
            metric.end_video()
    named = {quirk.name for metric in metrics for quirk in metric.result().quirks}
    assert wanted <= named
    assert named - wanted <= {"stq_void_column_counts", "no_windows", "stq_first_thing_is_crowd"}


def raw_segments(labels: np.ndarray, shift: int) -> tuple[Segments, np.ndarray]:
    """Segments whose tracks get the instance numbers that labels hold, and rows of the labels."""
    shown = np.unique(labels)
    numbers = shown & ((1 << shift) - 1)
    # Listed first and without a pixel, so that the order of appearance is that of the numbers.
    first = np.arange(int(numbers.max()) + 1)
    ids = np.concatenate([first, numbers]) + 1
    category = np.concatenate([np.zeros_like(first), shown >> shift])
    nothing = np.zeros(len(ids), np.int64)
    segments = Segments(ids, category, nothing.astype(np.bool_), nothing, nothing)
    return segments, len(first) + np.searchsorted(shown, labels)


@needs_shared
def test_stq_equals_the_unit_tests_of_deeplab2():
    tests = vectors.facts("stq_deeplab2_unit")["tests"]
    assert len(tests) == 13
    for test in tests:
        params = test["params"]
        metric = SegmentationTrackingQuality(
            [
                CATEGORIES[0].model_copy(update={"id": i, "isthing": i in params["things"]})
                for i in range(params["num_classes"])
            ]
        )
        for number, frame in enumerate(test["frames"]):
            sides = [
                raw_segments(np.array(frame[key]).reshape(-1), params["bit_shift"])
                for key in ("gt", "pred")
            ]
            (truth, rows), (prediction, columns) = sides
            pixels = np.ones(len(rows), np.int64)
            metric.add(FrameTable("s", str(number), truth, prediction, rows, columns, pixels))
        metric.end_video()
        result, wanted = metric.result(), test["expected"]
        assert vectors.close(result.stq, wanted["STQ"])
        assert vectors.close(result.aq, wanted["AQ"])
        assert vectors.close(result.sq, wanted["IoU"])


def test_road_is_no_thing_and_tracks_on_it_count_as_predicted_pixels():
    frame = pair("1133", "1111", [(3, ROAD), (1, CAR)], [(1, CAR)])
    assert scored([[frame]]).result().stq.aq == pytest.approx(0.5)
