"""What a job survives: killed processes, Ctrl-C, a second job, a full disk."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import pytest

from fcache.cache import open_cache
from fcache.manifest import Manifest, Video
from fcache.sources.content import content_hash
from fcache.store.verify import check_metadata, check_shards
from tests.disks import small_disk
from tests.extract.making import (
    extract,
    make_video,
    shard_files,
    shard_hashes,
    words,
)
from tests.extract.running import (
    LONG_FRAMES,
    events,
    fcache,
    finish,
    is_at_work,
    kill_group,
    spoken,
    start_long,
    wait_until,
    workers_of,
)

KILLS = int(os.environ.get("FCACHE_TEST_KILLS", "5"))


def assert_whole(cache: Path, wanted: dict[str, str]) -> None:
    assert shard_hashes(cache) == wanted
    view = open_cache(cache).view()
    assert {video: len(view.frames(video)) for video in view.videos} == LONG_FRAMES
    state = view.index.load()
    assert list(check_metadata(view.index, state)) == []
    assert [one.findings for one in check_shards(view.index, state) if one.findings] == []
    assert list((view.folder / "index" / "parts").glob("*/*.json")) == []


def temporary_files(cache: Path) -> list[Path]:
    return [path for path in cache.rglob("*.tmp") if path.is_file()]


def kill_at_work(process: subprocess.Popen[str], cache: Path, victim: str, after_s: float) -> bool:
    """Kills soon after the job has begun to write; False if it came to its end before.

    Only a worker is killed, which the job survives, or only the job, or the job with its workers.
    """
    wait_until(lambda: is_at_work(cache) or process.poll() is not None)
    time.sleep(after_s)
    wait_until(lambda: workers_now(process) != [] or process.poll() is not None)
    workers = workers_now(process)
    if process.poll() is not None:
        process.communicate()
        return False
    if victim == "worker":
        for worker in workers[:1]:
            os.kill(worker, signal.SIGKILL)
        return workers != []
    if victim == "job":
        process.kill()
    else:
        kill_group(process)
    process.communicate()
    wait_until(lambda: not any(is_running(pid) for pid in workers), 20)
    return True


def workers_now(process: subprocess.Popen[str]) -> list[int]:
    try:
        return workers_of(process.pid)
    except OSError:  # one of them is being replaced at this moment
        return []


def visible_shards(cache: Path) -> dict[str, str]:
    """Hashes of the shard files that have their final names, while a job may be writing more."""
    paths = [path for path in shard_files(cache) if not path.name.startswith(".")]
    return {str(p.relative_to(cache)): sha256(p.read_bytes()).hexdigest() for p in paths}


def is_running(pid: int) -> bool:
    """Whether a process does anything still; a dead one may lie unburied."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_kills_at_random_moments_leave_a_cache_that_finishes_bit_for_bit(
    long_videos: Path, wanted: dict[str, str], tmp_path: Path
) -> None:
    rng, cache = random.Random(1), tmp_path / "cache"
    victims = rng.choices(["worker", "job", "job and workers"], k=KILLS)
    process = start_long(long_videos, cache)
    for victim in victims:
        while not kill_at_work(process, cache, victim, rng.uniform(0, 0.8)):
            shutil.rmtree(cache)
            process = start_long(long_videos, cache)
        assert visible_shards(cache).items() <= wanted.items()
        if process.poll() is not None:
            if len(visible_shards(cache)) == len(wanted):
                shutil.rmtree(cache)
            process = start_long(long_videos, cache)
    print(f"\n{KILLS} kills: {dict(Counter(victims))}")
    finish(process)  # it may have lost too many workers
    code, _, err = finish(start_long(long_videos, cache))
    assert (code, spoken(err)) == (0, [])
    old = time.time() - 7200
    for path in temporary_files(cache):
        os.utime(path, (old, old))
    extract(long_videos, cache, short_side=96)
    assert temporary_files(cache) == []
    assert_whole(cache, wanted)


def test_a_killed_worker_is_replaced_and_the_job_finishes(
    long_videos: Path, wanted: dict[str, str], tmp_path: Path
) -> None:
    process = start_long(long_videos, tmp_path / "cache")
    wait_until(lambda: is_at_work(tmp_path / "cache"))
    (worker,) = workers_of(process.pid)
    os.kill(worker, signal.SIGKILL)
    code, out, err = finish(process)
    assert (code, spoken(err)) == (0, [])
    assert json.loads(out)["frames"] <= sum(LONG_FRAMES.values())
    for path in temporary_files(tmp_path / "cache"):
        path.unlink()
    assert_whole(tmp_path / "cache", wanted)


@pytest.mark.skipif(KILLS <= 5, reason="slow: FCACHE_TEST_KILLS above 5 asks for it")
def test_a_worker_that_dies_again_and_again_fails_no_innocent_video(
    long_videos: Path, wanted: dict[str, str], tmp_path: Path
) -> None:
    process = start_long(long_videos, tmp_path / "cache")
    killed: set[int] = set()
    while process.poll() is None and len(killed) < 5:
        for claim in (tmp_path / "cache").glob("*/index/claims/*.json"):
            with suppress(OSError, ValueError):
                worker = int(json.loads(claim.read_text())["pid"])
                if worker not in killed:
                    os.kill(worker, signal.SIGKILL)
                    killed.add(worker)
        time.sleep(0.005)
    code, out, err = finish(process)
    assert len(killed) == 5
    assert (code, json.loads(out)["failed"]) == (0, {}), err
    assert len(open_cache(tmp_path / "cache").view().videos) == len(LONG_FRAMES)


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_stops_soon_with_130_and_the_same_command_goes_on(
    long_videos: Path, wanted: dict[str, str], tmp_path: Path, times: int
) -> None:
    cache = tmp_path / "cache"
    process = start_long(long_videos, cache)
    wait_until(lambda: is_at_work(cache))
    for _ in range(times):
        kill_group(process, signal.SIGINT)
        time.sleep(0.05)
    code, out, err = finish(process)
    assert code == 130, err
    assert out == ""
    (message,) = spoken(err)
    assert "The same command goes on from there." in message
    assert any(line["event"] == "stopping" for line in events(err.replace(message, "")))
    if times == 1:  # stopped at once, the word to stop stays for workers that outlive the job
        assert not any(cache.glob("*/index/claims/*.stop"))
    assert shard_hashes(cache).items() < wanted.items()
    extract(long_videos, cache, short_side=96)
    assert_whole(cache, wanted)


def test_ctrl_c_while_the_cluster_starts_ends_with_130(long_videos: Path, tmp_path: Path) -> None:
    process = start_long(long_videos, tmp_path / "cache")
    wait_until(lambda: any((tmp_path / "cache").glob("*/index/claims")))
    time.sleep(0.5)
    kill_group(process, signal.SIGINT)
    code, _, err = finish(process, 30)
    assert code == 130, err
    assert "Traceback" not in err


def test_two_jobs_at_once_share_the_work_and_make_one_cache(
    long_videos: Path, wanted: dict[str, str], tmp_path: Path
) -> None:
    both = [start_long(long_videos, tmp_path / "cache") for _ in range(2)]
    ends = [finish(process) for process in both]
    assert [code for code, _, _ in ends] == [0, 0], ends
    done = [json.loads(out)["frames"] for _, out, _ in ends]
    assert sum(done) == sum(LONG_FRAMES.values())
    assert_whole(tmp_path / "cache", wanted)


@pytest.fixture
def full_soon(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", 1500 << 10) as folder:
        yield folder


def test_a_disk_that_fills_up_keeps_what_is_committed_and_resumes_with_room(
    full_soon: Path, tmp_path: Path
) -> None:
    path = make_video(tmp_path / "long.mp4", 90)
    # The plan trusts this number, so that the disk fills while the job is at work.
    video = Video(
        id="long", path=str(path), kind="video", sha256=content_hash(path, "video"),
        num_frames=1, height=48, width=64,
    )  # fmt: skip
    Manifest(name="m", videos=(video,)).write(tmp_path / "m.toml")
    cache = full_soon / "cache"
    command = ["extract", tmp_path / "m.toml", "--cache", cache, "--scheduler", "inline", *words()]
    code, _, err = fcache(*command)
    assert (code, len(spoken(err))) == (6, 1), err
    assert "no space left" in spoken(err)[0]
    before = shard_hashes(cache)
    assert before
    view = open_cache(cache).view()
    for one in check_shards(view.index, view.index.load()):
        assert one.findings == ()
    remount = ["mount", "-o", "remount,size=20m", str(full_soon)]
    subprocess.run(remount, check=True)
    assert fcache(*command)[0] == 0
    assert before.items() <= shard_hashes(cache).items()
    assert len(open_cache(cache).view().frames("long")) == 90


def test_a_disk_known_to_be_too_small_is_refused_before_work(
    full_soon: Path, tmp_path: Path
) -> None:
    make_video(tmp_path / "long.mp4", 90)
    code, _, err = fcache(
        "extract", tmp_path / "long.mp4", "--cache", full_soon / "cache", *words()
    )
    assert code == 6
    assert "Nothing was written" in spoken(err)[0]
    assert list(full_soon.iterdir()) == []
