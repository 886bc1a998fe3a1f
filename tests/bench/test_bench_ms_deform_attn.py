"""The bench of deformable attention runs, and stops at wrong values. No time is asserted."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from fcache.ops import kernels_in_use
from tests.bench import bench_ms_deform_attn as bench
from tests.bench.deform_attn_rivals import Rival, eager, make_inputs, shapes


def test_every_row_is_timed_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if kernels_in_use()["cpu"].path != "compiled":
        pytest.skip(kernels_in_use()["cpu"].why)
    found = tmp_path / "rows.json"
    options = ["--px", "64", "--rounds", "1", "--shapes", "extractor", "--least"]
    monkeypatch.setattr(sys, "argv", ["bench", *options, "--json", str(found)])
    threads = torch.get_num_threads()
    try:
        assert bench.main() == 0
    finally:
        torch.set_num_threads(threads)
    rows = json.loads(found.read_text())
    assert [(row["dtype"], row["row"]) for row in rows] == [
        ("float32", "fused"),
        ("float32", "grid_sample"),
        ("float32", "grid_sample, float32 inside"),
        ("bfloat16", "fused"),
        ("bfloat16", "grid_sample, float32 inside"),
    ]
    assert all(row["forward_ms"] > 0 and row["both_ms_fresh"] > 0 for row in rows)
    assert all(row["forward_least_ms"] > 0 and row["both_least_ms"] > 0 for row in rows)
    assert "% of floor" in capsys.readouterr().out


def test_a_rival_with_wrong_values_stops_the_bench() -> None:
    (shape,) = (shape for shape in shapes(64) if shape.name == "injector")
    inputs = make_inputs(shape, 1, torch.float32, "cpu")
    right = eager(shape, safe=True)
    assert bench.check("right", Rival(right), shape, inputs, must=True)["error"] < 1e-5
    wrong = Rival(lambda value, *rest: right(1.001 * value, *rest))
    with pytest.raises(SystemExit, match="wrong is wrong at injector"):
        bench.check("wrong", wrong, shape, inputs, must=True)


def test_shapes_are_those_of_the_models() -> None:
    decoder, extractor, injector = shapes(604)
    assert (decoder.queries, decoder.cells, decoder.heads, decoder.head_dim) == (7581, 7581, 8, 32)
    assert (extractor.queries, extractor.cells, extractor.heads) == (7581, 1444, 24)
    assert (injector.queries, injector.cells, injector.head_dim) == (1444, 7581, 64)
    assert decoder.samples == extractor.samples == 7581 * 96
