"""Content hashes: what they cover, and when a remembered one may be used."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path

import pytest

from fcache.errors import SourceError
from fcache.sources import content
from fcache.sources.content import FRESH_NS, HashMemo, content_hash, hash_sources

AGE_NS = 10 * FRESH_NS


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets files just made count as settled: ctime cannot be set back."""
    real = time.time_ns
    monkeypatch.setattr(content.time, "time_ns", lambda: real() + AGE_NS)


def frames(folder: Path, names: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True)
    for name, data in names.items():
        (folder / name).write_bytes(data)
    return folder


def test_hash_of_a_file_is_sha256_of_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"x" * 3_000_000)
    assert content_hash(path, "video") == hashlib.sha256(b"x" * 3_000_000).hexdigest()


def test_hash_of_a_folder_is_that_of_sha256sum_lines_in_frame_order(tmp_path: Path) -> None:
    folder = frames(tmp_path / "f", {"2.jpg": b"two", "10.jpg": b"ten", "notes.txt": b"-"})
    lines = "".join(
        f"{hashlib.sha256(data).hexdigest()}  {name}\n"
        for name, data in (("2.jpg", b"two"), ("10.jpg", b"ten"))
    )
    assert content_hash(folder, "frames") == hashlib.sha256(lines.encode()).hexdigest()


def test_hash_of_a_folder_changes_with_a_name_a_byte_and_the_number_of_frames(
    tmp_path: Path,
) -> None:
    variants = [
        {"1.png": b"a", "2.png": b"b"},
        {"1.png": b"a", "3.png": b"b"},
        {"1.png": b"b", "2.png": b"a"},
        {"1.png": b"a", "2.png": b"b", "3.png": b""},
        {"1.png": b"a"},
    ]
    hashes = {
        content_hash(frames(tmp_path / str(i), names), "frames") for i, names in enumerate(variants)
    }
    assert len(hashes) == len(variants)
    same = frames(tmp_path / "elsewhere", variants[0])
    assert content_hash(same, "frames") == content_hash(tmp_path / "0", "frames")


def test_unreadable_sources_are_source_errors(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"'gone\.mp4' cannot be read: No such file"):
        content_hash(tmp_path / "gone.mp4", "video")
    with pytest.raises(SourceError):
        content_hash(tmp_path, "frames")  # no image
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(SourceError, match="not a regular file"):
        content_hash(tmp_path / "pipe.mp4", "video")


@pytest.mark.usefixtures("settled")
def test_remembered_hash_survives_saving_and_spares_reading(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"content")
    memo = HashMemo(tmp_path / "memo.json")
    expected = content_hash(path, "video", memo)
    memo.save()
    table = json.loads((tmp_path / "memo.json").read_text())
    table["files"][str(path)][-1] = "f" * 64
    (tmp_path / "memo.json").write_text(json.dumps(table))
    assert content_hash(path, "video", HashMemo(tmp_path / "memo.json")) == "f" * 64
    assert content_hash(path, "video") == expected


@pytest.mark.usefixtures("settled")
def test_file_whose_stat_differs_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"one")
    stat = path.stat()
    memo = HashMemo(tmp_path / "memo.json")
    content_hash(path, "video", memo)
    path.write_bytes(b"two")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # same size, mtime and inode
    assert content_hash(path, "video", memo) == hashlib.sha256(b"two").hexdigest()


def test_file_just_written_is_not_remembered(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"one")
    memo = HashMemo(tmp_path / "memo.json")
    content_hash(path, "video", memo)
    memo.save()
    assert not (tmp_path / "memo.json").exists()


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"schema": 2, "files": {}}',
        '{"schema": 1, "files": []}',
        '{"schema": 1, "files": {"PATH": ["a"]}}',
        '{"schema": 1, "files": {"PATH": 7}}',
        "\x00\xff",
    ],
)
def test_corrupt_memo_counts_as_empty_and_is_replaced(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"one")
    memo_path = tmp_path / "memo.json"
    memo_path.write_text(text.replace("PATH", str(path)), encoding="latin-1")
    memo = HashMemo(memo_path)
    assert content_hash(path, "video", memo) == hashlib.sha256(b"one").hexdigest()
    memo.save()
    assert str(path) in json.loads(memo_path.read_text())["files"]


@pytest.mark.usefixtures("settled")
def test_memo_that_cannot_be_written_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"one")
    memo = HashMemo(path / "below-a-file" / "memo.json")
    content_hash(path, "video", memo)
    memo.save()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4"]


@pytest.mark.usefixtures("settled")
def test_two_memos_saved_in_turn_keep_both_entries(tmp_path: Path) -> None:
    memos = [HashMemo(tmp_path / "memo.json") for _ in range(2)]
    for i, memo in enumerate(memos):
        path = tmp_path / f"{i}.mp4"
        path.write_bytes(bytes([i]))
        content_hash(path, "video", memo)
    for memo in memos:
        memo.save()
    assert len(json.loads((tmp_path / "memo.json").read_text())["files"]) == 2
    assert not list(tmp_path.glob(".*tmp"))


@pytest.mark.usefixtures("settled")
def test_environment_turns_the_memo_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FCACHE_NO_MEMO", "1")
    path = tmp_path / "a.mp4"
    path.write_bytes(b"one")
    memo = HashMemo(tmp_path / "memo.json")
    content_hash(path, "video", memo)
    memo.save()
    assert not (tmp_path / "memo.json").exists()


def test_memo_lies_in_the_users_cache_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert HashMemo().path == tmp_path / "fcache/content-hashes-v1.json"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert HashMemo().path.is_relative_to(tmp_path / "home/.cache")


def test_many_sources_keep_their_order_and_their_errors(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.mp4" for i in range(20)]
    for i, path in enumerate(paths):
        if i != 7:
            path.write_bytes(bytes([i]) * 1000)
    results = list(hash_sources((path, "video") for path in paths))
    assert isinstance(results[7], SourceError)
    expected = [hashlib.sha256(bytes([i]) * 1000).hexdigest() for i in range(20) if i != 7]
    assert [r for r in results if isinstance(r, str)] == expected
