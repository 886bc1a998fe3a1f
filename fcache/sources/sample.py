"""Which frames of a source a selection takes.

Rules, where the selection's words leave room:

- Times count from the source's first frame and are compared with a slack of half a tick of the
  source's clock, at most half a millisecond. Matroska stores whole milliseconds, so that frame 2 of
  a 30 Hz video says 67 ms; without the slack ``fps=30`` would pass it over. A coarse clock (AVI
  ticks once a frame) is exact, and a wider slack would round to the nearest frame.
- ``fps`` takes a frame at most once. Above the source's rate, and in the gaps of a variable rate,
  several k fall on one frame: it is stored once, since a frame's name is its identity in the cache.
- k goes on to the end of the last frame, which counts as shown for as long as the one before it:
  the container's duration is a promise that is not trusted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from itertools import islice
from typing import Protocol, TypeVar

from fcache.config import Selection
from fcache.errors import SourceError

MAX_TICK = Fraction(1, 1000)  # seconds; the coarsest clock that rounds times rather than counts


class Timed(Protocol):
    """A frame with a time: seconds from the first frame, and the resolution of its clock."""

    @property
    def time(self) -> Fraction:
        """Seconds from the first frame; never falls from one frame to the next."""

    @property
    def tick(self) -> Fraction:
        """Resolution of the clock, in seconds."""


TimedT = TypeVar("TimedT", bound=Timed)


def sample(items: Iterator[TimedT], selection: Selection) -> Iterator[TimedT]:
    """Yields the items a selection takes, reading no further than it has to.

    Args:
        items: All frames of the source in presentation order.

    Raises:
        SourceError: ``items`` raised it; everything taken from before is yielded first.
    """
    rule = _every_nth if selection.fps is None else _at_rate
    return islice(rule(items, selection), selection.max_frames)


def require_no_clock(selection: Selection, what: str) -> None:
    """Raises a SourceError where a selection needs timestamps and ``what`` has none."""
    asked = [
        f"{name}="
        for name, given in (
            ("fps", selection.fps is not None),
            ("start", selection.start > 0),
            ("end", selection.end is not None),
        )
        if given
    ]
    if asked:
        raise SourceError(
            f"{' and '.join(asked)} cannot be applied: {what} has no timestamps; "
            "use stride= and max_frames=."
        )


def _every_nth(items: Iterator[TimedT], selection: Selection) -> Iterator[TimedT]:
    start, end = _window(selection)
    num_inside = 0
    for item in items:
        time = item.time + _slack(item)
        if end is not None and time >= end:
            return
        if time < start:
            continue
        if num_inside % selection.stride == 0:
            yield item
        num_inside += 1


def _at_rate(items: Iterator[TimedT], selection: Selection) -> Iterator[TimedT]:
    start, end = _window(selection)
    rate = Fraction(str(selection.fps))
    k = 0
    held: TimedT | None = None
    last_gap = Fraction(0)
    broken: SourceError | None = None

    while True:
        target = start + k / rate
        if end is not None and target >= end:
            return
        try:
            item = next(items, None)
        except SourceError as error:
            item, broken = None, error
        if item is None:
            break
        time = item.time - _slack(item)
        if held is not None:
            last_gap = item.time - held.time
            if target < time:
                yield held
                k = math.ceil((time - start) * rate)
        held = item

    if held is not None:
        at_held = target <= held.time + _slack(held)
        # After damage, what follows the last sound frame may already be due.
        if at_held or (broken is None and target < held.time + last_gap - _slack(held)):
            yield held
    if broken is not None:
        raise broken


def _slack(item: Timed) -> Fraction:
    return min(item.tick, MAX_TICK) / 2


def _window(selection: Selection) -> tuple[Fraction, Fraction | None]:
    # str() keeps 0.1 the decimal the user wrote rather than its nearest binary fraction.
    end = None if selection.end is None else Fraction(str(selection.end))
    return Fraction(str(selection.start)), end
