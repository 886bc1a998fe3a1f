"""Scores of many videos are the same, to the bit, on one process and on several."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest

from fcache.errors import LabelError
from fcache.eval import job
from fcache.eval.job import score_videos
from fcache.eval.vps import VideoPanopticScores
from tests.eval.made import CAR, CATEGORIES, DOG, SKY
from tests.eval.vectors import Listed, Pair


@dataclass(frozen=True)
class Drawn:
    """A video made of a seed, in whichever process asks for its frames."""

    id: str
    seed: int
    num_frames: int
    category: int = CAR

    def frame(self, position):
        rng = np.random.default_rng([self.seed, position])
        rows = [
            {"id": 1, "category_id": SKY, "area": 30},
            {"id": 2, "category_id": CAR, "area": 30},
            {"id": 3, "category_id": DOG, "area": 30},
        ]
        truth = np.repeat(np.arange(4), 30).reshape(6, 20)
        prediction = np.where(rng.uniform(size=truth.shape) < 0.3, 2, truth)
        guessed = [dict(row) for row in rows]
        guessed[1]["category_id"] = self.category
        listed = Listed.of(rows), Listed.of(guessed)
        return Pair(self.id, str(position), truth, prediction, *listed)


MAKE = partial(VideoPanopticScores, CATEGORIES)


def test_workers_change_no_bit_and_report_in_order():
    videos = [Drawn(str(seed), seed, 3 + 11 * (seed % 4)) for seed in range(12)]
    told: dict[int, list[str]] = {1: [], 2: []}
    one, two = (
        score_videos(videos, MAKE, num_workers=n, on_video=told[n].append).result() for n in told
    )
    assert told[1] == told[2] == [video.id for video in videos]
    assert repr(one) == repr(two)
    assert np.array_equal(one.stq.iou, two.stq.iou, equal_nan=True)
    for k, quality in one.vpq.windows.items():
        assert np.array_equal(quality.pq, two.vpq.windows[k].pq, equal_nan=True)
    assert [video.video_id for video in two.stq.videos] == told[2]
    assert 0 < one.vpq.vpq < 1


def test_one_long_video_is_read_ahead_and_scored_the_same():
    video = [Drawn("long", 5, 50)]
    one, three = (score_videos(video, MAKE, num_workers=n).result() for n in (1, 3))
    assert repr(one) == repr(three)
    with pytest.raises(LabelError, match="video 'long' frame '0', prediction: category id 77"):
        score_videos([Drawn("long", 5, 50, category=77)], MAKE, num_workers=3)


def test_tasks_hold_a_few_videos_and_depend_on_lengths_alone():
    videos = [Drawn(str(i), i, n) for i, n in enumerate((20, 7, 7, 7, 1))]
    tasks = [[video.id for video in task] for task in job._tasks(videos)]
    assert tasks == [["0"], ["1", "2", "3"], ["4"]]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_an_error_in_a_worker_keeps_its_type_and_names_the_frame(num_workers):
    videos = [Drawn("good", 0, 70), Drawn("bad", 1, 70, category=77), Drawn("more", 2, 70)]
    with pytest.raises(LabelError, match="video 'bad' frame '0', prediction: category id 77"):
        score_videos(videos, MAKE, num_workers=num_workers)


def test_no_worker_is_refused_and_no_video_gives_an_empty_score():
    with pytest.raises(ValueError, match="num_workers=0"):
        score_videos([], MAKE, num_workers=0)
    assert score_videos([], MAKE).result().num_frames == 0
