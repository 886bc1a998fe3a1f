"""The shapes that every path is held against the oracle at, their inputs, and the tolerances."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from fcache.ops import library, reference
from tests.ops.oracle import Shapes

ISAS = {"avx512": "AVX512", "avx2": "AVX2", "baseline": ""}
PATHS = ("reference", *ISAS)
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# Relative l2, and largest difference over largest value, against float64 on the same rounded
# inputs. Rounding a result to bfloat16 alone costs 1.66e-3 of l2; float16 has three bits more.
TOLERANCES = {
    torch.float64: (1e-12, 1e-11),
    torch.float32: (1e-5, 2e-5),
    torch.float16: (2.8e-4, 7.5e-4),
    torch.bfloat16: (2.2e-3, 6e-3),
}


@dataclass(frozen=True)
class Case:
    """One shape: B images, Q queries, H heads of D channels, P points on each of L levels."""

    batch: int
    queries: int
    heads: int
    head_dim: int
    points: int
    shapes: tuple[tuple[int, int], ...]
    shared: bool = True  # reference points are shared by images and levels

    def __str__(self) -> str:
        levels = "_".join(f"{h}x{w}" for h, w in self.shapes)
        return f"B{self.batch}Q{self.queries}H{self.heads}D{self.head_dim}P{self.points}L{levels}"

    @property
    def levels(self) -> Shapes:
        return list(self.shapes)

    @property
    def flat(self) -> list[int]:
        return [side for shape in self.shapes for side in shape]

    @property
    def num_cells(self) -> int:
        return sum(h * w for h, w in self.shapes)


CASES = (
    Case(1, 7, 2, 8, 1, ((1, 1),)),
    Case(2, 189, 8, 32, 4, ((12, 12), (6, 6), (3, 3)), shared=False),  # as in the pixel decoder
    Case(1, 189, 3, 64, 4, ((9, 10),)),  # as in the extractor
    Case(1, 7581, 2, 8, 1, ((5, 7),)),  # queries of three odd levels
    Case(2, 53, 4, 32, 4, ((8, 3),)),
    Case(1, 61, 2, 64, 4, ((6, 7), (3, 4), (2, 2)), shared=False),
    Case(1, 11, 2, 16, 3, ((9, 7), (5, 4), (3, 2), (2, 1), (1, 1)), shared=False),
    Case(3, 13, 3, 24, 8, ((1, 9), (9, 1))),
    Case(1, 17, 2, 48, 3, ((7, 5), (4, 3), (2, 2), (1, 2))),
    Case(1, 9, 1, 128, 4, ((5, 6), (3, 3), (2, 2)), shared=False),
    Case(154, 3, 1, 8, 1, ((3, 3),)),
    Case(2, 5, 3, 5, 2, ((4, 4), (2, 3))),
    Case(1, 6, 2, 8, 1, ((3, 2),) * 8),
)


def fused_inputs(case: Case, dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    """Value, reference points, offsets and logits: points on cell centres and between them,
    offsets of some pixels, a few far outside."""
    draw = torch.Generator().manual_seed(seed)
    images, levels = (1, 1) if case.shared else (case.batch, len(case.shapes))
    shape = (case.batch, case.queries, case.heads, len(case.shapes), case.points)
    points = torch.rand(images, case.queries, levels, 2, generator=draw)
    height, width = case.shapes[0]
    sizes = torch.tensor([width, height])
    points[:, ::3] = ((points[:, ::3] * sizes).floor() + 0.5) / sizes
    offsets = 2 * torch.randn(*shape, 2, generator=draw)
    offsets[torch.rand(offsets.shape, generator=draw) < 0.02] = 3e4
    value = torch.randn(case.batch, case.num_cells, case.heads, case.head_dim, generator=draw)
    logits = torch.randn(*shape, generator=draw).flatten(3)
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    return [value.to(dtype), points.to(exact), offsets.to(dtype), logits.to(dtype)]


def sampled_inputs(case: Case, dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    """Value, locations (a fifth of them outside) and weights of either sign."""
    draw = torch.Generator().manual_seed(seed)
    shape = (case.batch, case.queries, case.heads, len(case.shapes), case.points)
    value = torch.randn(case.batch, case.num_cells, case.heads, case.head_dim, generator=draw)
    locations = 1.2 * torch.rand(*shape, 2, generator=draw) - 0.1
    weights = torch.randn(*shape, generator=draw)
    return [value.to(dtype), locations.to(dtype), weights.to(dtype)]


def on_path(path: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Callable[..., Any]]:
    """Returns how to get an op by name on a path: the reference, or an instruction set's code."""
    if path == "reference":
        return lambda name: getattr(reference, name)
    if ISAS[path] not in _capabilities():
        pytest.skip(f"this machine has no {path}")
    monkeypatch.setenv("FCACHE_CPU_ISA", path)
    require_compiled()
    return lambda name: getattr(torch.ops.fcache, name).default


def require_compiled() -> None:
    """Skips where there is no compiler, or is to be none; fails where there is one in vain."""
    use = library.kernel_use("cpu")
    if use.why == "FCACHE_KERNELS=off" or "no C++ compiler" in use.why:
        pytest.skip(use.why)
    assert use.path == "compiled", use.why


def _capabilities() -> tuple[str, ...]:
    at = torch.backends.cpu.get_cpu_capability()
    return ("", *{"AVX512": ("AVX2", "AVX512"), "AVX2": ("AVX2",)}.get(at, ()))


def assert_close(found: Tensor, expected: Tensor, dtype: torch.dtype, what: str) -> None:
    """Holds a result against float64 within the dtype's tolerances.

    Few values can happen to be rounded worse than many are on average: then what rounding the true
    values costs is the measure, and a twentieth of it.
    """
    if not expected.numel():
        return
    for measure, tolerance, found_error, rounding in zip(
        ("relative l2", "largest"),
        TOLERANCES[dtype],
        _errors(found.double(), expected),
        _errors(expected.to(dtype).double(), expected),
        strict=True,
    ):
        most = max(tolerance, 1.05 * rounding)
        assert found_error <= most, f"{what}: {measure} {found_error:.2e} > {most:.2e}"


def _errors(found: Tensor, expected: Tensor) -> tuple[float, float]:
    error = found - expected
    scale, peak = float(expected.norm()), float(expected.abs().max())
    return float(error.norm()) / max(scale, 1e-30), float(error.abs().max()) / max(peak, 1e-30)
