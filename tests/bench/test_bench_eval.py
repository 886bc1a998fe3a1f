"""The data of the scoring bench, scored by fcache and the plain way. No time is asserted."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.bench import bench_eval


@pytest.fixture
def sets(tmp_path, monkeypatch):
    """Two small videos."""
    monkeypatch.setattr(bench_eval, "HEIGHT", 90)
    monkeypatch.setattr(bench_eval, "WIDTH", 160)
    bench_eval.write(tmp_path, 2, 18)
    return tmp_path


def test_scores_equal_the_plain_way_on_one_process_and_on_two(sets):
    vps, vss = bench_eval.plain_vps(sets), bench_eval.plain_vss(sets)
    assert min(*vps, *vss) > 0.1
    assert max(*vps, *vss) < 0.99
    for num_workers in (1, 2):
        assert bench_eval.score_vps(sets, num_workers) == pytest.approx(vps, abs=1e-12)
        assert bench_eval.score_vss(sets, num_workers) == pytest.approx(vss, abs=1e-12)


def test_a_lengthened_video_repeats_its_frames(sets, tmp_path):
    long = bench_eval.lengthen(sets, tmp_path / "scratch", 40)
    (video,) = bench_eval.open_vps(long)
    assert video.num_frames == 40
    assert np.array_equal(video.frame(3).truth_ids, video.frame(39).truth_ids)
    assert bench_eval.open_vss(long)[0].num_frames == 40


def test_the_recorded_run_is_compared_at_equal_decoding_speed():
    rows = {
        name: {"cpu_s": seconds}
        for name, seconds in {
            "png_decode_only_gt+pred_once": 1.0, "VPQ_total": 10.0, "STQ": 2.0,
            "mIoU_wIoU": 0.5, "VC8": 0.25, "VC16": 0.25,
        }.items()
    }  # fmt: skip
    speed = {"decode": 60.0, "vps": 100.0, "vss": 240.0}
    found = [verdict.found for verdict in bench_eval.against(json.loads(json.dumps(rows)), speed)]
    assert found == pytest.approx([10.0, 20.0, 2.0, 4.0])
