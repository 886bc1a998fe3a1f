"""How long work tells what happens, to whoever started it: one event after another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Report = Callable[[dict[str, Any]], None]
"""Takes ``{"event": KIND, ...}``, with what there is to say of the kind."""
