"""Settings every test runs under."""

from __future__ import annotations

import os
import tempfile

# Before torch is imported: waiting threads sleep, and tests leave the user's own memo alone.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Parallel workers inherit one folder, so that the kernels are built once.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="fcache-tests-")
