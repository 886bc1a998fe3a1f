"""Settings every test runs under."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

MEMORY = Path("/dev/shm")
NEEDED_BYTES = 4 << 30

# Before torch is imported: waiting threads sleep, and tests leave the user's own memo alone.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Parallel workers inherit one folder, so that the kernels are built once.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="fcache-tests-")
# What tests write lies in memory where there is room for it: a fifth of the time of many small
# extractions is waiting for a disk.
if os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free >= NEEDED_BYTES:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))
