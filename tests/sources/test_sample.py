from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import pytest

from fcache.config import Selection
from fcache.errors import SourceError
from fcache.sources.sample import require_no_clock, sample


@dataclass(frozen=True)
class Shot:
    index: int
    time: Fraction
    tick: Fraction


def shots(times: list[Fraction], tick: Fraction) -> Iterator[Shot]:
    return (Shot(index, time, tick) for index, time in enumerate(times))


def constant(num: int, rate: int, tick: Fraction | None = None) -> Iterator[Shot]:
    return shots([Fraction(t, rate) for t in range(num)], tick or Fraction(1, 12288))


def taken(items: Iterator[Shot], **selection) -> list[int]:
    return [shot.index for shot in sample(items, Selection(**selection))]


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        ({}, list(range(24))),
        ({"stride": 5}, [0, 5, 10, 15, 20]),
        ({"stride": 100}, [0]),
        ({"max_frames": 3}, [0, 1, 2]),
        ({"stride": 5, "max_frames": 2}, [0, 5]),
        ({"fps": 24}, list(range(24))),
        ({"fps": 12}, list(range(0, 24, 2))),
        # k / 10 s = 2.4 k frames, and the last frame not after it.
        ({"fps": 10}, [0, 2, 4, 7, 9, 12, 14, 16, 19, 21]),
        ({"fps": 1}, [0]),
        ({"fps": 0.1}, [0]),
        # Above the source's rate every frame comes once.
        ({"fps": 60}, list(range(24))),
        ({"start": 0.5}, list(range(12, 24))),
        ({"end": 0.5}, list(range(12))),
        ({"start": 0.25, "end": 0.5, "stride": 2}, [6, 8, 10]),
        # start= between frames: fps= shows what is on screen, stride= what begins after it.
        ({"start": 0.26, "fps": 4}, [6, 12, 18]),
        ({"start": 0.26, "stride": 6}, [7, 13, 19]),
        ({"fps": 4, "end": 0.5}, [0, 6]),
        ({"fps": 4, "max_frames": 3}, [0, 6, 12]),
        ({"start": 2.0}, []),
        ({"start": 2.0, "fps": 4}, []),
        ({"start": 2.0, "end": 3.0, "fps": 4}, []),
    ],
)
def test_selection_takes_these_frames_of_one_second_at_24_hz(selection, expected):
    assert taken(constant(24, 24), **selection) == expected


def test_fps_follows_the_definition_on_a_variable_rate():
    times = [Fraction(ms, 1000) for ms in (0, 40, 400, 410, 420, 1000, 2600, 2650)]
    for fps in (1, 2, 2.5, 3, 10, 24, 25):
        picks: list[int] = []
        for k in range(200):
            target = k / Fraction(str(fps))
            if target >= times[-1] + (times[-1] - times[-2]):
                break
            last = max(index for index, time in enumerate(times) if time <= target)
            if last not in picks:
                picks.append(last)
        assert taken(shots(times, Fraction(1, 90000)), fps=fps) == picks, fps


@pytest.mark.parametrize("rate", [24, 25, 30, 50, 60])
def test_the_sources_own_rate_takes_every_frame_of_a_millisecond_clock(rate):
    times = [Fraction(round(t * 1000 / rate), 1000) for t in range(300)]
    assert taken(shots(times, Fraction(1, 1000)), fps=rate) == list(range(300))


def test_a_clock_that_ticks_once_a_frame_is_not_rounded():
    assert taken(constant(15, 15, Fraction(1, 15)), fps=10)[:4] == [0, 1, 3, 4]


def test_frames_at_one_time_are_all_kept_by_stride_and_the_last_wins_by_fps():
    times = [Fraction(0), Fraction(1), Fraction(1), Fraction(2)]
    assert taken(shots(times, Fraction(1, 1000))) == [0, 1, 2, 3]
    assert taken(shots(times, Fraction(1, 1000)), fps=1) == [0, 2, 3]


@pytest.mark.parametrize("selection", [{"max_frames": 2}, {"end": 0.08}, {"fps": 24, "end": 0.08}])
def test_reading_stops_with_the_selection(selection):
    read = []

    def watched() -> Iterator[Shot]:
        for shot in constant(1000, 24):
            read.append(shot.index)
            yield shot

    assert taken(watched(), **selection) == [0, 1]
    assert len(read) <= 3


@pytest.mark.parametrize("selection", [{}, {"fps": 24}])
def test_what_was_sound_is_taken_before_the_damage_is_raised(selection):
    def broken() -> Iterator[Shot]:
        yield from constant(5, 24)
        raise SourceError("the data end")

    seen = []
    with pytest.raises(SourceError, match="the data end"):
        seen.extend(shot.index for shot in sample(broken(), Selection(**selection)))
    seen = []
    try:
        for shot in sample(broken(), Selection(**selection)):
            seen.append(shot.index)
    except SourceError:
        pass
    assert seen == [0, 1, 2, 3, 4]


def test_times_on_a_source_without_a_clock_name_the_alternative():
    selection = Selection(fps=2, start=1.0, end=2.0)
    with pytest.raises(SourceError, match=r"fps= and start= and end= .*folder.*use stride="):
        require_no_clock(selection, "a folder of frames")
    require_no_clock(Selection(stride=3, max_frames=2), "a folder of frames")
