"""Content hashes: what an item is, wherever its files lie.

A file's hash is the SHA-256 of its bytes, what ``sha256sum`` prints. A frame folder's is the
SHA-256 of one line a frame, in frame order: the frame's own hash in hexadecimal, two spaces, the
file name in UTF-8, a line feed. For zero-padded names that is
``(cd FOLDER && sha256sum *.jpg | sha256sum)``.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import stat as modes
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from fcache.errors import SourceError
from fcache.manifest import SourceKind
from fcache.sources.images import frame_files

# A file changed twice within one tick of its file system's clock looks unchanged by its times, so
# a file this fresh is hashed but not remembered. FAT keeps 2 s, network mounts up to about as much.
FRESH_NS = 3_000_000_000
MAX_REMEMBERED = 500_000
# The memo is one file, written whole: saved no sooner than this after the last time, and with a
# pause of so many times what that took, so that a worker spends at most 2 % of its time on it.
SAVE_PAUSE_S = 5.0
SAVE_PAUSE_RATIO = 50
_READ_SIZE = 1 << 20

Stat = tuple[int, int, int, int]  # size, mtime_ns, ctime_ns, inode


class HashMemo:
    """Remembers hashes of files by (absolute path, size, mtime_ns, ctime_ns, inode).

    Kept in one JSON file in the user's cache folder. It only ever saves time: a file whose stat
    differs is read, and a memo that is corrupt, foreign or unwritable counts as empty. What a
    killed process had not saved is hashed again. ``FCACHE_NO_MEMO=1`` turns it off.

    Args:
        path: Where the memo lies; None for ``$XDG_CACHE_HOME/fcache/content-hashes-v1.json``.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or _default_path()
        self.enabled = os.environ.get("FCACHE_NO_MEMO", "") in {"", "0"}
        self._seen: tuple[int, ...] = ()  # which file of this path was last read or written
        self._known: dict[str, list[object]] = {}
        self._added: dict[str, list[object]] = {}
        self._next_save_s = 0.0
        self._saves_at_exit = False
        self._writing = threading.Lock()
        if self.enabled:
            self._refresh()

    def get(self, path: Path, stat: Stat) -> str | None:
        """Returns the hash of the file that had this stat, if it is remembered."""
        key = os.path.abspath(path)
        entry = self._added.get(key) or self._known.get(key)
        return str(entry[-1]) if entry and tuple(entry[:-1]) == stat else None

    def put(self, path: Path, stat: Stat, sha256: str) -> None:
        """Remembers a hash, unless the file is so fresh that its stat proves nothing."""
        if self.enabled and time.time_ns() - max(stat[1], stat[2]) > FRESH_NS:
            self._added[os.path.abspath(path)] = [*stat, sha256]

    def save(self) -> None:
        """Writes what was added, or leaves it to a later save where the last was a moment ago.

        Cheap enough to be called after every source: the end of the process writes the rest.
        """
        if time.monotonic() >= self._next_save_s:
            self.flush()
        elif self._added and not self._saves_at_exit:
            atexit.register(self.flush)
            self._saves_at_exit = True

    def flush(self) -> None:
        """Writes the memo whole or not at all, with what other processes saved meanwhile."""
        with self._writing:
            added, self._added = self._added, {}
            if added:
                self._write(added)

    def _write(self, added: dict[str, list[object]]) -> None:
        started_s = time.monotonic()
        self._refresh()
        self._known |= added
        surplus = max(0, len(self._known) - MAX_REMEMBERED)
        newest = dict(islice(self._known.items(), surplus, None))
        partial = self.path.with_name(f".{self.path.name}.{uuid.uuid4().hex[:12]}.tmp")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps({"schema": 1, "files": newest}), encoding="utf-8")
            self._seen = _version(partial)
            partial.replace(self.path)
        except (OSError, UnicodeEncodeError):
            # Losing the memo costs reading time only; a read-only home is no reason to stop.
            with suppress(OSError):
                partial.unlink()
        now_s = time.monotonic()
        self._next_save_s = now_s + max(SAVE_PAUSE_S, SAVE_PAUSE_RATIO * (now_s - started_s))

    def _refresh(self) -> None:
        """Takes over what the file holds, unless it is what this memo last saw there."""
        try:
            seen = _version(self.path)
        except OSError:
            return
        if seen != self._seen:
            self._known = {**self._known, **_read(self.path)}
            self._seen = seen


@dataclass(frozen=True, slots=True)
class FolderContent:
    """What a frame folder holds.

    Attributes:
        sha256: The content hash of the folder.
        frames: (frame name, SHA-256 of its file) in frame order: place k is source index k.
    """

    sha256: str
    frames: tuple[tuple[str, str], ...]


def folder_content(path: Path, memo: HashMemo | None = None) -> FolderContent:
    """Returns the hashes of a frame folder and of its frames, each file read once.

    Raises:
        SourceError: as ``content_hash``.
    """
    lines = hashlib.sha256()
    frames = []
    for frame in frame_files(path):
        sha256 = _file_hash(frame, memo)
        lines.update(f"{sha256}  ".encode() + os.fsencode(frame.name) + b"\n")
        frames.append((frame.stem, sha256))
    return FolderContent(lines.hexdigest(), tuple(frames))


def frame_hashes(path: Path, memo: HashMemo | None = None) -> list[tuple[str, str]]:
    """Returns (frame name, SHA-256 of its file) of a frame folder, in frame order.

    Raises:
        SourceError: as ``content_hash``.
    """
    return list(folder_content(path, memo).frames)


def content_hash(path: Path, kind: SourceKind, memo: HashMemo | None = None) -> str:
    """Returns the SHA-256 of a source's content, in hexadecimal.

    Args:
        path: A file, or for ``kind='frames'`` a folder.
        kind: What the source is.
        memo: Saves reading files whose stat has not changed; the caller saves it.

    Raises:
        SourceError: something cannot be read, or changed while it was read.
    """
    return folder_content(path, memo).sha256 if kind == "frames" else _file_hash(path, memo)


def _file_hash(path: Path, memo: HashMemo | None) -> str:
    try:
        before = _stat(path)
        remembered = memo.get(path, before) if memo else None
        if remembered is not None:
            return remembered
        digest = hashlib.sha256()
        with path.open("rb", buffering=0) as file:
            while piece := file.read(_READ_SIZE):
                digest.update(piece)
        after = _stat(path)
    except OSError as error:
        raise SourceError(f"'{path.name}' cannot be read: {error.strerror}.") from error
    if before != after:
        raise SourceError(f"'{path.name}' changed while it was read; wait until it is complete.")
    if memo is not None:
        memo.put(path, after, digest.hexdigest())
    return digest.hexdigest()


def _stat(path: Path) -> Stat:
    stat = path.stat()
    if not modes.S_ISREG(stat.st_mode):  # reading a pipe or a device would wait for ever
        raise SourceError(f"'{path.name}' is not a regular file.")
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


def _version(path: Path) -> tuple[int, ...]:
    stat = path.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns  # renaming a file changes its ctime


def _default_path() -> Path:
    # The XDG specification: a relative value is to be ignored.
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    folder = base if base.is_absolute() else Path(os.path.expanduser("~/.cache"))
    return folder / "fcache" / "content-hashes-v1.json"


def _read(path: Path) -> dict[str, list[object]]:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        if table["schema"] != 1:
            return {}
        return {key: entry for key, entry in table["files"].items() if _is_entry(entry)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _is_entry(entry: object) -> bool:
    return (
        isinstance(entry, list)
        and len(entry) == 5
        and all(isinstance(value, int) for value in entry[:4])
        and isinstance(entry[4], str)
        and len(entry[4]) == 64
    )
