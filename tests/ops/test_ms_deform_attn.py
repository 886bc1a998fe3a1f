"""Values and gradients of every path against float64, and what must hold bit for bit."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fcache.ops import ms_deform_attn
from tests.ops.cases import (
    CASES,
    DTYPES,
    PATHS,
    Case,
    assert_close,
    fused_inputs,
    on_path,
    require_compiled,
    sampled_inputs,
)
from tests.ops.oracle import attend, attend_sampled, fused_pixels, near_kink, sampled_pixels

SMALL = Case(2, 5, 2, 3, 2, ((3, 4), (2, 2)))


def exact(tensors: list[Tensor]) -> list[Tensor]:
    """The same values in float64, as leaves."""
    return [tensor.detach().double().requires_grad_() for tensor in tensors]


def names(value: object) -> str:
    return str(value).removeprefix("torch.")


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=names)
@pytest.mark.parametrize("path", PATHS)
def test_values_and_gradients_are_those_of_float64(
    path: str, dtype: torch.dtype, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    op = on_path(path, monkeypatch)
    value, points, offsets, logits = fused_inputs(case, dtype)
    leaves = exact([value, offsets, logits])
    true = attend(leaves[0], case.levels, points.double(), leaves[1], leaves[2])
    grad = torch.randn(true.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    true_grads = torch.autograd.grad(true, leaves, grad.double())

    out = op("ms_deform_attn")(value, case.flat, points, offsets, logits)
    assert out.dtype == dtype
    assert out.is_contiguous()
    assert_close(out, true.detach(), dtype, "out")

    grads = op("ms_deform_attn_backward")(grad, value, case.flat, points, offsets, logits, False)
    # A slope jumps at a grid line. Coordinates that close to one fall to either side by rounding.
    kinks = near_kink(fused_pixels(case.levels, points.double(), offsets.double()))
    assert kinks.double().mean() < 0.1
    for name, found, expected, like in zip(
        ("value", "offsets", "logits"), grads, true_grads, (value, offsets, logits), strict=True
    ):
        assert (found.dtype, found.shape) == (like.dtype, like.shape)
        mask = kinks if name == "offsets" else torch.zeros(())
        assert_close(
            torch.where(mask.bool(), 0, found), torch.where(mask.bool(), 0, expected), dtype, name
        )


@pytest.mark.parametrize("case", [CASES[0], CASES[1], CASES[6], CASES[11]], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=names)
@pytest.mark.parametrize("path", PATHS)
def test_the_sampled_form_is_that_of_float64(
    path: str, dtype: torch.dtype, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    op = on_path(path, monkeypatch)
    value, locations, weights = sampled_inputs(case, dtype)
    leaves = exact([value, locations, weights])
    true = attend_sampled(leaves[0], case.levels, leaves[1], leaves[2])
    grad = torch.randn(true.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    true_grads = torch.autograd.grad(true, leaves, grad.double())

    out = op("ms_deform_attn_sampled")(value, case.flat, locations, weights)
    assert_close(out, true.detach(), dtype, "out")

    grads = op("ms_deform_attn_sampled_backward")(grad, value, case.flat, locations, weights, False)
    kinks = near_kink(sampled_pixels(case.levels, locations.double()))
    # Locations of half precision often lie on a grid line: they have few values.
    assert kinks.double().mean() < (0.1 if dtype in (torch.float32, torch.float64) else 0.3)
    for name, found, expected in zip(
        ("value", "locations", "weights"), grads, true_grads, strict=True
    ):
        mask = kinks if name == "locations" else torch.zeros(())
        assert_close(
            torch.where(mask.bool(), 0, found), torch.where(mask.bool(), 0, expected), dtype, name
        )


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=names)
def test_parameters_of_float32_go_with_values_of_half_precision(
    path: str, half: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    op = on_path(path, monkeypatch)
    value, points, offsets, logits = fused_inputs(SMALL, torch.float32)
    value = value.to(half)
    leaves = exact([value, offsets, logits])
    true = attend(leaves[0], SMALL.levels, points.double(), leaves[1], leaves[2])
    out = op("ms_deform_attn")(value, SMALL.flat, points, offsets, logits)
    assert_close(out, true.detach(), half, "out")
    grad = torch.ones_like(out)
    grads = op("ms_deform_attn_backward")(grad, value, SMALL.flat, points, offsets, logits, False)
    assert [one.dtype for one in grads] == [half, torch.float32, torch.float32]
    true_grads = torch.autograd.grad(true, leaves, grad.double())
    # The parameters' gradients are never rounded to half precision.
    assert_close(grads[2], true_grads[2], torch.float32, "logits")


@pytest.mark.parametrize("path", PATHS)
def test_a_case_worked_out_by_hand(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    op = on_path(path, monkeypatch)
    value = torch.tensor([1.0, 2.0, 4.0, 8.0]).view(1, 4, 1, 1)  # two rows of two cells
    points = torch.full((1, 1, 1, 2), 0.5)  # the middle, x = y = 0.5 px
    offsets = torch.tensor([[0.25, 0.0], [1.0, 0.5]]).view(1, 1, 1, 1, 2, 2)
    logits = torch.tensor([math.log(3.0), 0.0]).view(1, 1, 1, 2)  # weights 3/4 and 1/4
    # Point 1 at (0.75, 0.5): (0.25 * 1 + 0.75 * 2 + 0.25 * 4 + 0.75 * 8) / 2 = 4.375.
    # Point 2 at (1.5, 1.0): half of the cell 8, half outside = 4.
    out = op("ms_deform_attn")(value, [2, 2], points, offsets, logits)
    assert out.item() == pytest.approx(0.75 * 4.375 + 0.25 * 4, abs=1e-6)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 3e38])
def test_offsets_that_are_no_numbers_add_nothing_and_get_no_gradient(
    path: str, bad: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    op = on_path(path, monkeypatch)
    value, points, offsets, logits = fused_inputs(SMALL, torch.float32)
    broken = torch.zeros(offsets.shape[:-1], dtype=torch.bool)
    broken[0, 1, 0, 1, 0] = broken[1, 4] = True
    offsets[broken] = torch.tensor([0.25, bad])
    leaves = exact([value, offsets, logits])
    true = attend(leaves[0], SMALL.levels, points.double(), leaves[1], leaves[2])
    out = op("ms_deform_attn")(value, SMALL.flat, points, offsets, logits)
    assert_close(out, true.detach(), torch.float32, "out")
    assert not out[1, 4].any()
    grads = op("ms_deform_attn_backward")(
        torch.ones_like(out), value, SMALL.flat, points, offsets, logits, False
    )
    assert all(grad.isfinite().all() for grad in grads)
    assert not grads[1][broken].any()

    locations = offsets.clone()
    out = op("ms_deform_attn_sampled")(
        value, SMALL.flat, locations, logits.view(offsets.shape[:-1])
    )
    assert out.isfinite().all()
    grads = op("ms_deform_attn_sampled_backward")(
        torch.ones_like(out), value, SMALL.flat, locations, logits.view(offsets.shape[:-1]), False
    )
    assert all(grad.isfinite().all() for grad in grads)
    assert not grads[1][broken].any()


@pytest.mark.parametrize("path", PATHS)
def test_a_nan_logit_spoils_its_own_query_and_head_alone(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    op = on_path(path, monkeypatch)
    value, points, offsets, logits = fused_inputs(SMALL, torch.float32)
    logits[0, 2, 1, 0] = math.nan
    out = op("ms_deform_attn")(value, SMALL.flat, points, offsets, logits).view(2, 5, 2, 3)
    assert out[0, 2, 1].isnan().all()
    out[0, 2, 1] = 0
    assert out.isfinite().all()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("batch", "queries"), [(0, 4), (2, 0), (0, 0)])
def test_nothing_to_do_gives_empty_results_and_zero_gradients(
    path: str, batch: int, queries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    op = on_path(path, monkeypatch)
    case = Case(batch, queries, 2, 8, 2, ((3, 4), (2, 2)))
    inputs = fused_inputs(case, torch.float32)
    value, *rest = inputs
    out = op("ms_deform_attn")(value, case.flat, *rest)
    assert out.shape == (batch, queries, 16)
    grads = op("ms_deform_attn_backward")(out, value, case.flat, *rest, False)
    assert [grad.shape for grad in grads] == [inputs[i].shape for i in (0, 2, 3)]
    assert not any(grad.any() for grad in grads)
    value, *rest = sampled_inputs(case, torch.float32)
    assert op("ms_deform_attn_sampled")(value, case.flat, *rest).shape == (batch, queries, 16)
    grads = op("ms_deform_attn_sampled_backward")(out, value, case.flat, *rest, False)
    assert not any(grad.any() for grad in grads)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("case", [CASES[1], CASES[10], CASES[6]], ids=str)
def test_bits_do_not_depend_on_the_number_of_threads(
    path: str, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    op = on_path(path, monkeypatch)
    value, points, offsets, logits = fused_inputs(case, torch.float32)
    grad = torch.randn(case.batch, case.queries, case.heads * case.head_dim)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 16, 16):
            torch.set_num_threads(threads)
            out = op("ms_deform_attn")(value, case.flat, points, offsets, logits)
            grads = op("ms_deform_attn_backward")(
                grad, value, case.flat, points, offsets, logits, True
            )
            found.append((out, *grads))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_strides_change_no_bit() -> None:
    value, points, offsets, logits = fused_inputs(SMALL, torch.float32)
    inputs = [tensor.requires_grad_() for tensor in (value, offsets, logits)]
    strided = [_strided(tensor).detach().requires_grad_() for tensor in inputs]
    assert not any(tensor.is_contiguous() for tensor in strided)
    results = []
    for one, at in ((inputs, points), (strided, _strided(points))):
        out = ms_deform_attn(one[0], SMALL.levels, at, one[1], one[2])
        # An expanded gradient has strides of zero, a transposed one others than its shape's.
        grads = torch.autograd.grad(out, one, out.new_ones(()).expand_as(out), retain_graph=True)
        turned = torch.arange(out.numel(), dtype=out.dtype).view(6, 5, 2).permute(2, 1, 0)
        results.append((out, *grads, *torch.autograd.grad(out, one, turned)))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def _strided(tensor: Tensor) -> Tensor:
    """The same values, every second element of a larger tensor."""
    wide = torch.empty(*tensor.shape, 2, dtype=tensor.dtype)
    wide[..., 0] = tensor.detach()
    return wide[..., 0]


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=names)
def test_autocast_leaves_coordinates_alone(half: torch.dtype) -> None:
    value, points, offsets, logits = fused_inputs(SMALL, torch.float32)
    plain = ms_deform_attn(value, SMALL.levels, points, offsets, logits)
    with torch.autocast("cpu", dtype=half):
        assert torch.equal(ms_deform_attn(value, SMALL.levels, points, offsets, logits), plain)
        # As linear layers leave it under autocast: half precision beside a value of float32.
        mixed = ms_deform_attn(value, SMALL.levels, points, offsets.to(half), logits.to(half))
    rounded = [offsets.to(half).float(), logits.to(half).float()]
    assert torch.equal(mixed, ms_deform_attn(value, SMALL.levels, points, *rounded))
    assert mixed.dtype == torch.float32


def test_loading_the_library_keeps_denormals() -> None:
    # gcc's -ffast-math would link code that turns them off in the whole process.
    require_compiled()
    tiny = torch.full((4,), 1e-40)
    assert (tiny * 1).all()
    assert 5e-324 * 1.0 > 0
