"""Reading a view's shard files against their commit records: all of them, or a sample."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Generator, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from heapq import nsmallest
from math import ceil

from fcache.errors import ConfigError
from fcache.store.findings import Finding
from fcache.store.index import ViewIndex, ViewState
from fcache.store.layout import SHARD_ROWS, Bucket
from fcache.store.shard import CHECK_BYTES, check_shard

ShardKey = tuple[str, str, int]  # bucket, array, shard number: one file
MAX_THREADS = 4


@dataclass(frozen=True, slots=True)
class Checked:
    """One shard file that was read, with what was found."""

    key: ShardKey
    size_bytes: int
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """A part of the shard files, drawn at random.

    Attributes:
        amount: As it was typed: a share such as ``5%``, or a number of files.
        seed: The same seed draws the same files of the same cache.
    """

    amount: str
    seed: int

    def __post_init__(self) -> None:
        number = self.amount.removesuffix("%")
        try:
            value = float(number) if number != self.amount else int(number)
        except ValueError:
            value = 0
        if not 0 < value <= (100 if number != self.amount else float("inf")):
            raise ConfigError(
                f"--sample {self.amount} is no part of a cache; expected a share such as 5%, or a "
                "number of shard files."
            )

    def count(self, total: int) -> int:
        """Number of files out of ``total``."""
        if self.amount.endswith("%"):
            return ceil(total * float(self.amount.removesuffix("%")) / 100)
        return min(total, int(self.amount))

    def draw(self, views: Mapping[str, Iterable[ShardKey]]) -> dict[str, list[ShardKey]]:
        """Returns the files drawn from each view, out of the files of all.

        A file that is there in two draws of one seed has the same rank in both.
        """
        files = [(view, key) for view, keys in views.items() for key in keys]
        drawn = nsmallest(self.count(len(files)), files, key=self._rank)
        return {view: sorted(key for of, key in drawn if of == view) for view in views}

    def _rank(self, file: tuple[str, ShardKey]) -> bytes:
        return blake2b(repr((self.seed, file)).encode(), digest_size=8).digest()


def check_shards(
    index: ViewIndex, state: ViewState, keys: Iterable[ShardKey] | None = None
) -> Generator[Checked, None, None]:
    """Reads committed shard files, some at once, and yields what was found, file by file.

    Args:
        index: The view's bookkeeping.
        state: What it says.
        keys: Which files, and in which order; all of them by default.
    """
    owners, every = _owners(state), sorted(state.shards.keys())
    specs = {
        (name, spec.name): spec
        for name in {bucket for bucket, _, _ in every}
        for spec in index.layout.arrays(Bucket.parse(name))
    }
    memory, stop = threading.local(), threading.Event()

    def prepare() -> None:
        memory.scratch = memoryview(bytearray(CHECK_BYTES))

    def look(key: ShardKey) -> Checked:
        bucket, array, shard = key
        spec, record = specs[bucket, array], state.shards.record(key)
        path = index.folder / bucket / spec.shard_path(shard)
        problems = check_shard(path, record, spec.shard_chunks, memory.scratch, stop)
        where = Bucket.parse(bucket), shard, owners.get((bucket, shard), ())
        found = tuple(Finding.of_shard(path, problem, *where) for problem in problems)
        return Checked(key, record.size_bytes, found)

    # Reading and crc32c both let go of the interpreter's lock.
    num_threads = min(MAX_THREADS, max(2, os.cpu_count() or 2))
    pool = ThreadPoolExecutor(num_threads, "fcache-verify", initializer=prepare)
    ahead: deque[Future[Checked]] = deque()
    try:
        for key in every if keys is None else keys:
            ahead.append(pool.submit(look, key))
            if len(ahead) > 2 * num_threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


def _owners(state: ViewState) -> dict[tuple[str, int], tuple[str, ...]]:
    """Which videos have rows in a shard, of their own or borrowed."""
    names: dict[str, list[str]] = {}
    for name in state.names:
        names.setdefault(name.item, []).append(name.video_id)
    owners: dict[tuple[str, int], dict[str, None]] = {}
    for item in state.items.values():
        borrowed = {row // SHARD_ROWS for _, row in item.borrowed}
        for shard in {shard for _, shard in item.shards()} | borrowed:
            held = owners.setdefault((item.bucket.name, shard), {})
            held.update(dict.fromkeys(names.get(item.item, ())))
    return {key: tuple(videos) for key, videos in owners.items()}
