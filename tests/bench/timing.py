"""Times cases against each other in one process: alternately, in CPU time, as medians of ratios.

Machines are shared and their clocks move, so a figure means something only beside another one
taken in the same breath. Every round runs every case once, in an order of its own, and a ratio is
the median over rounds of one round's two figures.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Timing:
    """What one case took, a figure a round.

    Attributes:
        cpu_s: CPU seconds, all threads of the process together.
        wall_s: Seconds on the clock.
    """

    cpu_s: tuple[float, ...]
    wall_s: tuple[float, ...]

    @property
    def cpu_ms(self) -> float:
        """Median CPU milliseconds."""
        return 1e3 * statistics.median(self.cpu_s)

    @property
    def wall_ms(self) -> float:
        """Median milliseconds on the clock."""
        return 1e3 * statistics.median(self.wall_s)

    @property
    def least_cpu_ms(self) -> float:
        """Least CPU milliseconds: what the case takes where nothing is in its way."""
        return 1e3 * min(self.cpu_s)

    def cpu_speed_against(self, other: Timing) -> float:
        """Speed in CPU time, ``other``'s being 1: 0.5 takes twice as long."""
        return median_ratio(other.cpu_s, self.cpu_s)

    def wall_speed_against(self, other: Timing) -> float:
        """Speed on the clock, ``other``'s being 1."""
        return median_ratio(other.wall_s, self.wall_s)


def alternate(
    cases: Mapping[str, Callable[[int], object]],
    rounds: int,
    warm_up: int = 1,
    between: Callable[[], object] | None = None,
) -> dict[str, Timing]:
    """Returns what each case took.

    Args:
        cases: Name to what is timed; called with the round's number, so that all cases of a
            round can do the same work and another round other work. What it returns is dropped
            before the clock stops: giving memory back belongs to the cost of taking it.
        rounds: Rounds that count.
        warm_up: Rounds before them that do not; they get the numbers after the last.
        between: Called after each case, off the clock: to clear up, or to wait for threads that
            it left at work, since CPU time is the whole process's.
    """
    names = list(cases)
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for number in (*range(rounds, rounds + warm_up), *range(rounds)):
        # A fixed cycle would let each case always follow the same one, and find its cache.
        for name in random.Random(number).sample(names, len(names)):
            seconds = timed(cases[name], number)
            if between is not None:
                between()
            if number < rounds:
                taken[name].append(seconds)
    return {name: Timing(*zip(*figures, strict=True)) for name, figures in taken.items()}


def timed(case: Callable[[int], object], number: int) -> tuple[float, float]:
    """Runs a case once; returns CPU seconds of all threads and seconds on the clock."""
    cpu_s, wall_s = time.process_time(), time.perf_counter()
    case(number)
    return time.process_time() - cpu_s, time.perf_counter() - wall_s


def median_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """Median over rounds of one round's ratio."""
    return statistics.median(a / b for a, b in zip(numerators, denominators, strict=True))


@dataclass(frozen=True, slots=True)
class Verdict:
    """A figure beside what it must reach.

    Attributes:
        what: What was measured.
        found: The figure.
        required: What it must reach; None for a figure that is only reported.
        at_most: Whether less is better.
        note: What the reader should know beside it.
    """

    what: str
    found: float
    required: float | None = None
    at_most: bool = False
    note: str = ""

    @property
    def passed(self) -> bool | None:
        """Whether it reaches it; None where nothing is required."""
        if self.required is None:
            return None
        return self.found <= self.required if self.at_most else self.found >= self.required

    def row(self) -> tuple[str, ...]:
        """Its cells in ``table``."""
        word = {None: "", True: "pass", False: "short"}[self.passed]
        bound = "<=" if self.at_most else ">="
        wanted = "" if self.required is None else f"{bound} {self.required:g}"
        return (self.what, f"{self.found:.3f}", wanted, word, self.note)


def table(verdicts: Sequence[Verdict]) -> str:
    """A plain text table of verdicts, a line each."""
    rows = [("what", "found", "required", "", ""), *(verdict.row() for verdict in verdicts)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)
