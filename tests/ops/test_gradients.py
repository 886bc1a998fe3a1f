"""Gradients by finite differences, by autograd of the reference, and who gets one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fcache.ops import ms_deform_attn, ms_deform_attn_sampled, reference
from tests.ops.cases import PATHS, Case, fused_inputs, on_path, sampled_inputs
from tests.ops.oracle import fused_pixels, near_kink

SMALL = Case(2, 5, 2, 3, 2, ((3, 4), (2, 2)))


@pytest.mark.parametrize("path", PATHS)
def test_gradcheck_in_double(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    op = on_path(path, monkeypatch)
    case = Case(2, 3, 2, 3, 2, ((3, 4), (1, 1)))
    value, points, offsets, logits = fused_inputs(case, torch.float64, seed=3)
    offsets[0, 0] += 9.0  # all points of a query outside
    offsets[1, 1, 0, 0, 0] = torch.tensor([-0.75, 0.25]) - points[0, 1, 0] * torch.tensor([4, 3])
    assert not near_kink(fused_pixels(case.levels, points, offsets)).any()

    class Attend(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *tensors: Tensor) -> Tensor:
            ctx.save_for_backward(*tensors)
            return op("ms_deform_attn")(tensors[0], case.flat, points, *tensors[1:])

        @staticmethod
        def backward(ctx, grad: Tensor) -> tuple[Tensor, ...]:
            value, *rest = ctx.saved_tensors
            grad = grad.contiguous()
            return op("ms_deform_attn_backward")(grad, value, case.flat, points, *rest, False)

    leaves = [tensor.requires_grad_() for tensor in (value, offsets, logits)]
    assert torch.autograd.gradcheck(Attend.apply, leaves)


def test_gradcheck_through_the_public_functions() -> None:
    value, points, offsets, logits = fused_inputs(SMALL, torch.float64)
    leaves = [tensor.requires_grad_() for tensor in (value, offsets, logits)]
    assert torch.autograd.gradcheck(
        lambda v, o, a: ms_deform_attn(v, SMALL.levels, points, o, a), leaves
    )
    leaves = [tensor.requires_grad_() for tensor in sampled_inputs(SMALL, torch.float64)]
    assert torch.autograd.gradcheck(
        lambda v, x, w: ms_deform_attn_sampled(v, SMALL.levels, x, w), leaves
    )


def test_the_backward_of_the_reference_is_autograd_of_its_forward() -> None:
    value, points, offsets, logits = fused_inputs(SMALL, torch.float64)
    leaves = [tensor.requires_grad_() for tensor in (value, offsets, logits)]
    out = reference.ms_deform_attn(value, SMALL.flat, points, offsets, logits)
    grad = torch.randn_like(out)
    by_autograd = torch.autograd.grad(out, leaves, grad)
    with torch.no_grad():
        written = reference.ms_deform_attn_backward(
            grad, value, SMALL.flat, points, offsets, logits, False
        )
    torch.testing.assert_close(written, by_autograd)


def test_only_what_asks_for_a_gradient_gets_one() -> None:
    value, points, offsets, logits = fused_inputs(SMALL, torch.float32)
    offsets.requires_grad_()
    ms_deform_attn(value, SMALL.levels, points, offsets, logits).sum().backward()
    assert offsets.grad is not None
    assert value.grad is None


def test_gradients_keep_the_dtype_of_what_was_widened() -> None:
    value, points, offsets, logits = fused_inputs(SMALL, torch.float32)
    offsets = offsets.half().requires_grad_()
    ms_deform_attn(value, SMALL.levels, points, offsets, logits).sum().backward()
    assert offsets.grad is not None
    assert offsets.grad.dtype == torch.float16
    assert offsets.grad.any()
