"""mIoU and VC_n of videos: any n against the definition, quirks, gaps, values of no category."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fcache.errors import LabelError
from fcache.eval.consistency import VideoConsistency
from fcache.eval.quirks import TEXTS
from fcache.eval.vss import VideoSemanticQuality, VssResult
from fcache.manifest import Category
from tests.eval import vectors
from tests.eval.made import labelled
from tests.eval.vectors import Labelled
from tests.shared import needs_shared

# Stored as 1 and 2; 0 and 9 are void.
CATEGORIES = [Category(id=i, name=str(i), isthing=False) for i in range(2)]


def scored(videos, definition="official", clip_frames=(2,), categories=CATEGORIES, **kwargs):
    scores = VideoSemanticQuality(
        categories, offset=1, clip_frames=clip_frames, definition=definition, **kwargs
    )
    for video in videos:
        for frame in video:
            scores.add(frame)
        scores.end_video()
    return scores


def result(videos, definition="official", clip_frames=(2,)) -> VssResult:
    return scored(videos, definition, clip_frames).result()


def slow_clips(video: list[Labelled], n: int) -> list[float]:
    """The clip values as written in the definition."""
    clips = []
    for start in range(len(video) - n):
        clip = video[start : start + n]
        truth, guess = (
            np.stack([getattr(frame, side) for frame in clip]) for side in ("truth", "prediction")
        )
        steady = (truth == truth[0]).all(0)
        if steady.any():
            clips.append(float((guess == guess[0]).all(0)[steady].mean()))
    return clips


@pytest.mark.parametrize("seed", range(4))
def test_vc_of_any_n_equals_its_definition(seed):
    rng = np.random.default_rng(seed)
    videos = []
    for length in (1, 7, 12, 3):
        drawn = rng.choice(np.array([0, 1, 2, 9], np.uint8), (2, 6, 8))
        frames = [drawn.copy()]
        for _ in range(length - 1):
            drawn = np.where(rng.uniform(size=drawn.shape) < 0.1, drawn % 2 + 1, drawn)
            frames.append(drawn.astype(np.uint8))
        videos.append([Labelled("v", str(t), *pair) for t, pair in enumerate(frames)])
    lengths = (1, 2, 3, 6, 7, 11, 300)
    found = result(videos, clip_frames=lengths).consistency
    for n in lengths:
        clips = [value for video in videos for value in slow_clips(video, n)]
        assert found.num_clips[n] == len(clips)
        wanted = float(np.mean(clips)) if clips else math.nan
        assert found.vc[n] == pytest.approx(wanted, abs=1e-12, nan_ok=True)
        assert (f"VC{n}" in found.undefined) == (not clips)


def test_clean_vc_scores_right_labelled_pixels_of_every_clip():
    # Pixel 0 void, 1 right and steady, 2 steady but wrong, 3 changes in the last frame.
    video = labelled(["0121", "0121", "0122"], ["0000", "0000", "0001"])
    clean = result([video], "clean")
    assert clean.consistency.num_clips[2] == 2
    assert clean.consistency.vc[2] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert clean.quirks == ()
    official = result([video])
    assert official.consistency.num_clips[2] == 1
    assert official.consistency.vc[2] == 1.0
    without = {q.name: q.without for q in official.quirks if q.metric == "VC2"}
    assert without == {"vc_ignores_correctness": pytest.approx(2 / 4)}


def test_a_video_shorter_than_the_clip_is_one_clip_only_when_clean():
    video = labelled(["12", "12"], ["00", "00"])
    official = result([video], clip_frames=(3,))
    assert math.isnan(official.consistency.vc[3])
    assert "VC3" in official.undefined
    assert [(q.metric, q.name, q.without) for q in official.quirks] == [("VC3", "no_windows", 1.0)]
    assert result([video], "clean", (3,)).consistency.vc[3] == 0.5


def test_clips_cross_gaps_only_officially():
    truth = ["11", "11", "11", "11", "11"]
    prediction = ["00", "00", "11", "11", "11"]
    video = labelled(truth, prediction, gap=2)
    official, clean = result([video]), result([video], "clean")
    assert official.consistency.vc[2] == pytest.approx(2 / 3)
    quirk = next(q for q in official.quirks if q.name == "vc_clip_spans_gap")
    assert quirk.without == 1.0
    assert "frame '2'" in quirk.first
    assert clean.consistency.num_clips[2] == 3
    assert clean.consistency.vc[2] == pytest.approx(1 / 3)


def test_void_quirk_is_named_with_the_value_without_it():
    video = labelled(["01", "01", "01"], ["00", "10", "00"])
    (quirk,) = [q for q in result([video]).quirks if q.name == "vc_void_counts"]
    assert (quirk.value, quirk.without) == (0.5, 1.0)
    assert TEXTS["vc_void_counts"] in quirk.text


def test_a_prediction_of_no_category_spills_officially_and_is_a_miss_when_clean():
    video = labelled(["1122", "1122"], ["0201", "0011"])
    official, clean = result([video]), result([video], "clean")
    # 2 on category 0 is cell 2 * 0 + 2: category 1 predicted as 0.
    assert clean.miou == pytest.approx((3 / 5 + 3 / 4) / 2)
    assert official.miou == pytest.approx((3 / 5 + 3 / 5) / 2)
    quirk = next(q for q in official.quirks if q.metric == "mIoU")
    assert (quirk.name, quirk.value, quirk.without) == (
        "pred_value_spills",
        official.miou,
        clean.miou,
    )
    assert "video 'v' frame '0'" in quirk.text


def test_a_prediction_without_a_cell_is_nan_with_the_frame_and_vc_stays():
    video = labelled(["11", "12", "12"], ["00", "02", "02"])
    official = result([video])
    assert math.isnan(official.miou)
    assert math.isnan(official.iou[0])
    assert (
        "video 'v' frame '1': prediction holds 2 on a pixel of category 1"
        in official.undefined["mIoU"]
    )
    assert official.consistency.vc[2] == 1.0
    assert result([video], "clean").iou == {0: 1.0, 1: 0.0}


def test_merged_workers_give_the_same_scores_quirks_and_reasons():
    videos = [
        labelled(["012", "012", "112"], ["021", "011", "011"]),
        labelled(["22", "21"], ["00", "10"]),
        labelled(["1", "1", "2", "2"], ["0", "0", "1", "1"], gap=3),
        labelled(["2", "2", "2"], ["2", "2", "1"]),
    ]
    for definition in ("official", "clean"):
        for chosen in (videos[:3], videos):
            one = result(chosen, definition)
            total = scored([], definition)
            for video in chosen:
                total.merge(scored([video], definition))
            assert repr(total.result()) == repr(one)


def test_categories_with_holes_and_void_inside_are_looked_up():
    categories = [Category(id=i, name=str(i), isthing=False) for i in (0, 3)]
    truth, prediction = np.array([[1, 4, 2, 9, 0]], np.uint8), np.array([[0, 3, 1, 3, 3]], np.uint8)
    video = [Labelled("v", str(t), truth, prediction) for t in range(3)]
    found = scored([video], "clean", categories=categories).result()
    assert found.truth_pixels == {0: 3, 3: 3}
    assert found.miou == 1.0
    assert found.consistency.vc[2] == 1.0
    voided = scored([video], "clean", categories=categories, void=(4,)).result()
    assert voided.truth_pixels == {0: 3, 3: 0}


def test_without_clips_frames_need_no_video():
    frames = labelled(["12"], ["01"]) + labelled(["1212"], ["0101"])
    assert scored([frames], clip_frames=()).result().miou == 1.0
    with pytest.raises(LabelError, match=r"video 'v' frame '0' is 1x4 and the frame before it 1x2"):
        scored([frames])


def test_sizes_that_differ_are_named():
    frame = labelled(["12"], ["011"])
    with pytest.raises(LabelError, match=r"video 'v' frame '0': the prediction is 1x3 and .* 1x2"):
        scored([frame])


def test_an_open_video_and_impossible_clips_are_refused():
    scores = scored([])
    scores.add(labelled(["12"], ["01"])[0])
    with pytest.raises(ValueError, match="open after 1 frames"):
        scores.result()
    with pytest.raises(ValueError, match="clip_frames="):
        VideoConsistency((0,))
    with pytest.raises(ValueError, match="cannot be added"):
        VideoConsistency((2,)).merge(VideoConsistency((3,)))
    with pytest.raises(ValueError, match="no categories"):
        VideoSemanticQuality([])


@needs_shared
def test_the_recorded_spill_is_named_and_gone_when_clean():
    videos = list(vectors.semantic_videos("vss_pred255"))
    official = scored(videos, categories=vectors.categories()).result()
    clean = scored(videos, "clean", categories=vectors.categories()).result()
    quirk = next(q for q in official.quirks if q.metric == "mIoU")
    assert quirk.without == clean.miou
    assert quirk.num_places == official.num_frames == 20
