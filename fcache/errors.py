"""Every error a user can mend, with the exit code its command ends with.

The text says what is wrong with which value, what was expected, and what to run next. The command
line prints it alone, without a traceback. Wrong calls of the Python API raise ``ValueError`` or
``TypeError`` instead.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FcacheError(Exception):
    """Base of the errors a user can mend.

    Args:
        message: What is wrong, with the value, and what was expected.
        run: A command that mends it or shows more, ready to paste.
    """

    exit_code = 1

    def __init__(self, message: str, *, run: str | None = None) -> None:
        super().__init__(message if run is None else f"{message}\nNext: {run}")
        self.message = message
        self.run = run

    def __reduce__(self) -> tuple[object, ...]:
        # Workers send errors across processes; keyword arguments need help to survive pickling.
        return _rebuild, (type(self), self.message, self.run)


def _rebuild(kind: type[FcacheError], message: str, run: str | None) -> FcacheError:
    return kind(message, run=run)


class ConfigError(FcacheError):
    """A flag, an override, a recipe or a manifest that does not say a possible thing."""

    exit_code = 2


class WeightsError(ConfigError):
    """Weights that cannot be found, or that belong to another architecture."""


class CoverageError(ConfigError):
    """A cache that lacks videos, frames or crops that a run needs."""


class SourceError(FcacheError):
    """A video, folder or image that cannot be used; the text is its quarantine reason."""


class LabelError(FcacheError):
    """Labels that are absent, damaged, or do not fit their frames or categories."""


class FeatureError(FcacheError):
    """Features that must not be stored: not a number, or outside the stored type's range."""


class CacheError(FcacheError):
    """A cache that does not serve this request."""

    exit_code = 5


class CacheNotFoundError(CacheError):
    """There is no cache, view or video of that name."""

    exit_code = 10


class CacheCorruptError(CacheError):
    """Stored bytes that differ from what was committed."""

    exit_code = 4


class NoSpaceError(FcacheError):
    """The disk or the quota does not hold what would be written."""

    exit_code = 6


class KernelError(FcacheError):
    """A compiled library that is required and cannot be built or loaded."""


class InterruptedJobError(FcacheError):
    """The user stopped the job; the same command resumes it."""

    exit_code = 130


QUARANTINED_EXIT_CODE = 3


def nearest(name: str, names: Iterable[str], count: int = 3) -> str:
    """Returns ``'; nearest: a, b'`` for the spellings closest to ``name``, or an empty string."""
    close = difflib.get_close_matches(name, list(names), n=count, cutoff=0.5)
    return f"; nearest: {', '.join(close)}" if close else ""
