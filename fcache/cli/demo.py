"""``fcache demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    folder: Annotated[Path, typer.Argument(help="Where videos, cache and pictures go.")] = Path(
        "demo-out"
    ),
) -> None:
    """Run the whole job on a small video set rendered here, on the CPU, in minutes."""
    from fcache.demo.job import run_demo

    run_demo(folder)
