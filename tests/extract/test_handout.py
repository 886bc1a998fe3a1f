"""A job whose scheduler or workers go away, come late, or come back."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from fcache.cache import open_cache
from tests.extract.dask_running import dask_scheduler, dask_worker, kill
from tests.extract.making import extract, make_videos, shard_files, shard_hashes
from tests.extract.running import (
    events,
    finish,
    is_at_work,
    kill_group,
    spoken,
    start_long,
    wait_until,
    workers_of,
)

SLOW = pytest.mark.skipif(
    int(os.environ.get("FCACHE_TEST_KILLS", "5")) <= 5,
    reason="slow: FCACHE_TEST_KILLS above 5 asks for it",
)


def claimants(cache: Path) -> dict[str, int]:
    """Which process writes which shard at this moment."""
    found = {}
    for path in cache.glob("*/index/claims/*.json"):
        with suppress(OSError, ValueError):
            found[path.stem] = int(json.loads(path.read_text())["pid"])
    return found


def num_committed(cache: Path) -> int:
    return len([path for path in shard_files(cache) if not path.name.startswith(".")])


def committed(cache: Path) -> dict[str, str]:
    """The shard files, without what a killed worker left."""
    return {path: sha for path, sha in shard_hashes(cache).items() if "/." not in path}


def makers(cache: Path) -> set[int]:
    """The processes that committed shards."""
    records = open_cache(cache).view().index.load().tables.shards["provenance"].to_pylist()
    return {json.loads(record)["pid"] for record in records}


def read_until(process: subprocess.Popen[str], event: str) -> str:
    """Reads stderr up to an event."""
    assert process.stderr is not None
    read = ""
    while f'"event": "{event}"' not in read:
        line = process.stderr.readline()
        assert line, read
        read += line
    return read


def test_a_killed_scheduler_ends_the_job_with_one_message_and_its_workers(
    long_videos: Path, wanted: dict[str, str], tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    with (
        dask_scheduler(tmp_path) as (scheduler, address),
        dask_worker(address, tmp_path) as worker,
    ):
        process = start_long(long_videos, cache, "--scheduler", address)
        wait_until(lambda: num_committed(cache) > 0)
        kill(scheduler)
        began = time.monotonic()
        code, out, err = finish(process, 60)
        assert time.monotonic() - began < 40
        assert (code, out) == (1, ""), err
        (message,) = spoken(err)
        assert message.startswith(f"fcache: the scheduler at {address} is lost")
        assert "Every committed shard is kept" in message
        assert any(line["event"] == "scheduler_silent" for line in events(err.replace(message, "")))
        assert any(cache.glob("*/index/claims/*.stop"))  # workers that live on begin no shard
        wait_until(lambda: worker.poll() is not None)
    assert 0 < num_committed(cache) < len(wanted)
    extract(long_videos, cache, short_side=96)
    assert committed(cache) == wanted


class Proxy:
    """A way to a scheduler that can be cut."""

    def __init__(self, address: str) -> None:
        host, _, port = address.removeprefix("tcp://").partition(":")
        self._target = host, int(port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def address(self) -> str:
        host, port = self._listener.getsockname()
        return f"tcp://{host}:{port}"

    def cut(self) -> int:
        """Ends the connections there are; further ones are let through."""
        cut, self._open = self._open, []
        for end in cut:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        return len(cut)

    def close(self) -> None:
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                ends = self._listener.accept()[0], socket.create_connection(self._target)
                self._open += ends
                for pair in (ends, ends[::-1]):
                    threading.Thread(target=self._pump, args=pair, daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)


@contextmanager
def proxy(address: str) -> Iterator[Proxy]:
    opened = Proxy(address)
    yield opened
    opened.close()


def test_a_connection_lost_for_a_moment_is_taken_up_again(
    long_videos: Path, wanted: dict[str, str], tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    with (
        dask_scheduler(tmp_path) as (_, address),
        dask_worker(address, tmp_path),
        proxy(address) as between,
    ):
        process = start_long(long_videos, cache, "--scheduler", between.address)
        for _ in range(2):
            before = num_committed(cache)
            wait_until(lambda before=before: num_committed(cache) > before)
            assert between.cut() > 0
        code, _, err = finish(process)
    assert (code, spoken(err)) == (0, []), err
    assert shard_hashes(cache) == wanted


@contextmanager
def slowed(pid: int) -> Iterator[None]:
    """Lets a process run a tenth of the time: never for long, as it may hold a lock."""
    ended = threading.Event()

    def slow() -> None:
        while not ended.wait(0.02):
            os.kill(pid, signal.SIGSTOP)
            time.sleep(0.2)
            os.kill(pid, signal.SIGCONT)

    thread = threading.Thread(target=slow)
    thread.start()
    yield
    ended.set()
    thread.join()


def test_a_late_worker_takes_its_share_and_that_of_one_that_dies(
    long_videos: Path, wanted: dict[str, str], tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    with dask_scheduler(tmp_path) as (_, address), dask_worker(address, tmp_path) as first:
        process = start_long(long_videos, cache, "--scheduler", address)
        wait_until(lambda: num_committed(cache) > 0 and is_at_work(cache))
        (early,) = set(claimants(cache).values())
        with dask_worker(address, tmp_path):
            with slowed(early):  # so that there is work left when the other is ready
                wait_until(lambda: set(claimants(cache).values()) - {early})
            before = num_committed(cache)
            wait_until(lambda: num_committed(cache) > before)
            kill(first)
            code, _, err = finish(process)
    assert (code, spoken(err)) == (0, []), err
    assert len(makers(cache)) == 2
    assert early in makers(cache)
    assert committed(cache) == wanted


@pytest.mark.parametrize("then", ["Ctrl-C", pytest.param("another worker", marks=SLOW)])
def test_a_job_without_workers_says_that_it_waits(
    long_videos: Path, wanted: dict[str, str], tmp_path: Path, then: str
) -> None:
    cache = tmp_path / "cache"
    with dask_scheduler(tmp_path) as (_, address):
        with dask_worker(address, tmp_path) as worker:
            process = start_long(long_videos, cache, "--scheduler", address)
            wait_until(lambda: num_committed(cache) > 0)
            kill(worker)
        read_until(process, "workers_lost")
        if then == "Ctrl-C":
            kill_group(process, signal.SIGINT)
            code, _, err = finish(process, 30)
            assert code == 130, err
            return
        with dask_worker(address, tmp_path):
            assert f'"scheduler": "{address}"' in read_until(process, "back")
            code, _, err = finish(process)
    assert (code, spoken(err)) == (0, []), err
    assert committed(cache) == wanted


PRELOAD = """
import time
from pathlib import Path

if Path({flag!r}).exists():
    {then}
"""


def local_job(long_videos: Path, tmp_path: Path, then: str) -> tuple[subprocess.Popen[str], Path]:
    """A job whose workers, once the flag is there, do something else than start."""
    flag, preload = tmp_path / "flag", tmp_path / "preload.py"
    preload.write_text(PRELOAD.format(flag=str(flag), then=then))
    env = {"DASK_DISTRIBUTED__WORKER__PRELOAD": str(preload)}
    return start_long(long_videos, tmp_path / "cache", **env), flag


def test_a_local_worker_that_does_not_start_again_ends_the_job(
    long_videos: Path, wanted: dict[str, str], tmp_path: Path
) -> None:
    process, flag = local_job(long_videos, tmp_path, "raise OSError('the driver is gone')")
    wait_until(lambda: num_committed(tmp_path / "cache") > 0)
    flag.touch()
    for pid in workers_of(process.pid):
        os.kill(pid, signal.SIGKILL)
    code, out, err = finish(process, 60)
    assert (code, out) == (1, ""), err
    (message,) = spoken(err)
    assert "do not start again" in message


def test_a_local_worker_that_cannot_start_at_all_is_one_message(
    long_videos: Path, tmp_path: Path
) -> None:
    (tmp_path / "flag").touch()
    process, _ = local_job(long_videos, tmp_path, "raise OSError('the driver is gone')")
    code, out, err = finish(process, 60)
    assert (code, out) == (1, ""), err
    assert len(spoken(err)) == 1, err
    (message,) = spoken(err)
    assert "the driver is gone" in message


@SLOW
def test_a_local_worker_may_take_long_to_start_again(
    long_videos: Path, wanted: dict[str, str], tmp_path: Path
) -> None:
    process, flag = local_job(long_videos, tmp_path, "time.sleep(20)")  # dask gives up after 15
    wait_until(lambda: num_committed(tmp_path / "cache") > 0)
    flag.touch()
    for pid in workers_of(process.pid):
        os.kill(pid, signal.SIGKILL)
    code, _, err = finish(process)
    assert (code, spoken(err)) == (0, []), err
    assert committed(tmp_path / "cache") == wanted


def test_a_video_that_kills_every_worker_fails_alone(tmp_path: Path) -> None:
    lengths = {"a": 32, "b": 32, "c": 32}
    cache = tmp_path / "cache"
    env = {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0"}
    process = start_long(make_videos(tmp_path / "videos", lengths), cache, **env)
    killed: set[int] = set()
    while process.poll() is None:  # rows are given in order: 'b' has the shards 2 and 3
        for shard, pid in claimants(cache).items():
            if shard.endswith(("2", "3")) and pid not in killed:
                killed.add(pid)
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.001)
    code, out, err = finish(process)
    assert (code, list(json.loads(out)["failed"])) == (1, ["b"]), err
    assert 1 <= len(killed) <= 4
    view = open_cache(cache).view()
    assert {video: len(view.frames(video)) for video in ("a", "c")} == {"a": 32, "c": 32}
