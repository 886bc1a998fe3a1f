"""How fast clips are read: CPU time beside a plain ``preadv`` of as many bytes, and beside peers.

Makes a cache of ViT-g's shapes with the real writer, warm in the page cache, and reads random clips
of it into memory that is used again. Every way of reading is checked against the source first.

    python tests/bench/bench_read.py [--quick] [--folder TEMPORARY] [--seed N]

It takes 4.7 GB of disk and page cache meanwhile; ``--quick`` takes tiny shapes, whose ratios mean
nothing.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))  # where `tests` is, when run as a script

from fcache.store.cache import Clip, VideoFrames, View
from fcache.store.reader import VerifyPolicy
from tests.bench.peers import FlatFile, Place, Reader, Values, open_peers
from tests.bench.timing import Timing, Verdict, alternate, table
from tests.bench.vitg import FULL, QUICK, STRIDE, Size, make_view, name_of

# What an unchecked read must be against each library's, in CPU time.
PEERS = {"zarr-python": 5.0, "zarrs": 1.0, "tensorstore": 1.0, "safetensors": 1.0}
LIMIT = "preadv"
POLICIES: tuple[VerifyPolicy, ...] = ("never", "always")


@dataclass(frozen=True)
class Pattern:
    """Clips of one kind, and what is asked of reading them.

    Attributes:
        half: Whether half the height and half the width are read.
        scattered: Whether the frames are drawn one by one; peers read slices, and are left out.
        required: Speed against the limit by policy.
        rounds: Clips that are timed.
    """

    name: str
    num_frames: int
    half: bool = False
    scattered: bool = False
    required: tuple[float | None, float | None] = (0.9, 0.5)
    rounds: int = 15

    def draw(self, size: Size, seed: int) -> Place:
        """A random clip."""
        random = np.random.default_rng([seed, self.num_frames])
        fits = [v for v, length in enumerate(size.lengths) if length >= self.num_frames]
        video = int(random.choice(fits))
        length, (height, width) = size.lengths[video], size.grid
        if self.scattered:
            frames = random.permutation(length)[: self.num_frames]
        else:
            frames = random.integers(length - self.num_frames + 1) + np.arange(self.num_frames)
        window = None
        if self.half:
            y, x = random.integers(height // 2 + 1), random.integers(width // 2 + 1)
            window = (int(y), int(x), height // 2, width // 2)
        return Place(video, tuple(frames.tolist()), window)


PATTERNS = (
    Pattern("5 frames", 5),
    Pattern("5 scattered frames", 5, scattered=True),
    Pattern("21 frames", 21, rounds=7),
    Pattern("5 frames, half x half", 5, half=True, required=(0.7, None)),
    Pattern("21 frames, half x half", 21, half=True, required=(0.7, None), rounds=7),
)


@dataclass(frozen=True)
class Bench:
    """The frames in every form that is read."""

    size: Size
    view: View
    videos: list[VideoFrames]
    flat: FlatFile
    peers: dict[str, Reader]

    @classmethod
    def make(cls, folder: Path, size: Size) -> Bench:
        """Writes them."""
        view = make_view(folder / "cache", size)
        array = view.folder / size.bucket.name / "tokens"
        videos = [view.frames(name_of(video)) for video in range(len(size.lengths))]
        first_rows = [video.rows[0] for video in videos]
        peers = open_peers(array, first_rows, folder / "safetensors", size)
        return cls(size, view, videos, FlatFile(folder / "flat", size), peers)

    def read(
        self, place: Place, verify: VerifyPolicy, out: Clip | None = None, pixels: bool = False
    ) -> Clip:
        """Reads a clip by the public call."""
        return self.view.read(
            self.videos[place.video],
            place.frames,
            window=place.window,
            pixels=pixels,
            out=out,
            verify=verify,
        )

    def limit(self, place: Place, out: Values) -> None:
        """Reads as many bytes in one piece from where the clip's frames are, or near it."""
        frame = self.size.first_frame(place.video) + min(place.frames)
        self.flat.read(min(frame, self.size.num_frames - len(place.frames)), out)

    def check(self, place: Place, peers: dict[str, Reader], out: Clip) -> None:
        """Raises AssertionError if any way of reading gives other values than the source's."""
        first = self.size.first_frame(place.video)
        source = np.stack([self.size.tokens(first + frame) for frame in place.frames])
        expected = source[(slice(None), slice(None), *place.area)].view(np.uint16)
        block = out.blocks[0]
        for verify in POLICIES:
            block.fill(0)
            assert np.array_equal(self.read(place, verify, out).blocks[0].view(np.uint16), expected)
        for name, reader in peers.items():
            block.fill(0)
            reader(place, block)
            assert np.array_equal(block.view(np.uint16), expected), name

    def measure(self, pattern: Pattern, seed: int) -> list[Verdict]:
        """Checks and times a pattern."""
        places = [pattern.draw(self.size, seed + number) for number in range(pattern.rounds + 1)]
        peers = {} if pattern.scattered else self.peers
        out = self.read(places[0], "never")
        block = out.blocks[0]
        self.check(places[0], peers, out)

        def ours(verify: VerifyPolicy) -> Callable[[int], object]:
            return lambda number: self.read(places[number], verify, out)

        def theirs(reader: Reader) -> Callable[[int], object]:
            return lambda number: reader(places[number], block)

        def limit(number: int) -> None:
            self.limit(places[number], block)

        cases: dict[str, Callable[[int], object]] = {verify: ours(verify) for verify in POLICIES}
        beside_limit = alternate({LIMIT: limit, **cases}, pattern.rounds)
        cases |= {name: theirs(reader) for name, reader in peers.items()}
        beside_peers = alternate(cases, pattern.rounds, between=rest) if peers else {}
        return [*_against_limit(pattern, beside_limit), *_against_peers(pattern, beside_peers)]

    def measure_pixels(self, pattern: Pattern, seed: int) -> list[Verdict]:
        """Times a pattern with the canvas beside its features, and without."""
        places = [pattern.draw(self.size, seed + number) for number in range(pattern.rounds + 1)]
        out = self.read(places[0], "never", pixels=True)
        bare = self.read(places[0], "never")
        first = self.size.first_frame(places[0].video)
        source = np.stack([self.size.pixels(first + frame) for frame in places[0].frames])
        assert out.pixels is not None
        assert np.array_equal(out.pixels, source[(slice(None), *places[0].area_of(STRIDE))])
        cases: dict[str, Callable[[int], object]] = {
            "bare": lambda number: self.read(places[number], "never", bare),
            "pixels": lambda number: self.read(places[number], "never", out, pixels=True),
        }
        taken = alternate(cases, pattern.rounds)
        more = out.blocks[1].nbytes / bare.blocks[0].nbytes
        what = f"{pattern.name}: with pixels / without"
        speed = taken["pixels"].cpu_speed_against(taken["bare"])
        return [Verdict(what, speed, note=f"{more:.1%} more bytes")]


def rest() -> None:
    """Lets the threads of other libraries come to an end."""
    time.sleep(0.02)


def _against_limit(pattern: Pattern, taken: dict[str, Timing]) -> list[Verdict]:
    found = []
    for verify, required in zip(POLICIES, pattern.required, strict=True):
        timing = taken[verify]
        on_clock = timing.wall_speed_against(taken[LIMIT])
        what = f"{pattern.name}, verify={verify} / {LIMIT}"
        note = f"{timing.cpu_ms:.2f} ms CPU; on the clock {on_clock:.2f}"
        speed = timing.cpu_speed_against(taken[LIMIT])
        found.append(Verdict(what, speed, required, note=note))
    return found


def _against_peers(pattern: Pattern, taken: dict[str, Timing]) -> list[Verdict]:
    found = []
    for name in filter(taken.__contains__, PEERS):
        theirs = taken[name]
        checked = taken["always"].cpu_speed_against(theirs)
        note = f"{theirs.cpu_ms:.2f} ms CPU; with verify=always {checked:.2f}"
        speed = taken["never"].cpu_speed_against(theirs)
        found.append(Verdict(f"{pattern.name} / {name}", speed, PEERS[name], note=note))
    return found


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny shapes")
    parser.add_argument("--folder", type=Path, help="where the files go meanwhile")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        bench = Bench.make(Path(folder), QUICK if options.quick else FULL)
        verdicts = [row for pattern in PATTERNS for row in bench.measure(pattern, options.seed)]
        for pattern in (PATTERNS[0], PATTERNS[3]):
            verdicts += bench.measure_pixels(pattern, options.seed)
    print("Speed as a ratio of CPU times, medians; every way of reading gave the source's values.")
    print(table(verdicts))


if __name__ == "__main__":
    main()
