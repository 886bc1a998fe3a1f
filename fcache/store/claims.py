"""Who is writing which shard: a heartbeat file for each, so that two jobs can share a cache."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fcache.errors import CacheCorruptError
from fcache.store.files import locked, seal, unseal, write_whole

BEAT_S = 10.0
STALE_S = 120.0


class Claims:
    """The claims of one writer, kept alive by a thread while it is open.

    A claim is another's only as long as its heartbeat is fresh, or, on the same machine, its
    process lives.
    """

    def __init__(self, index: Path) -> None:
        self._folder = index / "claims"
        self._lock = index / "lock"
        self._held: set[Path] = set()
        self._guard = threading.Lock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="fcache-claims", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closed.set()
        self._thread.join()
        for path in list(self._held):
            self._drop(path)

    def take(self, bucket: str, shard: int) -> bool:
        """Claims a shard; False if a live writer holds it."""
        path = self._path(bucket, shard)
        with locked(self._lock):
            if path not in self._held and self._is_live(path):
                return False
            write_whole(path, seal(_process()))
        with self._guard:
            self._held.add(path)
        return True

    def release(self, bucket: str, shard: int) -> None:
        """Gives a shard up."""
        self._drop(self._path(bucket, shard))

    def _path(self, bucket: str, shard: int) -> Path:
        return self._folder / f"{bucket}.{shard:08d}.json"

    def _drop(self, path: Path) -> None:
        with self._guard:
            self._held.discard(path)
        path.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._closed.wait(BEAT_S):
            with self._guard:
                held = list(self._held)
            for path in held:
                with suppress(FileNotFoundError):
                    os.utime(path)

    def _is_live(self, path: Path) -> bool:
        return is_live(path, _filesystem_now(self._folder))


def is_live(path: Path, now_s: float) -> bool:
    """Whether a claim's writer is at work."""
    try:
        age_s = now_s - path.stat().st_mtime
        holder = unseal(path)
    except (FileNotFoundError, CacheCorruptError):
        return False
    if _same_machine(holder):
        return _is_running(holder)
    return age_s < STALE_S


def _process() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "boot": _boot_id(),
        "pid": os.getpid(),
        "started": _start_ticks(os.getpid()),
    }


def _same_machine(holder: Mapping[str, Any]) -> bool:
    return bool(holder["boot"]) and (holder["host"], holder["boot"]) == (
        socket.gethostname(),
        _boot_id(),
    )


def _is_running(holder: Mapping[str, Any]) -> bool:
    started = _start_ticks(int(holder["pid"]))
    return started is not None and started == holder["started"]


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _start_ticks(pid: int) -> int | None:
    """When a process started, in clock ticks since boot: a pid alone may be used again."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in {"Z", "X"} else int(fields[19])


def _filesystem_now(folder: Path) -> float:
    """The clock of the file system: heartbeats of other hosts are measured by it."""
    probe = folder / f".clock.{os.getpid()}.{time.monotonic_ns()}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)
