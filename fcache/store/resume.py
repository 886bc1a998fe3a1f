"""How far a ``verify`` came, kept beside what it checks, so that an interrupted one can go on."""

from __future__ import annotations

import time
from base64 import b64decode, b64encode
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

from fcache.errors import CacheCorruptError, FcacheError
from fcache.store.files import seal, unseal, write_whole
from fcache.store.findings import Finding
from fcache.store.index import ViewIndex, ViewState
from fcache.store.repair import Examined
from fcache.store.scrub import Checked, Sample, ShardKey, check_shards

SAVE_S = 5.0  # what a killed verify reads again, at most
_MARK_BYTES = 8


class ShardPass:
    """One reading of a view's shard files, or of a sample of them.

    A file counts as done by its name and its commit: one that is made again meanwhile is not.

    Attributes:
        index: The view's bookkeeping.
        state: What it says.
        keys: The files, in order.
        sample: What they are drawn by; None if they are all there are.
        mended: What was found in the cache's records and is mended, in earlier stints too.
        unsaved: Why progress cannot be kept; None as long as it can.
    """

    def __init__(
        self, index: ViewIndex, state: ViewState, keys: Sequence[ShardKey], sample: Sample | None
    ) -> None:
        self.index = index
        self.keys = keys
        self.mended: list[Finding] = []
        self.unsaved: str | None = None
        self.state = state
        self.sample = sample
        self._marks = _Marks(state)
        self._done: set[bytes] = set()
        self._found: list[tuple[bytes, Finding]] = []
        self._saved_s = time.monotonic()

    @property
    def num_done(self) -> int:
        """Files read so far, in earlier stints too."""
        return len(self._done)

    @property
    def findings(self) -> list[Finding]:
        """What was found so far, in earlier stints too."""
        return [finding for _, finding in self._found]

    @property
    def num_committed(self) -> int:
        """Shard files of the view."""
        return len(self.state.tables.shards)

    @property
    def size_bytes(self) -> int:
        """Committed bytes of the files."""
        return sum(map(self._marks.size_bytes, self.keys))

    def go_on(self, earlier: dict[str, Any]) -> None:
        """Takes up what an interrupted pass kept, as far as it still holds."""
        data = b64decode(earlier["done"])
        marks = {data[i : i + _MARK_BYTES] for i in range(0, len(data), _MARK_BYTES)}
        self._done = marks & {self._marks.of(key) for key in self.keys}
        for name, content in earlier["findings"]:
            mark = bytes.fromhex(name)
            if mark in self._done:
                self._found.append((mark, self._from_json(content)))
        self.mended = list(dict.fromkeys([*map(self._from_json, earlier["mended"]), *self.mended]))

    def run(self) -> Iterator[Checked]:
        """Reads the files that are not done, and yields what was found, file by file."""
        todo = self.keys
        if self._done:
            todo = [key for key in self.keys if self._marks.of(key) not in self._done]
        with closing(check_shards(self.index, self.state, todo)) as files:
            for checked in files:
                mark = self._marks.of(checked.key)
                self._found += [(mark, finding) for finding in checked.findings]
                self._done.add(mark)
                if time.monotonic() - self._saved_s > SAVE_S:
                    self.save()
                yield checked

    def save(self) -> None:
        """Keeps what is done; where that cannot be, ``unsaved`` says why, and that was that."""
        if self.unsaved is not None:
            return
        record = {
            "sample": asdict(self.sample) if self.sample else None,
            "done": b64encode(b"".join(sorted(self._done))).decode(),
            "findings": [(mark.hex(), self._to_json(one)) for mark, one in self._found],
            "mended": [self._to_json(one) for one in self.mended],
        }
        try:
            write_whole(_path(self.index.index), seal(record))
        except (FcacheError, OSError) as error:
            self.unsaved = error.message if isinstance(error, FcacheError) else str(error)
        self._saved_s = time.monotonic()

    def _to_json(self, finding: Finding) -> dict[str, Any]:
        path = finding.path.relative_to(self.index.folder.parent)  # the cache may move meanwhile
        return replace(finding, path=path).to_json()

    def _from_json(self, content: dict[str, Any]) -> Finding:
        finding = Finding.from_json(content)
        return replace(finding, path=self.index.folder.parent / finding.path)


def open_passes(
    views: Sequence[Examined],
    sample: Sample | None,
    *,
    resume: bool,
    mended: Sequence[Finding] = (),
) -> tuple[list[ShardPass], int]:
    """Returns a pass over each view whose records can be read.

    Args:
        views: The views of a cache.
        sample: What to read, out of the files of all views; everything by default.
        resume: Whether to go on with an interrupted verify, and its sample, where there is one.
        mended: What was found in the records just now, and is not there to be found again.

    Returns:
        The passes, and the number of views that an interrupted verify has left its progress in.
    """
    readable = [(v.index, v.state) for v in views if v.index is not None and v.state is not None]
    earlier = {index.folder: _load(index.index) for index, _ in readable}
    left = [record for record in earlier.values() if record is not None]
    if resume and left:
        sample = Sample(**left[0]["sample"]) if left[0]["sample"] else None
    files = {index.folder.name: sorted(state.shards.keys()) for index, state in readable}
    drawn = sample.draw(files) if sample else files
    passes = []
    for index, state in readable:
        passes.append(ShardPass(index, state, drawn[index.folder.name], sample))
        passes[-1].mended = list(mended)
        record = earlier[index.folder]
        if resume and record is not None:
            passes[-1].go_on(record)
    return passes, len(left)


def forget_progress(passes: Sequence[ShardPass]) -> None:
    """Removes what passes kept: they have come to their end."""
    for one in passes:
        with suppress(OSError):  # read-only media refuse to remove even what is not there
            _path(one.index.index).unlink(missing_ok=True)


class _Marks:
    """Short names for committed files: other content, or another commit, gives another mark."""

    def __init__(self, state: ViewState) -> None:
        self._table, self._shards = state.tables.shards, state.shards

    def of(self, key: ShardKey) -> bytes:
        columns = ("size_bytes", "index_crc", "provenance", "committed_s")
        values = (self._value(key, name) for name in columns)
        return blake2b(repr((key, *values)).encode(), digest_size=_MARK_BYTES).digest()

    def size_bytes(self, key: ShardKey) -> int:
        return int(self._value(key, "size_bytes"))

    def _value(self, key: ShardKey, column: str) -> Any:  # noqa: ANN401 - as the column is
        return self._table[column][self._shards.row(key)].as_py()


def _load(index: Path) -> dict[str, Any] | None:
    """What an interrupted pass kept; nothing if it cannot be trusted."""
    try:
        return unseal(_path(index))
    except (FileNotFoundError, CacheCorruptError):
        return None


def _path(index: Path) -> Path:
    return index / "verify.json"
