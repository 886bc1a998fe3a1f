"""A dask scheduler and workers of their own, as a user starts them, on the loopback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.extract.running import environment, wait_until

Process = subprocess.Popen[bytes]


def kill(process: Process) -> None:
    """Kills a process and what it started, if it is still there."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextmanager
def dask_scheduler(folder: Path) -> Iterator[tuple[Process, str]]:
    """A scheduler and its address."""
    path = folder / "scheduler.json"
    with _dask(
        "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard",
        "--scheduler-file", path,
    ) as process:  # fmt: skip
        wait_until(lambda: path.exists() and path.read_text().endswith("}"))
        yield process, json.loads(path.read_text())["address"]


@contextmanager
def dask_worker(address: str, folder: Path, num_threads: int = 1) -> Iterator[Process]:
    """A worker and the nanny that starts it again."""
    with _dask(
        "worker", address, "--host", "127.0.0.1", "--nthreads", num_threads, "--no-dashboard",
        "--local-directory", folder / "scratch",
    ) as process:  # fmt: skip
        yield process


@contextmanager
def _dask(*words: object) -> Iterator[Process]:
    process = subprocess.Popen(
        [sys.executable, "-m", "dask", *map(str, words)],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        kill(process)
