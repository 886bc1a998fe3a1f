"""Small files written whole or not at all, and the short lock of a view."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import crc32c

from fcache.errors import CacheCorruptError, CacheError, NoSpaceError
from fcache.store.identity import canonical

NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
TMP_SUFFIX = ".tmp"
MIRROR = "mirror"  # folder of the second copies, in a view's index


@contextmanager
def space_checked(path: Path) -> Iterator[None]:
    """Turns the operating system's "no space" and "no permission" into errors a user can mend."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_SPACE:
            raise NoSpaceError(
                f"no space left while writing '{path}'; what is committed stays readable. "
                "Free space and run the same command again: it resumes."
            ) from error
        if error.errno in {errno.EACCES, errno.EROFS, errno.EPERM}:
            raise CacheError(
                f"'{path}' cannot be written: {error.strerror}; expected a writable folder."
            ) from error
        raise


def temporary(path: Path) -> Path:
    """A name beside ``path`` that nobody else uses; swept as left over if the writer dies."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}{TMP_SUFFIX}")


def make_folder(folder: Path) -> None:
    """Makes a folder and its parents, each name durable: a synced file in a lost folder is lost."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder durable."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file so that it is seen whole or not at all, also after a power cut.

    Raises:
        NoSpaceError: the disk or quota is full; nothing is left behind.
    """
    partial = temporary(path)
    with space_checked(path):
        try:
            make_folder(path.parent)
            with partial.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except BaseException:
            with suppress(OSError):
                partial.unlink()
            raise
        sync_folder(path.parent)


def write_twice(index: Path, path: Path, data: bytes) -> None:
    """Writes a file of a view whole, and after it its second copy.

    Readers look at the file alone. After a kill between the two the copy lacks, or is the one of
    the write before; ``mirror.complete`` sets it right.

    Raises:
        NoSpaceError: the disk or quota is full.
    """
    write_whole(path, data)
    write_whole(copy_of(index, path), data)


def copy_of(index: Path, path: Path) -> Path:
    """Where the second copy of a file of a view lies."""
    inside = path.relative_to(index) if path.is_relative_to(index) else Path(path.name)
    return index / MIRROR / inside


def repair_command(cache: Path) -> str:
    """The command that mends what is damaged in a cache."""
    return f"fcache verify '{cache}' --repair"


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record with its own checksum in it."""
    return {**record, "crc32c": crc32c.crc32c(canonical(record))}


def unsealed(content: object, where: Path) -> dict[str, Any]:
    """Takes the checksum off a record.

    Raises:
        CacheCorruptError: ``content`` is no sealed record, or its checksum disagrees.
    """
    if not isinstance(content, dict) or "crc32c" not in content:
        raise CacheCorruptError(f"'{where}' is not a sealed record.", run=_mended_by(where))
    record = {name: value for name, value in content.items() if name != "crc32c"}
    if crc32c.crc32c(canonical(record)) != content["crc32c"]:
        raise CacheCorruptError(
            f"'{where}' does not match its checksum; a bit has changed.", run=_mended_by(where)
        )
    return record


def seal(record: Mapping[str, Any]) -> bytes:
    """The bytes of a file that holds one sealed record."""
    return canonical(sealed(record))


def unseal(path: Path) -> dict[str, Any]:
    """Reads a file that holds one sealed record.

    Raises:
        CacheCorruptError: the file is no such record, or its checksum disagrees.
        FileNotFoundError: there is no such file.
    """
    data = path.read_bytes()
    try:
        content = json.loads(data)
    except ValueError as error:
        raise CacheCorruptError(
            f"'{path}' is not a sealed record: {error}.", run=_mended_by(path)
        ) from error
    if isinstance(content, dict) and _is_spelt_by_seal(data):
        del content["crc32c"]
        return content
    return unsealed(content, path)


def _is_spelt_by_seal(data: bytes) -> bool:
    """Whether the bytes less the checksum in them have that checksum; saves spelling them again."""
    seal = _SEAL.search(data)
    if seal is None:
        return False
    whole = memoryview(data)
    start, end = seal.span()
    return crc32c.crc32c(whole[end:], crc32c.crc32c(whole[:start])) == int(seal[1])


_SEAL = re.compile(rb'"crc32c":(\d+),')


def is_sealed(data: bytes) -> bool:
    """Whether bytes are a sealed record as ``seal`` spells it, to the last bit.

    Stricter than ``unseal``: a flipped bit may leave the value, as where ``1e-05`` turns into
    ``1E-05``.
    """
    try:
        return seal(unsealed(json.loads(data), Path())) == data
    except (ValueError, CacheCorruptError):
        return False


def read_attributes(path: Path) -> dict[str, Any]:
    """Reads fcache's sealed attributes out of a group's ``zarr.json``.

    Raises:
        CacheCorruptError: the file is no group of fcache's, or the checksum disagrees.
        FileNotFoundError: there is no such file.
    """
    try:
        attributes = json.loads(path.read_bytes())["attributes"]["fcache"]
    except (ValueError, KeyError, TypeError) as error:
        raise CacheCorruptError(
            f"'{path}' is not a group of fcache's: {error!r}.", run=_mended_by(path)
        ) from error
    return unsealed(attributes, path)


def _mended_by(path: Path) -> str | None:
    """The command that mends a file: of a view's index, of a view, or of a cache."""
    for folder in path.parents:
        if folder.name == "index":
            return repair_command(folder.parent.parent)
    is_view = (path.parent / "index").is_dir()
    return repair_command(path.parent.parent if is_view else path.parent)


_thread_locks: dict[str, threading.Lock] = {}
_thread_locks_guard = threading.Lock()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds a view's lock: across threads, processes and, by POSIX locks, NFS clients.

    The kernel lets go of it when a process dies, so it is never stale.
    """
    with _thread_lock(path):
        with space_checked(path):
            make_folder(path.parent)
            fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)


@contextmanager
def undisturbed(path: Path) -> Iterator[None]:
    """Keeps those who hold a view's lock out while its records are compared with each other.

    Needs no right to write. On a file system without locks it keeps nobody out.
    """
    with _thread_lock(path):
        try:
            fd = os.open(path, os.O_RDONLY)
        except FileNotFoundError:  # nobody has ever written here
            yield
            return
        try:
            with suppress(OSError):
                fcntl.lockf(fd, fcntl.LOCK_SH)
            yield
        finally:
            os.close(fd)


def _thread_lock(path: Path) -> threading.Lock:
    # A POSIX lock belongs to the process and falls when it closes any descriptor of the file:
    # threads exclude each other first, whatever way they spell the path.
    with _thread_locks_guard:
        return _thread_locks.setdefault(os.path.realpath(path), threading.Lock())
