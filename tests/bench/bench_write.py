"""How fast shards are written: CPU time beside plain ``write`` of the same bytes, and beside peers.

Writes full shards of ViT-g's shapes, 16 frames of 24 MB; what each way wrote is read back and
compared first. Also what a row group takes of memory beyond its source (in a process of its own),
and how many bytes it writes for each byte of payload.

    python tests/bench/bench_write.py [--quick] [--folder TEMPORARY] [--rounds N]

It takes 2 GB of memory and disk meanwhile; ``--quick`` takes tiny shapes, whose ratios mean
nothing.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))  # where `tests` is, when run as a script

from fcache.store.cache import View
from fcache.store.index import ViewIndex
from fcache.store.layout import SHARD_ROWS
from fcache.store.reader import OpenFiles
from fcache.store.records import Item
from fcache.store.shard import ShardWriter
from fcache.store.writer import RowGroup
from tests.bench.peers import ArrayWriter, Values, create_peers
from tests.bench.timing import Timing, Verdict, alternate, table
from tests.bench.vitg import FULL, QUICK, Size, create_index, put_frame

REQUIRED = 0.65


class Bench:
    """One shard of frames, and every way of writing it.

    Attributes:
        tokens: ``[16, S, h, w, C]``.
        pixels: ``[16, H, W, 3]``.
    """

    def __init__(self, folder: Path, size: Size) -> None:
        self.size = Size(size.grid, size.channels, (SHARD_ROWS,))
        self.tokens = np.empty((SHARD_ROWS, *size.frame_shape), np.float16)
        self.pixels = np.empty((SHARD_ROWS, size.bucket.height, size.bucket.width, 3), np.uint8)
        for frame in range(SHARD_ROWS):
            self.tokens[frame], self.pixels[frame] = size.tokens(frame), size.pixels(frame)
        self._plain = folder / "plain"
        self._shards = folder / "shards"
        self._open: list[ShardWriter] = []
        self.index: ViewIndex
        self.item: Item
        self.index, (self.item,) = create_index(folder / "cache", self.size)
        self._bucket = self.index.folder / size.bucket.name

    def write_plain(self, *arrays: Values, sync: bool) -> None:
        """The bytes and nothing else, a chunk a call."""
        chunk_bytes = self.tokens[0, 0].nbytes
        fd = os.open(self._plain, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        for array in arrays:
            data = array.reshape(-1).view(np.uint8).data
            for start in range(0, len(data), chunk_bytes):
                os.write(fd, data[start : start + chunk_bytes])
        if sync:
            os.fsync(fd)
        os.close(fd)

    def write_shard(self) -> None:
        """The tokens as a shard file, short of its index, which comes with the flush to disk."""
        writer = ShardWriter(self._shards / "0", SHARD_ROWS * len(self.tokens[0]))
        self._open.append(writer)
        for position, chunk in enumerate(self.tokens.reshape(-1, *self.tokens.shape[2:])):
            writer.put(position, chunk)

    def write_group(self) -> None:
        """Tokens and pixels as a row group: committed, and on the disk."""
        with RowGroup(self.index, self.size.bucket, self.item.row_of(0) // SHARD_ROWS) as group:
            for frame in range(SHARD_ROWS):
                put_frame(group, self.item, frame, self.tokens[frame], self.pixels[frame])
            group.commit({self.item.item: SHARD_ROWS}, {})

    def clear(self) -> None:
        """Takes away what was written."""
        self._plain.unlink(missing_ok=True)
        while self._open:
            self._open.pop().discard()
        for array in ("tokens", "pixels"):
            shutil.rmtree(self._bucket / array / "c", ignore_errors=True)

    def check(self, peers: dict[str, ArrayWriter]) -> None:
        """Raises AssertionError if what any of them wrote is not the source."""
        self.write_plain(self.tokens, sync=False)
        assert np.array_equal(np.fromfile(self._plain, np.uint16), _bits(self.tokens).reshape(-1))
        self.write_group()
        view = View(self.index.folder, OpenFiles())
        for frame in range(SHARD_ROWS):
            clip = view.read(view.videos[0], [frame], verify="always")
            assert np.array_equal(_bits(clip.blocks[0][0]), _bits(self.tokens[frame]))
            assert np.array_equal(clip.blocks[1][0, 0], self.pixels[frame])
        for name, peer in peers.items():
            peer.write(self.tokens)
            for frame in range(SHARD_ROWS):
                assert np.array_equal(_bits(peer.read(frame)), _bits(self.tokens[frame])), name
            peer.clear()
        self.clear()


def _bits(values: Values) -> Values:
    return values.view(np.uint16)


def measure_speed(folder: Path, size: Size, rounds: int) -> list[Verdict]:
    """Times every way of writing a shard."""
    bench = Bench(folder, size)
    peers = create_peers(folder / "peers", bench.tokens.shape)
    bench.check(peers)

    def clear() -> None:
        bench.clear()
        for peer in peers.values():
            peer.clear()

    def theirs(peer: ArrayWriter) -> Callable[[int], object]:
        return lambda _: peer.write(bench.tokens)

    cached: dict[str, Callable[[int], object]] = {
        "plain": lambda _: bench.write_plain(bench.tokens, sync=False),
        "ours": lambda _: bench.write_shard(),
        **{name: theirs(peer) for name, peer in peers.items()},
    }
    synced: dict[str, Callable[[int], object]] = {
        "plain": lambda _: bench.write_plain(bench.tokens, bench.pixels, sync=True),
        "ours": lambda _: bench.write_group(),
    }
    in_cache = alternate(cached, rounds, between=clear)
    on_disk = alternate(synced, rounds, between=clear)
    found = [
        _against("shard with crc32c / write, page cache", in_cache["ours"], in_cache["plain"]),
        _against("row group / write, fsync on both sides", on_disk["ours"], on_disk["plain"]),
    ]
    for name in peers:
        speed = in_cache["ours"].cpu_speed_against(in_cache[name])
        found.append(Verdict(f"shard / {name}", speed, 1.0, note=_milliseconds(in_cache[name])))
    return found


def _against(what: str, ours: Timing, plain: Timing) -> Verdict:
    note = f"{_milliseconds(ours)}; on the clock {ours.wall_speed_against(plain):.2f}"
    return Verdict(what, ours.cpu_speed_against(plain), REQUIRED, note=note)


def _milliseconds(timing: Timing) -> str:
    return f"{timing.cpu_ms / SHARD_ROWS:.2f} ms CPU a frame"


def measure_volume(folder: Path, size: Size) -> dict[str, float]:
    """What one row group takes, in a fresh process: memory beyond its source, and bytes."""
    # Modules, codecs and locks that come with the first row group belong to no other.
    Bench(folder / "first", QUICK).write_group()
    bench = Bench(folder / "second", size)
    ctypes.CDLL(None).malloc_trim(0)  # memory that is free but held would hide what is taken
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # VmHWM starts again
    held, written = _status("status", "VmRSS"), _status("io", "wchar")
    bench.write_group()
    peak, written_after = _status("status", "VmHWM"), _status("io", "wchar")
    on_disk = sum(
        512 * path.stat().st_blocks for path in bench.index.folder.rglob("*") if path.is_file()
    )
    payload = bench.tokens.nbytes + bench.pixels.nbytes
    return {
        "memory_chunks": 1024 * (peak - held) / bench.tokens[0, 0].nbytes,
        "written": (written_after - written) / payload,
        "on_disk": on_disk / payload,
    }


def _status(table: str, name: str) -> int:
    lines = Path("/proc/self", table).read_text(encoding="ascii").splitlines()
    (line,) = (line for line in lines if line.startswith(f"{name}:"))
    return int(line.split()[1])


def measure_volume_apart(folder: Path, quick: bool) -> list[Verdict]:
    """``measure_volume`` in a process of its own."""
    command = [sys.executable, __file__, "--child", "--folder", str(folder)]
    command += ["--quick"] if quick else []
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    found = json.loads(done.stdout)
    return [
        Verdict("row group: memory beyond its source, chunks", found["memory_chunks"], 2, True),
        Verdict("row group: bytes written / payload", found["written"], 1.01, True),
        Verdict("row group: bytes on disk / payload", found["on_disk"], 1.01, True),
    ]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny shapes")
    parser.add_argument("--folder", type=Path, help="where the files go meanwhile")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    size = QUICK if options.quick else FULL
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        if options.child:
            print(json.dumps(measure_volume(Path(folder), size)))
            return
        verdicts = measure_volume_apart(Path(folder), options.quick)
        verdicts += measure_speed(Path(folder), size, options.rounds)
    print(
        "Speed as a ratio of CPU times, medians; what every way wrote was read back and is equal."
    )
    print(table(verdicts))


if __name__ == "__main__":
    main()
