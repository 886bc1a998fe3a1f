"""How a job tells its workers to stop, wherever they are: by a file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fcache.errors import InterruptedJobError
from fcache.interrupt import interruptible
from fcache.report import Report


@contextmanager
def stoppable(stop_file: Path, report: Report) -> Iterator[None]:
    """Ctrl-C once: workers finish the shard at hand. Twice: at once. Nothing committed is lost."""

    def ask() -> None:
        stop_file.touch()
        report({"event": "stopping"})

    stop_file.parent.mkdir(parents=True, exist_ok=True)
    stop_file.unlink(missing_ok=True)  # a killed job of the same process id may have left it
    with interruptible(ask):
        try:
            yield
        except InterruptedJobError:
            stop_file.unlink(missing_ok=True)
            raise
        except BaseException:
            # It stays until a sweep: workers of a scheduler that lives on stop at their next shard.
            with suppress(OSError):
                stop_file.touch()
            raise
        else:
            stop_file.unlink(missing_ok=True)
