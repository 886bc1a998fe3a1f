"""Files that stay open for reading, few enough for the process's limit.

Used by many threads at once, and after a fork.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from pathlib import Path

from fcache.errors import CacheCorruptError

MAX_OPEN_FILES = 512


class OpenFile:
    """A descriptor that lives as long as somebody holds it, so eviction cannot pull it away."""

    __slots__ = ("fd", "path")

    def __init__(self, path: Path) -> None:
        self.fd = -1  # what is left if opening fails
        self.path = path
        self.fd = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)

    def read(self, pieces: list[memoryview], offset: int) -> None:
        """Fills the pieces one after the other with the file's bytes from ``offset`` on.

        Raises:
            CacheCorruptError: the file ends before.
        """
        while pieces:
            count = os.preadv(self.fd, pieces, offset)
            if count == 0:
                raise CacheCorruptError(
                    f"'{self.path}' ends before byte {offset}; it was committed longer."
                )
            offset += count
            while pieces and count >= len(pieces[0]):
                count -= len(pieces.pop(0))
            if pieces:
                pieces[0] = pieces[0][count:]


class OpenFiles:
    """The most recently used shard files, kept open per process."""

    def __init__(self, limit: int = MAX_OPEN_FILES) -> None:
        self._limit = limit
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._files: OrderedDict[Path, OpenFile] = OrderedDict()

    def get(self, path: Path) -> OpenFile:
        """Returns the open file, opening it at first use."""
        if self._pid != os.getpid():  # a fork may have copied the lock while it was held
            self._pid, self._lock = os.getpid(), threading.Lock()
        with self._lock:
            file = self._files.get(path)
            if file is None:
                file = self._files[path] = OpenFile(path)
                if len(self._files) > self._limit:
                    self._files.popitem(last=False)
            else:
                self._files.move_to_end(path)
        return file
