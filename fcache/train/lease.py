"""A note in the cache that a run uses some of its views, for ``gc`` to honour."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from fcache.errors import CacheError, NoSpaceError
from fcache.store.files import write_whole

REFS = "refs"


@contextmanager
def leased(cache: Path, run: Path, views: Sequence[str]) -> Iterator[str]:
    """Leaves ``refs/<run>.json`` in a cache for as long as the context lasts.

    Yields why there is none, or an empty string: a cache on read-only media is trained from too.
    """
    name = hashlib.sha256(str(run.absolute()).encode()).hexdigest()[:16]
    path = cache / REFS / f"{name}.json"
    told = {
        "run": str(run.absolute()),
        "views": list(views),
        "host": os.uname().nodename,
        "pid": os.getpid(),
        "since_s": time.time(),
    }
    try:
        write_whole(path, (json.dumps(told, indent=2) + "\n").encode())
    except (CacheError, NoSpaceError) as error:
        yield error.message
        return
    try:
        yield ""
    finally:
        with suppress(OSError):
            path.unlink()
