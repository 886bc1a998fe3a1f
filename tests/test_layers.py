"""Who may import whom: the rooms of the house, checked on every import statement."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import fcache

PACKAGE = Path(fcache.__file__).parent

# Room -> rooms it may import; a room may always import itself.
INSIDE = {
    "errors": set(),
    "interrupt": set(),
    "report": set(),
    "config": {"errors"},
    "manifest": {"errors", "config"},
    "store": {"errors"},
    "sources": {"errors", "config", "manifest"},
    "backbones": {"errors", "config", "manifest"},
    "extract": {
        "errors",
        "interrupt",
        "report",
        "config",
        "manifest",
        "store",
        "sources",
        "backbones",
    },
    "data": {"errors", "config", "manifest", "store"},
    "eval": {"errors", "interrupt", "manifest"},
    "ops": {"errors"},
    "models": {"errors", "ops"},
    "train": {
        "errors",
        "report",
        "interrupt",
        "config",
        "manifest",
        "store",
        "sources",
        "backbones",
        "data",
        "eval",
        "models",
    },
    "predict": {
        "errors",
        "interrupt",
        "report",
        "config",
        "manifest",
        "store",
        "sources",
        "backbones",
        "data",
        "models",
        "train",
    },
    "cache": {"errors", "store", "data"},
}
# Third-party package -> rooms that may import it; others are free.
ONLY = {
    "torch": {"backbones", "extract", "data", "models", "ops", "predict", "train", "viz", "cli"},
    "timm": {"backbones"},
    "dask": {"extract", "cli"},
    "distributed": {"extract", "cli"},
    "dask_jobqueue": {"extract", "cli"},
    "av": {"sources", "demo", "viz"},
    "zarr": {"store"},
    "pyarrow": {"store"},
    "crc32c": {"store"},
    "typer": {"cli"},
    "rich": {"cli"},
}
ANYTHING = {"cli", "viz", "demo", "__init__", "__main__"}


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively; rooms are named in full"
            yield node.module or ""


def _room(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_a_room_imports_only_what_it_may(path: Path) -> None:
    room = _room(path)
    for name in _imports(path):
        top, _, rest = name.partition(".")
        if top == "fcache":
            other = rest.split(".")[0]
            if room not in ANYTHING and other and other != room:
                assert other in INSIDE[room], f"{room} must not import fcache.{other}"
        elif top in ONLY:
            assert room in ONLY[top], f"{room} must not import {top}"


def test_every_room_has_a_rule() -> None:
    assert {_room(path) for path in FILES} <= INSIDE.keys() | ANYTHING


@pytest.mark.parametrize("module", ["fcache", "fcache.cli.main", "fcache.cache", "fcache.config"])
def test_what_needs_no_torch_starts_without_it(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules or 'dask' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
