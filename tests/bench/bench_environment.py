"""What a worker's environment costs the network on a CPU: waiting threads, and returned memory.

Runs the same frames in child processes that differ in their environment only, and prints one JSON
line each: seconds, CPU seconds (user, system) and page faults a frame. ``--busy`` keeps one core
busy meanwhile, as another job on the machine would.

    python tests/bench/bench_environment.py [--busy]
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

FRAMES = 8
DASK = {"MALLOC_TRIM_THRESHOLD_": "65536"}
KEEP = {"MALLOC_TRIM_THRESHOLD_": str(1 << 32), "MALLOC_MMAP_THRESHOLD_": str(1 << 30)}
PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE"}
CASES = {
    "defaults": {},
    "passive": PASSIVE,
    "passive, memory returned (dask's default)": {**PASSIVE, **DASK},
    "passive, memory kept (fcache's workers)": {**PASSIVE, **KEEP},
}


def measure() -> None:
    """Runs in a child: times the network and prints the figures."""
    import torch

    from fcache.backbones.build import load
    from fcache.config import BackboneSettings

    settings = BackboneSettings(model="sam2_hiera_tiny", weights="random:0")
    backbone = load(settings, device=torch.device("cpu"), keep_hash=False)
    canvas = torch.zeros((1, 480, 640, 3), dtype=torch.uint8)
    with torch.inference_mode():
        first = backbone(canvas, (480, 640))
        before, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        for _ in range(FRAMES):
            last = backbone(canvas, (480, 640))
        seconds = time.perf_counter() - started
        after = resource.getrusage(resource.RUSAGE_SELF)
    assert all(torch.equal(a, b) for a, b in zip(first, last, strict=True))
    figures = {
        "s": seconds,
        "user_s": after.ru_utime - before.ru_utime,
        "system_s": after.ru_stime - before.ru_stime,
        "faults": after.ru_minflt - before.ru_minflt,
    }
    print(json.dumps({name: round(value / FRAMES, 3) for name, value in figures.items()}))


def main() -> None:
    """Runs every case twice and prints the better one."""
    hog = None
    if "--busy" in sys.argv:
        hog = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        for name, changed in CASES.items():
            dropped = {*DASK, *KEEP, *PASSIVE}
            env = {key: value for key, value in os.environ.items() if key not in dropped}
            command = [sys.executable, str(Path(__file__)), "--child"]
            runs = [
                json.loads(
                    subprocess.run(
                        command, env={**env, **changed}, check=True, stdout=subprocess.PIPE
                    ).stdout
                )
                for _ in range(2)
            ]
            print(json.dumps({"case": name, **min(runs, key=lambda run: float(run["s"]))}))
    finally:
        if hog is not None:
            hog.kill()


if __name__ == "__main__":
    measure() if "--child" in sys.argv else main()
