"""Real inputs that are not part of the repository: where they lie, and what to do without them.

``FCACHE_SHARED`` names the folder; beside a checkout it is ``../shared``. Without it the tests that
need it skip with a reason; with ``FCACHE_REQUIRE_SHARED=1`` (as in CI) they fail.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SHARED = Path(
    os.environ.get("FCACHE_SHARED", Path(__file__).resolve().parents[2] / "shared")
).resolve()

_present = (SHARED / "data").is_dir() and (SHARED / "vectors").is_dir()
_required = os.environ.get("FCACHE_REQUIRE_SHARED") == "1"

needs_shared = pytest.mark.skipif(
    not _present and not _required,
    reason="the shared inputs are absent; FCACHE_SHARED names their folder",
)
