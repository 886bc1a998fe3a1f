"""``fcache doctor``: what this machine offers, and which kernels run and why."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

import fcache
from fcache.ops import kernels_in_use, library
from tests.cli.running import run, run_json


def test_it_tells_versions_devices_kernels_decoder_and_disk(tmp_path: Path) -> None:
    code, out, _ = run("doctor", tmp_path / "not" / "there")
    assert code == 0
    lines = dict(line.split("  ", 1) for line in out.splitlines())
    lines = {name: words.strip() for name, words in lines.items()}
    assert lines["fcache"] == fcache.__version__
    assert lines["torch"] == torch.__version__.split("+")[0]
    use = kernels_in_use()["cpu"]
    assert lines["kernels cpu"] == f"{use.path}: {use.why}"
    assert "libavcodec" in lines["decoder"]
    assert lines["disk"].endswith(f" free at '{tmp_path}'")
    assert "cores" in lines["cpu"]


def test_json_holds_the_same(tmp_path: Path) -> None:
    content = run_json("doctor", tmp_path)
    assert content["versions"]["fcache"] == fcache.__version__
    assert content["kernels"]["cpu"]["path"] == kernels_in_use()["cpu"].path
    assert content["disk"]["folder"] == str(tmp_path)
    assert content["disk"]["total_bytes"] == shutil.disk_usage(tmp_path).total
    assert content["devices"][0]["name"] == "cpu"
    assert "disk" not in run_json("doctor")


def test_it_tells_why_the_reference_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "_decided", {})
    monkeypatch.setenv("FCACHE_KERNELS", "off")
    _, out, _ = run("doctor")
    (line,) = (line for line in out.splitlines() if line.startswith("kernels cpu"))
    assert line.split("  ")[-1] == "reference: FCACHE_KERNELS=off"
