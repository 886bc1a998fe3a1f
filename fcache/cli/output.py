"""What commands print: results on stdout, as text or as one JSON object; progress on stderr."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fcache.cli.eta import Eta


def emit_json(command: str, content: Mapping[str, Any]) -> None:
    """Prints one JSON object with its schema."""
    print(
        json.dumps({"schema": f"fcache.{command}/v1", **content}, ensure_ascii=False, default=str)
    )


def emit_lines(rows: Sequence[tuple[str, str]]) -> None:
    """Prints ``name  value`` lines, aligned."""
    width = max((len(name) for name, _ in rows), default=0)
    for name, value in rows:
        print(f"{name:<{width}}  {value}".rstrip())


def emit_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table with aligned columns; numbers to the right."""
    columns = list(zip(head, *rows, strict=True))
    widths = [max(len(cell) for cell in column) for column in columns]
    right = [all(_is_number(cell) for cell in column[1:]) and bool(rows) for column in columns]
    for row in (head, *rows):
        cells = (
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        )
        print("  ".join(cells).rstrip())


def human_bytes(count: float) -> str:
    """Returns a size with three digits and a decimal unit: ``17.7 MB``."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(count) < 1000 or unit == "TB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"


def human_seconds(seconds: float) -> str:
    """Returns a duration as ``h:mm:ss``."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def beside(cache: Path, suffix: str) -> Path:
    """Returns the path of a picture beside a cache, also where the cache is ``.``."""
    whole = Path(os.path.abspath(cache))
    return whole.with_name(f"{whole.name}{suffix}")


def _is_number(cell: str) -> bool:
    return (
        cell == "-"
        or cell.replace(",", "").replace(".", "").removeprefix("-").split(" ")[0].isdigit()
    )


WINDOW_S = 30.0  # over which the rate is measured


class Progress:
    """One line of progress on stderr: a bar on a terminal, JSON lines elsewhere.

    The rates are over the last half minute, the time left comes from ``Eta``. Any thread may tell
    of progress. ``FCACHE_NO_PROGRESS`` leaves only what ``note`` tells.

    Args:
        command: Whose work it is.
        total: Units there are to do.
        unit: What is counted.
        cost: What all units cost, where they differ in it; ``advance`` is told of each.
    """

    def __init__(
        self, command: str, total: int, unit: str = "frames", cost: float | None = None
    ) -> None:
        self._command = command
        self._cost = total if cost is None else cost
        self._eta = Eta(self._cost, time.monotonic())
        self._total = total
        self._unit = unit
        self._done = 0
        self._bytes = 0
        self._marks: list[tuple[float, int, int]] = [(time.monotonic(), 0, 0)]
        self._last_line_s = 0.0
        self._lock = threading.RLock()  # a signal handler may come in while it is held
        self._wanted = not os.environ.get("FCACHE_NO_PROGRESS")
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        if self._wanted and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress as Bar, TextColumn

            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f}%"),
                TextColumn("{task.fields[detail]}"),
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._bar.add_task(self._command, total=self._total, detail="")
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def start(self) -> None:
        """Begins to count time: what came before was start-up."""
        with self._lock:
            now = time.monotonic()
            self._eta = Eta(self._cost, now)
            self._marks = [(now, self._done, self._bytes)]

    def advance(
        self,
        count: int,
        size_bytes: int = 0,
        *,
        cost: float | None = None,
        worker: str = "",
        num_workers: int = 1,
    ) -> None:
        """Adds finished units.

        Args:
            size_bytes: Bytes written for them.
            cost: What they cost; without it, each costs 1.
            worker: Who finished them.
            num_workers: How many workers there are.
        """
        with self._lock:
            now = time.monotonic()
            self._eta.add(now, count if cost is None else cost, worker, num_workers)
            self._done += count
            self._total = max(self._total, self._done)
            self._bytes += size_bytes
            self._marks.append((now, self._done, self._bytes))
            while len(self._marks) > 2 and now - self._marks[1][0] > WINDOW_S:
                self._marks.pop(0)
            if self._bar is not None:
                self._bar.update(
                    self._task, completed=self._done, total=self._total, detail=self._detail()
                )
            elif self._wanted and (now - self._last_line_s >= 1 or self._done == self._total):
                self._last_line_s = now
                self._print({"event": "progress", **self._figures()})

    def move(self, part: str, done: int, total: int) -> None:
        """Says how far a part of the work is, for work in several parts."""
        if part != self._unit:
            self._unit, self._total, self._done, self._cost = part, total, 0, total
            self.start()
        self.advance(done - self._done)

    def note(self, event: Mapping[str, Any], text: str) -> None:
        """Tells of something that happened: text on a terminal, the event elsewhere."""
        with self._lock:
            if self._bar is not None:
                self._bar.console.print(text, markup=False, highlight=False)
            elif sys.stderr.isatty():
                print(text, file=sys.stderr)
            else:
                self._print(event)

    def _print(self, event: Mapping[str, Any]) -> None:
        line = {"command": self._command, **event}
        print(json.dumps(line, ensure_ascii=False, default=str), file=sys.stderr, flush=True)

    def _figures(self) -> dict[str, Any]:
        (first_s, first, first_bytes), (last_s, last, last_bytes) = self._marks[0], self._marks[-1]
        seconds = max(last_s - first_s, 1e-9)
        rate = (last - first) / seconds
        left_s = 0.0 if self._done >= self._total else self._eta.left_s(last_s)
        return {
            "done": self._done,
            "total": self._total,
            "unit": self._unit,
            "per_s": round(rate, 3),
            "bytes_per_s": round((last_bytes - first_bytes) / seconds),
            "eta_s": None if left_s is None else round(left_s, 1),
        }

    def _detail(self) -> str:
        at = self._figures()
        eta = human_seconds(at["eta_s"]) if at["eta_s"] is not None else "?"
        written = f"  {human_bytes(at['bytes_per_s'])}/s" if self._bytes else ""
        return (
            f"{at['done']:,}/{at['total']:,} {self._unit}  {at['per_s']:.1f}/s{written}  eta {eta}"
        )
