"""The command line as a user's shell runs it: real processes, in a session of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.extract.making import words

COMMAND = [sys.executable, "-m", "fcache"]
LONG_FRAMES = {f"v{number}": 56 + number for number in range(16)}  # of ``long_videos``


def environment(**changes: str) -> dict[str, str]:
    """One thread a process: the tests share their cores."""
    return {**os.environ, "OMP_NUM_THREADS": "1", **changes}


def start(*words: Any, **env: str) -> subprocess.Popen[str]:
    """Starts ``fcache WORDS`` in a process group of its own."""
    return subprocess.Popen(
        [*COMMAND, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(**env),
        start_new_session=True,
    )


def start_long(videos: Path, cache: Path, *more: Any, **env: str) -> subprocess.Popen[str]:
    """Starts the extraction of ``long_videos``, or of others in the same way."""
    return start("extract", videos, "--cache", cache, "--json", *words(short_side=96), *more, **env)


def finish(process: subprocess.Popen[str], timeout_s: float = 120) -> tuple[int, str, str]:
    """Returns exit code, stdout and stderr."""
    try:
        out, err = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        kill_group(process)
        raise
    return process.returncode, out, err


def fcache(*words: Any, timeout_s: float = 120, **env: str) -> tuple[int, str, str]:
    """Runs ``fcache WORDS`` to its end."""
    return finish(start(*words, **env), timeout_s)


def kill_group(process: subprocess.Popen[str], number: int = signal.SIGKILL) -> None:
    """Sends a signal to a process and all it started, as a terminal does."""
    os.killpg(process.pid, number)


def wait_until(condition, timeout_s: float = 60) -> None:
    """Waits for something that is seen from outside."""
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("the condition did not come true")
        time.sleep(0.01)


def is_at_work(cache: Path) -> bool:
    """Whether a worker holds a shard."""
    return any(cache.glob("*/index/claims/*.json"))


def descendants(pid: int) -> list[int]:
    """Ids of the processes a process started, and of those they started."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        threads = Path(f"/proc/{pid}/task").iterdir()
        for thread in threads:
            children += (thread / "children").read_text().split()
    except OSError:
        return []
    direct = list(dict.fromkeys(map(int, children)))
    return [*direct, *(grand for child in direct for grand in descendants(child))]


def workers_of(pid: int) -> list[int]:
    """Ids of the dask workers of a job."""
    return [
        child
        for child in descendants(pid)
        if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]


def events(err: str) -> list[dict[str, Any]]:
    """The JSON lines of stderr; every line must be one, a last message apart."""
    lines = [line for line in err.splitlines() if line]
    return [json.loads(line) for line in lines]


def spoken(err: str) -> list[str]:
    """The lines of stderr that are no progress."""
    return [line for line in err.splitlines() if line and not line.startswith("{")]
