"""What int8 costs on real features, and what lossless compression would save.

    python tests/bench/bench_compact.py SHARED [--folder DIR] [--seeds 5] [--frames N]

Extracts CamVid with the real SAM 2 Hiera-Tiny weights under SHARED as float16 and as int8, prints
the error per stage, trains the probe on each with the same seeds and prints the paired difference
with its 95 % interval, and compresses a sample of the stored chunks without loss. The caches stay
in DIR if one is given, so that a second run need not extract again.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import numpy.typing as npt

from fcache.cache import open_cache
from fcache.extract.precision import describe_errors, merge_errors
from fcache.store.cache import View

# Two-sided 95 % quantiles of Student's t by degrees of freedom.
STUDENT_T = {
    1: 12.706,
    2: 4.303,
    3: 3.182,
    4: 2.776,
    5: 2.571,
    6: 2.447,
    7: 2.365,
    8: 2.306,
    9: 2.262,
}
CODECS = {
    "lz4 + shuffle": numcodecs.Blosc("lz4", clevel=5, shuffle=numcodecs.Blosc.SHUFFLE),
    "lz4 + bitshuffle": numcodecs.Blosc("lz4", clevel=5, shuffle=numcodecs.Blosc.BITSHUFFLE),
    "zstd 1": numcodecs.Zstd(level=1),
    "zstd 5 + bitshuffle": numcodecs.Blosc("zstd", clevel=5, shuffle=numcodecs.Blosc.BITSHUFFLE),
}


def fcache(*words: object) -> dict[str, Any]:
    """Runs ``fcache WORDS --json`` and returns its result."""
    command = [sys.executable, "-m", "fcache", *map(str, words), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr.strip().splitlines()[-1])
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def make(shared: Path, cache: Path, dtype: str, max_frames: int | None) -> View:
    """Extracts CamVid in one stored type."""
    words = [
        "manifest=camvid",
        f"root={shared / 'annotated/camvid'}",
        "model=sam2_hiera_tiny",
        f"weights={shared / 'weights/sam2_hiera_tiny_trunk_fp16.safetensors'}",
        "short_side=480",
        "compute_dtype=float32",
        f"dtype={dtype}",
    ]
    if max_frames is not None:
        words.append(f"max_frames={max_frames}")
    made = fcache("extract", *words, "--cache", cache)
    if made["frames"]:
        rate = f"{made['frames_per_s']:.2f} frames/s"
        print(f"{dtype}: {made['frames']} frames, {made['bytes'] / 1e9:.2f} GB, {rate}")
    return open_cache(cache).view()


def error_table(view: View) -> None:
    """Prints the error per stage that the commit records of an int8 view tell."""
    texts = set(view.state.tables.shards["stats"].to_pylist())
    sums = [np.array(stats["errors"]) for stats in map(json.loads, texts) if "errors" in stats]
    print("\nint8 against float32, per stage")
    print("stage  relative L2  per channel  cosine      worst token")
    for stage, error in enumerate(describe_errors(merge_errors(sums))):
        print(
            f"{stage:<5}  {error['relative_l2']:.5f}      {error['bulk_relative_l2']:.5f}      "
            f"{error['cosine']:.7f}   {error['worst_token']:.4f}"
        )


def probe_table(caches: dict[str, Path], seeds: int) -> None:
    """Prints the probe's mIoU on each cache and the paired difference."""
    miou: dict[str, list[float]] = {dtype: [] for dtype in caches}
    for seed in range(seeds):
        for dtype, cache in caches.items():
            miou[dtype].append(fcache("probe", cache, f"seed={seed}")["miou"])
    print("\nprobe mIoU  " + "  ".join(f"seed {seed}" for seed in range(seeds)) + "  mean")
    for dtype, values in miou.items():
        cells = "  ".join(f"{value:.4f}" for value in values)
        print(f"{dtype:<10}  {cells}  {statistics.mean(values):.4f}")
    pairs = zip(miou["int8"], miou["float16"], strict=True)
    differences = [compact - exact for compact, exact in pairs]
    mean = statistics.mean(differences)
    if len(differences) > 1:
        half = STUDENT_T[seeds - 1] * statistics.stdev(differences) / math.sqrt(seeds)
        print(
            f"int8 - float16: {mean:+.4f}, 95 % interval {mean - half:+.4f} .. {mean + half:+.4f}"
        )


def stored_chunks(view: View, num_frames: int) -> dict[str, list[npt.NDArray[np.generic]]]:
    """Chunks as they lie in the cache, by stage, of frames spread over its videos."""
    chunks: dict[str, list[npt.NDArray[np.generic]]] = {}
    for video in view.videos:
        held = view.frames(video)
        for frame in range(0, len(held), max(1, len(held) // num_frames)):
            clip = view.read(held, [frame])
            for stage, values in enumerate(clip.stages):
                chunks.setdefault(f"stage {stage}", []).append(values[0])
            if clip.pixels is not None:
                chunks.setdefault("pixels", []).append(clip.pixels[0])
    return chunks


def compression_table(views: dict[str, View]) -> None:
    """Prints compressed sizes, and how fast they come back against a copy."""
    print("\nlossless, size after / before, and decoding speed against memcpy (one thread)")
    print(f"{'':<20}" + "".join(f"{name:>22}" for name in CODECS))
    numcodecs.blosc.set_nthreads(1)
    for dtype, view in views.items():
        for name, chunks in stored_chunks(view, 4).items():
            if name == "pixels" and dtype == "int8":
                continue
            cells = [_packed(codec, chunks) for codec in CODECS.values()]
            label = name if name == "pixels" else f"{dtype} {name}"
            print(f"{label:<20}" + "".join(f"{size:>14.2f} ({speed:.2f})" for size, speed in cells))


def _packed(codec: Any, chunks: list[npt.NDArray[np.generic]]) -> tuple[float, float]:
    before = after = 0
    decode_s = copy_s = 0.0
    for chunk in chunks:
        plain = np.ascontiguousarray(chunk)
        packed = codec.encode(plain)
        target = np.empty_like(plain)
        codec.decode(packed, out=target)  # its memory is warm from here on
        if not np.array_equal(target, plain):
            raise SystemExit(f"{codec} does not give back what it was given")
        began_s = time.process_time()
        codec.decode(packed, out=target)
        decode_s += time.process_time() - began_s
        began_s = time.process_time()
        np.copyto(target, plain)
        copy_s += time.process_time() - began_s
        before, after = before + plain.nbytes, after + len(packed)
    return after / before, copy_s / decode_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("shared", type=Path, help="the folder of real inputs")
    parser.add_argument("--folder", type=Path, help="where the caches lie; temporary without it")
    parser.add_argument("--seeds", type=int, default=5, help="probes of each type; 0: none")
    parser.add_argument("--frames", type=int, help="only the first N frames of each video")
    told = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = told.folder or Path(temporary)
        caches = {dtype: folder / dtype for dtype in ("float16", "int8")}
        views = {
            dtype: make(told.shared / "data", cache, dtype, told.frames)
            for dtype, cache in caches.items()
        }
        error_table(views["int8"])
        compression_table(views)
        if told.seeds:
            probe_table(caches, told.seeds)


if __name__ == "__main__":
    main()
