"""What a run writes down: ``metrics.jsonl`` and TensorBoard's files, both whole after a resume."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fcache.store.files import write_whole

METRICS = "metrics.jsonl"


class RunLog:
    """Appends lines of numbers to a run's log.

    Lines of steps that a resumed run takes again are dropped.

    Args:
        folder: The run's.
        first_step: Steps taken before.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        path = folder / METRICS
        lines = _lines_until(path, first_step)
        write_whole(path, "".join(line + "\n" for line in lines).encode())
        self._file = path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1)

    def write(self, kind: str, step: int, numbers: Mapping[str, float]) -> None:
        """Adds a line: ``kind`` is ``train`` or ``val``, ``step`` the steps taken."""
        told = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        self._file.write(json.dumps({"kind": kind, "step": step, **told}) + "\n")
        self._file.flush()
        for name, value in numbers.items():
            self._board.add_scalar(f"{kind}/{name}", value, step)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        self._board.close()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Returns the lines of a run's log."""
    return [json.loads(line) for line in _lines_until(folder / METRICS, None)]


def _lines_until(path: Path, last_step: int | None) -> list[str]:
    if not path.exists():
        return []
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            step = json.loads(line)["step"]
        except json.JSONDecodeError:
            continue  # the last line of a run that was killed while it wrote
        if last_step is None or step <= last_step:
            kept.append(line)
    return kept
