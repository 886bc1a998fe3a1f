"""Which frames make a clip: the official rules."""

from __future__ import annotations

from collections import Counter

import pytest

from fcache.data.frame_sampling import FrameSampling, Uniform
from fcache.errors import ConfigError


def drawn(sampling: FrameSampling, length: int, count: int = 400) -> list[tuple[int, ...]]:
    return [sampling.draw(length, Uniform(7, number)) for number in range(count)]


def test_frames_of_a_reference_clip_lie_around_it_and_are_sorted() -> None:
    for clip in drawn(FrameSampling(4, 3), 30):
        assert len(clip) == 4
        assert list(clip) == sorted(clip)
        # Each is at most 3 away from the reference, which is one of them.
        assert any(all(abs(frame - reference) <= 3 for frame in clip) for reference in clip)


def test_every_frame_of_the_range_is_drawn_equally_often_and_the_reference_once_more() -> None:
    clips = drawn(FrameSampling(2, 2), 3, 6000)
    # In 3 frames with a range of 2 every unordered pair of different frames is equally likely.
    counts = Counter(clips)
    assert set(counts) == {(0, 1), (0, 2), (1, 2)}
    assert all(abs(count / 6000 - 1 / 3) < 0.03 for count in counts.values())


def test_others_are_drawn_with_replacement() -> None:
    assert any(len(set(clip)) < 4 for clip in drawn(FrameSampling(4, 3), 30))


def test_a_video_of_one_frame_repeats_it() -> None:
    assert set(drawn(FrameSampling(4, 3), 1, 5)) == {(0, 0, 0, 0)}
    assert set(drawn(FrameSampling(3, 1, "consecutive"), 1, 5)) == {(0, 0, 0)}


def test_single_frames_come_from_the_whole_video() -> None:
    counts = Counter(clip[0] for clip in drawn(FrameSampling(), 5, 2000))
    assert set(counts) == set(range(5))
    assert min(counts.values()) > 300


def test_consecutive_clips_start_anywhere_but_at_the_last_place() -> None:
    clips = drawn(FrameSampling(3, 1, "consecutive"), 7)
    assert {clip[0] for clip in clips} == {0, 1, 2, 3}  # 4 would be the last
    assert all(clip == (clip[0], clip[0] + 1, clip[0] + 2) for clip in clips)
    assert set(drawn(FrameSampling(3, 1, "consecutive"), 3)) == {(0, 1, 2)}


def test_a_short_video_is_padded_at_the_end_by_frames_of_it() -> None:
    clips = drawn(FrameSampling(5, 2, "consecutive"), 3)
    assert all(clip[:3] == (0, 1, 2) for clip in clips)
    assert {clip[3] for clip in clips} == {clip[4] for clip in clips} == {0, 1, 2}
    assert any(clip[3] > clip[4] for clip in clips)


def test_reverse_turns_every_second_clip() -> None:
    clips = drawn(FrameSampling(3, 1, "consecutive", reverse=True), 9, 1000)
    turned = [clip[0] > clip[2] for clip in clips]
    assert 430 < sum(turned) < 570
    assert all(abs(clip[0] - clip[1]) == abs(clip[1] - clip[2]) == 1 for clip in clips)


@pytest.mark.parametrize(
    ("num_frames", "range_frames", "kind"),
    [(1, 0, "consecutive"), (1, 20, "reference"), (4, 8, "reference"), (5, 2, "consecutive"),
     (21, 10, "consecutive")],
)  # fmt: skip
def test_official_settings_say_the_kind(num_frames: int, range_frames: int, kind: str) -> None:
    assert FrameSampling.official(num_frames, range_frames).kind == kind


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="num_frames=0"):
        FrameSampling(0)
    with pytest.raises(ConfigError, match="would repeat one frame"):
        FrameSampling(3, 0)


def test_numbers_are_those_of_the_words_alone() -> None:
    assert [Uniform(1, 2).below(10**6) for _ in range(2)] == [Uniform(1, 2).below(10**6)] * 2
    assert Uniform(1, 2).below(10**6) != Uniform(2, 1).below(10**6)
    assert Uniform(3).many(4).tolist() == [int(n) for n in Uniform(3).many(8)[:4]]
