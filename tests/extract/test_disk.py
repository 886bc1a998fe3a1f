"""The measured disk: nothing stays, little is taken, and what cannot be measured says why."""

from __future__ import annotations

import errno
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fcache.extract import disk
from fcache.extract.disk import MOST_S, measure_disk
from tests.disks import small_disk


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", 400 << 20) as folder:
        yield folder


def fill(folder: Path, size_bytes: int) -> None:
    with open(folder / "full", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, size_bytes)


def test_a_disk_is_measured_in_two_seconds_and_nothing_stays(tmp_path: Path) -> None:
    changed_ns = tmp_path.stat().st_mtime_ns
    began = time.monotonic()
    speed = measure_disk(tmp_path / "cache" / "that is not there yet")
    assert time.monotonic() - began < 2 * MOST_S + 1  # one batch may take longer than foreseen
    assert speed.reason == ""
    assert speed.bytes_per_s is not None
    assert 1e5 < speed.bytes_per_s < 1e12
    assert list(tmp_path.iterdir()) == []
    assert tmp_path.stat().st_mtime_ns == changed_ns


def test_a_file_system_without_unnamed_files_is_measured_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[int] = []
    make = tempfile.mkstemp
    original = os.open

    def refuse(path, flags, *more, **named):
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return original(path, flags, *more, **named)

    def note(*args, **named):
        made = make(*args, **named)
        opened.append(made[0])
        return made

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(tempfile, "mkstemp", note)
    assert measure_disk(tmp_path).bytes_per_s is not None
    assert len(opened) == 1
    assert list(tmp_path.iterdir()) == []


def test_at_most_a_hundredth_of_what_is_free_is_written(
    mounted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []
    original = os.write

    def count(descriptor: int, data: bytes) -> int:
        written.append(len(data))
        return original(descriptor, data)

    monkeypatch.setattr(os, "write", count)
    free = os.statvfs(mounted).f_bavail * os.statvfs(mounted).f_frsize
    assert measure_disk(mounted / "cache").bytes_per_s is not None
    assert 0 < sum(written) <= free / 100


def test_a_nearly_full_disk_is_left_alone(mounted: Path) -> None:
    fill(mounted, 200 << 20)
    assert measure_disk(mounted) == disk.DiskSpeed(None, "less than 315 MB are free")


def test_a_place_that_cannot_be_written_to_says_why(mounted: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(mounted)], check=True)
    speed = measure_disk(mounted / "cache")
    assert speed.bytes_per_s is None
    assert speed.reason == f"'{mounted}': Read-only file system"
