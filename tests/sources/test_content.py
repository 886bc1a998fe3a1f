"""Content hashes: what they cover, and when a remembered one may be used."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fcache.errors import SourceError
from fcache.sources import content
from fcache.sources.content import (
    FRESH_NS,
    HashMemo,
    content_hash,
    folder_content,
    frame_hashes,
)

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


def test_frame_hashes_are_those_of_the_files_by_frame_name_in_frame_order(tmp_path: Path) -> None:
    data = {"2.jpg": b"two", "10.PNG": b"ten", "a.1.jpg": b"", "notes.txt": b"-"}
    folder = frames(tmp_path / "f", data)
    expected = [
        (stem, hashlib.sha256(data[name]).hexdigest())
        for stem, name in (("2", "2.jpg"), ("10", "10.PNG"), ("a.1", "a.1.jpg"))
    ]
    assert frame_hashes(folder) == expected
    whole = folder_content(folder)
    assert (list(whole.frames), whole.sha256) == (expected, content_hash(folder, "frames"))


def test_a_folder_that_grew_keeps_the_hashes_of_its_frames(tmp_path: Path) -> None:
    folder = frames(tmp_path / "f", {"1.jpg": b"one", "3.jpg": b"three"})
    before = dict(frame_hashes(folder))
    (folder / "2.jpg").write_bytes(b"two")
    after = dict(frame_hashes(folder))
    assert list(after) == ["1", "2", "3"]
    assert before.items() < after.items()


def test_unreadable_sources_are_source_errors(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"'gone\.mp4' cannot be read: No such file"):
        content_hash(tmp_path / "gone.mp4", "video")
    for hashing in (lambda path: content_hash(path, "frames"), frame_hashes):
        with pytest.raises(SourceError, match="no frames"):
            hashing(tmp_path)
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


def remembered(path: Path) -> list[str]:
    return [Path(name).name for name in json.loads(path.read_text())["files"]]


@pytest.mark.usefixtures("settled")
def test_a_save_soon_after_another_is_left_to_the_next(tmp_path: Path) -> None:
    memo = HashMemo(tmp_path / "memo.json")
    for name in "abc":
        (tmp_path / name).write_bytes(b"content")
        content_hash(tmp_path / name, "video", memo)
        memo.save()
    assert remembered(memo.path) == ["a"]
    memo.flush()
    assert remembered(memo.path) == ["a", "b", "c"]


@pytest.mark.usefixtures("settled")
def test_what_others_saved_between_two_saves_is_kept(tmp_path: Path) -> None:
    memos = [HashMemo(tmp_path / "memo.json") for _ in range(2)]
    for i, name in enumerate("abcd"):
        (tmp_path / name).write_bytes(b"content")
        content_hash(tmp_path / name, "video", memos[i % 2])
        memos[i % 2].flush()
        assert remembered(tmp_path / "memo.json") == list("abcd"[: i + 1])
    assert not list(tmp_path.glob(".*tmp"))


def test_what_was_left_to_a_later_save_is_written_as_the_process_ends(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from fcache.sources import content
content.FRESH_NS = -1  # files just made count as settled
memo = content.HashMemo(Path(sys.argv[1]))
for path in map(Path, sys.argv[2:]):
    content.content_hash(path, "video", memo)
    memo.save()
assert len(content.HashMemo(memo.path)._known) == 1
"""
    paths = [tmp_path / name for name in "abc"]
    for path in paths:
        path.write_bytes(b"content")
    memo = tmp_path / "memo.json"
    subprocess.run([sys.executable, "-c", code, memo, *paths], check=True)
    assert remembered(memo) == ["a", "b", "c"]


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
