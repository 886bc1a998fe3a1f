"""Content hashes: what an item is, wherever its files lie.

A file's hash is the SHA-256 of its bytes, what ``sha256sum`` prints. A frame folder's is the
SHA-256 of one line a frame, in frame order: the frame's own hash in hexadecimal, two spaces, the
file name in UTF-8, a line feed. For zero-padded names that is
``(cd FOLDER && sha256sum *.jpg | sha256sum)``.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat as modes
import time
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from fcache.errors import SourceError
from fcache.manifest import SourceKind
from fcache.sources.images import frame_files

# A file changed twice within one tick of its file system's clock looks unchanged by its times, so
# a file this fresh is hashed but not remembered. FAT keeps 2 s, network mounts up to about as much.
FRESH_NS = 3_000_000_000
MAX_REMEMBERED = 500_000
_READ_SIZE = 1 << 20

Stat = tuple[int, int, int, int]  # size, mtime_ns, ctime_ns, inode


class HashMemo:
    """Remembers hashes of files by (absolute path, size, mtime_ns, ctime_ns, inode).

    Kept in one JSON file in the user's cache folder. It only ever saves time: a file whose stat
    differs is read, and a memo that is corrupt, foreign or unwritable counts as empty.
    ``FCACHE_NO_MEMO=1`` turns it off.

    Args:
        path: Where the memo lies; None for ``$XDG_CACHE_HOME/fcache/content-hashes-v1.json``.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or _default_path()
        self.enabled = os.environ.get("FCACHE_NO_MEMO", "") in {"", "0"}
        self._known = _read(self.path) if self.enabled else {}
        self._added: dict[str, list[object]] = {}

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
        """Writes the memo whole or not at all, with what other processes saved meanwhile."""
        if not self._added:
            return
        self._known = {**_read(self.path), **self._added}
        self._added = {}
        newest = dict(list(self._known.items())[-MAX_REMEMBERED:])
        partial = self.path.with_name(f".{self.path.name}.{uuid.uuid4().hex[:12]}.tmp")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps({"schema": 1, "files": newest}), encoding="utf-8")
            partial.replace(self.path)
        except (OSError, UnicodeEncodeError):
            # Losing the memo costs reading time only; a read-only home is no reason to stop.
            with suppress(OSError):
                partial.unlink()


def content_hash(path: Path, kind: SourceKind, memo: HashMemo | None = None) -> str:
    """Returns the SHA-256 of a source's content, in hexadecimal.

    Args:
        path: A file, or for ``kind='frames'`` a folder.
        kind: What the source is.
        memo: Saves reading files whose stat has not changed; the caller saves it.

    Raises:
        SourceError: something cannot be read, or changed while it was read.
    """
    if kind != "frames":
        return _file_hash(path, memo)
    lines = hashlib.sha256()
    for frame in frame_files(path):
        lines.update(f"{_file_hash(frame, memo)}  ".encode() + os.fsencode(frame.name) + b"\n")
    return lines.hexdigest()


def hash_sources(
    items: Iterable[tuple[Path, SourceKind]], memo: HashMemo | None = None, *, threads: int = 4
) -> Iterator[str | SourceError]:
    """Yields the content hash, or the error, of each source in order; reads several at once."""

    def one(item: tuple[Path, SourceKind]) -> str | SourceError:
        try:
            return content_hash(*item, memo)
        except SourceError as error:
            return error

    with ThreadPoolExecutor(threads) as pool:
        yield from pool.map(one, items)


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
