"""Largest memory of a command and all its children together: ``peak_memory.py COMMAND...``.

Samples the proportional set size (shared pages are counted once) ten times a second and prints one
JSON object; the command's exit code is passed on.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time

import psutil


def tree_bytes(root: psutil.Process) -> int:
    """Bytes of a process and its descendants, shared pages shared out."""
    total = 0
    for process in (root, *root.children(recursive=True)):
        try:
            total += process.memory_full_info().pss
        except psutil.Error:
            continue  # ended between listing and asking
    return total


def main() -> int:
    """Runs the command and prints what it took."""
    started = time.monotonic()
    child = subprocess.Popen(sys.argv[1:])
    root, peak = psutil.Process(child.pid), 0
    while child.poll() is None:
        try:
            peak = max(peak, tree_bytes(root))
        except psutil.Error:
            break
        time.sleep(0.1)
    code = child.wait()
    seconds = round(time.monotonic() - started, 1)
    print(json.dumps({"peak_bytes": peak, "peak_gb": round(peak / 1e9, 2), "seconds": seconds}))
    return code


if __name__ == "__main__":
    sys.exit(main())
