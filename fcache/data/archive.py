"""Files inside a zip, read without unpacking it: submissions come as zips."""

from __future__ import annotations

import errno
import shutil
import zipfile
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

from fcache.errors import LabelError


@dataclass(frozen=True, slots=True)
class Zipped:
    """A file or folder inside a zip, with as much of a path's ways as the readers need.

    Attributes:
        archive: The zip.
        name: The path inside it, empty for its top.
    """

    archive: Path
    name: str = ""

    def __truediv__(self, name: str) -> Zipped:
        return Zipped(self.archive, f"{self.name}/{name}" if self.name else name)

    def __str__(self) -> str:
        return str(self.archive / self.name)

    def is_dir(self) -> bool:
        """Whether files lie below it."""
        return self.name in _opened(self.archive).folders

    def read_bytes(self) -> bytes:
        """Returns a file's content.

        Raises:
            OSError: there is no such file, or its bytes are damaged.
        """
        try:
            return _opened(self.archive).zip.read(self.name)
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, "No such file in the zip", str(self)) from None
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
            raise OSError(errno.EIO, f"{error}", str(self)) from error


Place = Path | Zipped


@dataclass(frozen=True, slots=True)
class _Opened:
    zip: zipfile.ZipFile
    folders: frozenset[str]


@lru_cache(maxsize=2)
def _opened(archive: Path) -> _Opened:
    opened = zipfile.ZipFile(archive)
    parents = {parent for name in opened.namelist() for parent in PurePosixPath(name).parents}
    return _Opened(opened, frozenset("" if str(p) == "." else str(p) for p in parents))


def open_zip(archive: Path) -> tuple[Zipped, list[str]]:
    """Returns the top of a zip, and the names of all files in it.

    Raises:
        LabelError: it is no zip, or is damaged.
    """
    _opened.cache_clear()  # the file may have changed since it was last read
    try:
        names = _opened(archive).zip.namelist()
    except zipfile.BadZipFile as error:
        raise LabelError(f"'{archive}' is not a whole zip: {error}.") from error
    # macOS puts a second, hidden file beside each.
    return Zipped(archive), [
        name for name in names if not name.endswith("/") and not name.startswith("__MACOSX/")
    ]


def unpack(file: Zipped, folder: Path) -> Path:
    """Returns a copy of a file in a folder, below the zip's name.

    Raises:
        LabelError: its bytes are damaged.
    """
    path = folder / file.archive.name / file.name
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _opened(file.archive).zip.open(file.name) as packed, path.open("wb") as plain:
            shutil.copyfileobj(packed, plain)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise LabelError(f"'{file}' is damaged: {error}.") from error
    return path
