"""A library file that says what it is: a stamp behind the last byte, which loaders do not read.

One file, so one rename puts it in place whole. A file that was cut short, damaged or made by
somebody else has no stamp that fits its bytes and is never loaded.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

_MAGIC = b"fcache-1"
_TAIL = struct.Struct("<Q8s")  # size of the JSON before it, magic


@dataclass(frozen=True, slots=True)
class Stamp:
    """Where a library came from.

    Args:
        source_key: Hash of the sources, the flags and the kind of machine.
        compiler: First line of what the compiler says of its version.
        archs: CUDA architectures it holds code for, such as ``"90"``.
    """

    source_key: str
    compiler: str
    archs: tuple[str, ...] = ()


def put_stamped(content: bytes, stamp: Stamp, path: Path) -> None:
    """Puts a stamped library in place by rename: readers see all of it, or what was there.

    Raises:
        OSError: The folder cannot be written.
    """
    table = json.dumps({"sha256": _digest(content, stamp), **asdict(stamp)}).encode()
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("wb") as file:
            file.write(content + table + _TAIL.pack(len(table), _MAGIC))
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o755)
        temporary.replace(path)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def read_stamp(path: Path) -> Stamp | None:
    """Returns the stamp of a library, or None where the bytes are not what was stamped.

    Raises:
        OSError: The file cannot be read.
    """
    content = path.read_bytes()
    if len(content) < _TAIL.size:
        return None
    size, magic = _TAIL.unpack(content[-_TAIL.size :])
    end = len(content) - _TAIL.size - size
    if magic != _MAGIC or end < 0:
        return None
    try:
        words = json.loads(content[end : -_TAIL.size])
        sha256, archs = words.pop("sha256"), tuple(words.pop("archs"))
        stamp = Stamp(**words, archs=archs)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return stamp if _digest(content[:end], stamp) == sha256 else None


def _digest(content: bytes, stamp: Stamp) -> str:
    return hashlib.sha256(content + json.dumps(asdict(stamp)).encode()).hexdigest()
