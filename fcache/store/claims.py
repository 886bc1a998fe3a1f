"""Who is writing which shard: a heartbeat file for each, so that two jobs can share a cache."""

from __future__ import annotations

import os
import socket
import threading
import uuid
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fcache.errors import CacheCorruptError
from fcache.store.files import seal, space_checked, unseal, write_whole
from fcache.store.locks import locked

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
        self._record = {**_process(), "writer": uuid.uuid4().hex}
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
            if not self._is_mine(path) and is_live(path, _filesystem_now(self._folder)):
                return False
            write_whole(path, seal(self._record))
        with self._guard:
            self._held.add(path)
        return True

    def is_free(self, bucket: str, shard: int) -> bool:
        """Whether ``take`` would claim a shard at this moment, without asking for the lock."""
        path = self._path(bucket, shard)
        return (
            not path.exists()
            or self._is_mine(path)
            or not is_live(path, _filesystem_now(self._folder))
        )

    def release(self, bucket: str, shard: int) -> None:
        """Gives a shard up."""
        self._drop(self._path(bucket, shard))

    def _path(self, bucket: str, shard: int) -> Path:
        return self._folder / f"{bucket}.{shard:08d}.json"

    def _drop(self, path: Path) -> None:
        with self._guard:
            self._held.discard(path)
        with locked(self._lock):
            if self._is_mine(path):  # a writer that slept too long has lost its claim
                path.unlink(missing_ok=True)

    def _is_mine(self, path: Path) -> bool:
        holder = _holder(path)
        return holder is not None and bool(holder["writer"] == self._record["writer"])

    def _beat(self) -> None:
        while not self._closed.wait(BEAT_S):
            with self._guard:
                held = list(self._held)
            for path in held:
                # A missed beat costs at most a shard computed twice; a dead thread, all of them.
                with suppress(OSError):
                    os.utime(path)


def sweep_claims(index: Path) -> int:
    """Removes the claims of dead writers; returns how many."""
    folder = index / "claims"
    paths = list(folder.glob("*.json"))
    if not paths:
        return 0
    with locked(index / "lock"):
        now_s = _filesystem_now(folder)
        dead = [path for path in paths if not is_live(path, now_s)]
        for path in dead:
            path.unlink(missing_ok=True)
    return len(dead)


def is_live(path: Path, now_s: float) -> bool:
    """Whether a claim's writer is at work.

    Args:
        path: The claim.
        now_s: The clock of the file system that holds it, seconds.
    """
    holder = _holder(path)
    if holder is None:
        return False
    if all(holder[name] == value for name, value in _machine().items()):
        return bool(_start_ticks(int(holder["pid"])) == holder["started"])
    try:
        return now_s - path.stat().st_mtime < STALE_S
    except FileNotFoundError:
        return False


def _holder(path: Path) -> dict[str, Any] | None:
    try:
        return unseal(path)
    except (FileNotFoundError, CacheCorruptError):
        return None


def _process() -> dict[str, Any]:
    return {**_machine(), "pid": os.getpid(), "started": _start_ticks(os.getpid())}


def _machine() -> dict[str, str]:
    """Names what a process id is unique in: containers of a host may not see each other's."""
    try:
        processes = os.readlink("/proc/self/ns/pid")
    except OSError:
        processes = uuid.uuid4().hex  # nothing to know a neighbour by: its heartbeat decides
    return {"host": socket.gethostname(), "boot": _boot_id(), "processes": processes}


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
    probe = folder / f".clock.{uuid.uuid4().hex[:12]}.tmp"
    with space_checked(probe):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            probe.touch()
            return probe.stat().st_mtime
        finally:
            probe.unlink(missing_ok=True)
