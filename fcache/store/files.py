"""Files written whole or not at all, and records sealed with their checksum."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
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
    flush(folder.parent)


def flush(path: Path) -> None:
    """Makes the content of a file durable, or the names in a folder."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def published(path: Path) -> Iterator[Path]:
    """Yields where to write a file or folder; on leaving, it is seen whole, or not at all.

    That holds after a power cut too. A file takes the place of a file, a folder that of a folder.

    Raises:
        CacheError: it may not be written there.
        NoSpaceError: the disk or quota is full; nothing is left behind.
    """
    partial = temporary(path)
    with space_checked(path):
        try:
            make_folder(path.parent)
            yield partial
            if partial.is_dir():
                for file in partial.iterdir():
                    flush(file)
                flush(partial)
                if path.exists():  # no folder is renamed over a full one
                    shutil.rmtree(path)
            else:
                flush(partial)
            partial.replace(path)
        except BaseException:
            with suppress(OSError):
                shutil.rmtree(partial) if partial.is_dir() else partial.unlink()
            raise
        flush(path.parent)


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file so that it is seen whole or not at all, also after a power cut.

    Raises:
        CacheError: it may not be written there.
        NoSpaceError: the disk or quota is full; nothing is left behind.
    """
    with published(path) as partial:
        partial.write_bytes(data)


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
