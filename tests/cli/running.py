"""The command line inside this process, so that torch is imported once."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from typing import Any
from unittest import mock

from fcache.cli.main import main


def run(*words: Any) -> tuple[int, str, str]:
    """Returns exit code, stdout and stderr of ``fcache WORDS``."""
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["fcache", *map(str, words)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 0
    return code, out.getvalue(), err.getvalue()


def run_json(*words: Any, code: int = 0) -> dict[str, Any]:
    """Returns the one JSON object that ``fcache WORDS --json`` prints."""
    found, out, err = run(*words, "--json")
    assert found == code, err
    (line,) = out.splitlines()
    content: dict[str, Any] = json.loads(line)
    assert content.pop("schema").startswith(f"fcache.{words[0]}")
    return content


def message(err: str) -> str:
    """The message of a command that failed: at most three lines, and no traceback."""
    lines = [line for line in err.splitlines() if not line.startswith("{")]
    assert 0 < len(lines) <= 3, err
    assert lines[0].startswith("fcache: ")
    assert "Traceback" not in err
    return "\n".join(lines)
