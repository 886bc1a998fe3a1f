"""What the CUDA kernels must do, whoever runs them: a GPU, or the emulation on CPU tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fcache.ops import reference
from tests.ops.cases import Case, assert_close, fused_inputs, sampled_inputs
from tests.ops.oracle import fused_pixels, near_kink, sampled_pixels


@dataclass(frozen=True)
class Runner:
    """The ops under test and where their tensors lie."""

    ops: Any
    device: str

    def __call__(self, name: str, *args: Any) -> Any:
        """Runs an op on the device; returns what it gives on the CPU."""
        moved = [arg.to(self.device) if isinstance(arg, Tensor) else arg for arg in args]
        found = getattr(self.ops, name)(*moved)
        return found.cpu() if isinstance(found, Tensor) else [tensor.cpu() for tensor in found]


def inputs_of(fused: bool, case: Case, dtype: torch.dtype, seed: int = 0) -> list[Any]:
    """The arguments after grad_output and before ``deterministic``."""
    value, *rest = (fused_inputs if fused else sampled_inputs)(case, dtype, seed)
    return [value, case.flat, *rest]


def in_float64(args: list[Any], device: str) -> list[Any]:
    return [arg.to(device, torch.float64) if isinstance(arg, Tensor) else arg for arg in args]


def grad_for(args: list[Any], dtype: torch.dtype) -> Tensor:
    value, points = args[0], args[-2]
    shape = (value.shape[0], points.shape[1], value.shape[2] * value.shape[3])
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)


def agrees_with_float64(run: Runner, fused: bool, case: Case, args: list[Any]) -> None:
    """Holds values and both kinds of gradients against the reference in float64."""
    name = "ms_deform_attn" if fused else "ms_deform_attn_sampled"
    value, points, scores = args[0], args[-2], args[-1]
    wide = in_float64(args, run.device)
    out = run(name, *args)
    assert out.dtype == value.dtype
    assert_close(out, getattr(reference, name)(*wide).cpu(), value.dtype, "out")

    grad = grad_for(args, value.dtype)
    wide_grad = grad.to(run.device, torch.float64)
    gradients = getattr(reference, f"{name}_backward")(wide_grad, *wide, False)
    expected = [tensor.cpu() for tensor in gradients]
    pixels = fused_pixels if fused else sampled_pixels
    kinks = near_kink(pixels(case.levels, *in_float64(args[2:-1], "cpu")))
    assert kinks.double().mean() < 0.1
    # The slope along x jumps where x is on a grid line, and so does that along y.
    smooth = ~kinks
    for deterministic in (False, True):
        found = run(f"{name}_backward", grad, *args, deterministic)
        assert [tensor.dtype for tensor in found] == [value.dtype, points.dtype, scores.dtype]
        way = f"deterministic={deterministic}"
        assert_close(found[0], expected[0], value.dtype, f"grad_value, {way}")
        assert_close(found[1] * smooth, expected[1] * smooth, points.dtype, f"grad_points, {way}")
        assert_close(found[2], expected[2], scores.dtype, f"grad_scores, {way}")


def reads_nothing_beside_its_inputs(run: Runner, fused: bool, case: Case) -> None:
    """Puts NaN before and behind every input; none may show in a result."""
    name = "ms_deform_attn" if fused else "ms_deform_attn_sampled"
    args = inputs_of(fused, case, torch.float32)
    expected = run(name, *args)
    grad = grad_for(args, torch.float32)
    expected_grads = run(f"{name}_backward", grad, *args, True)
    padded = [_between_nan(arg, run) if isinstance(arg, Tensor) else arg for arg in args]
    torch.testing.assert_close(run(name, *padded), expected, rtol=0, atol=0)
    found = run(f"{name}_backward", _between_nan(grad, run), *padded, True)
    torch.testing.assert_close(found, expected_grads, rtol=0, atol=0)


def _between_nan(tensor: Tensor, run: Runner, pad: int = 4096) -> Tensor:
    room = torch.full((tensor.numel() + 2 * pad,), float("nan"), dtype=tensor.dtype)
    room = room.to(run.device)
    inner = room[pad:-pad].view(tensor.shape)
    inner.copy_(tensor)
    return inner


def ignores_points_that_are_not_finite(run: Runner) -> None:
    """NaN and infinite offsets and locations add nothing and get no gradient."""
    case = Case(2, 9, 2, 32, 4, ((5, 4), (3, 3), (2, 2)))
    for fused in (True, False):
        name = "ms_deform_attn" if fused else "ms_deform_attn_sampled"
        args = inputs_of(fused, case, torch.float32)
        broken, far = args.copy(), args.copy()
        broken[-2], far[-2] = args[-2].clone(), args[-2].clone()
        for i, bad in enumerate((float("nan"), float("inf"), -float("inf"))):
            broken[-2][:, i::5, :, :, 1, i % 2] = bad
            far[-2][:, i::5, :, :, 1, i % 2] = 1e6
        torch.testing.assert_close(run(name, *broken), run(name, *far), rtol=0, atol=0)
        grad = grad_for(args, torch.float32)
        for deterministic in (True, False):
            found = run(f"{name}_backward", grad, *broken, deterministic)
            expected = run(f"{name}_backward", grad, *far, deterministic)
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
            assert not found[1][:, ::5, :, :, 1].any()


def spreads_nan_and_inf_as_the_reference(run: Runner) -> None:
    """A broken cell shows where it is read, a broken logit in its query and head, nowhere else."""
    case = Case(1, 40, 2, 32, 4, ((6, 5),))
    args = inputs_of(True, case, torch.float32)
    for cell, bad in ((0, float("inf")), (14, float("nan")), (29, -float("inf"))):
        args[0][0, cell, 1, 3] = bad
    args[-1][0, 7, 1, 2] = float("nan")
    args[-2][0, 8, 0] = 1e5  # all points outside
    args[-1][0, 8, 0, 1] = float("nan")
    args[-1][0, 9, 0, :3] = -float("inf")
    found, expected = run("ms_deform_attn", *args), reference.ms_deform_attn(*args)
    assert expected.isnan().any()
    assert (~expected.isfinite()).sum() < expected.numel() / 4
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5, equal_nan=True)


def keeps_infinite_gradients_from_points_outside(run: Runner) -> None:
    """A corner outside a level takes no part, whatever the gradient: 0 * inf would be NaN."""
    case = Case(1, 12, 2, 32, 4, ((3, 4), (2, 2)))
    for fused in (True, False):
        name = "ms_deform_attn" if fused else "ms_deform_attn_sampled"
        args = inputs_of(fused, case, torch.float32)
        args[-2] = 3 * args[-2] - 1  # most points touch the border or lie outside
        grad = grad_for(args, torch.float32)
        grad[0, :, 5] = float("inf")  # in head 0
        pixels = (fused_pixels if fused else sampled_pixels)(case.levels, *args[2:-1])[0, :, 0]
        sizes = torch.tensor([(w, h) for h, w in case.shapes])[:, None]
        outside = ((pixels <= -1) | (pixels >= sizes)).any(-1)  # [Q, L, P]
        assert outside.any()
        assert not outside.all()
        for deterministic in (False, True):
            _, of_points, of_scores = run(f"{name}_backward", grad, *args, deterministic)
            assert not of_points[0, :, 0][outside].any()
            assert not of_points[0, :, 0][~outside].isfinite().any()
            assert fused or not of_scores[0, :, 0][outside].any()
            of_points[0, :, 0] = of_scores[0, :, 0] = 0
            assert of_points.isfinite().all()
            assert of_scores.isfinite().all()


def has_no_gradients_without_queries_or_images(run: Runner) -> None:
    for batch, queries in ((0, 5), (2, 0), (0, 0)):
        case = Case(batch, queries, 2, 8, 1, ((2, 3),))
        for fused in (True, False):
            name = "ms_deform_attn" if fused else "ms_deform_attn_sampled"
            args = inputs_of(fused, case, torch.float32)
            assert run(name, *args).shape == (batch, queries, 16)
            for deterministic in (False, True):
                grads = run(f"{name}_backward", grad_for(args, torch.float32), *args, deterministic)
                assert [g.shape for g in grads] == [args[0].shape, args[-2].shape, args[-1].shape]
                assert all(not g.any() for g in grads)


def reads_any_contiguous_view(run: Runner) -> None:
    """Tensors that begin in the middle of 16 bytes, and an expanded grad_output."""
    case = Case(1, 7, 2, 32, 4, ((4, 5),))
    for dtype in (torch.float32, torch.bfloat16):
        args = inputs_of(True, case, dtype)
        grad = grad_for(args, dtype)
        shifted = [
            _between_nan(arg, run, pad=1) if isinstance(arg, Tensor) else arg for arg in args
        ]
        assert any(arg.data_ptr() % 16 for arg in shifted if isinstance(arg, Tensor))
        torch.testing.assert_close(
            run("ms_deform_attn", *shifted), run("ms_deform_attn", *args), rtol=0, atol=0
        )
        backward: Callable[..., Any] = lambda g, a: run("ms_deform_attn_backward", g, *a, True)  # noqa: E731
        torch.testing.assert_close(backward(grad, shifted), backward(grad, args), rtol=0, atol=0)
        flat = grad[:, :, :1].expand_as(grad)
        torch.testing.assert_close(
            backward(flat, args), backward(flat.contiguous(), args), rtol=0, atol=0
        )


def mixed_inputs(
    case: Case, value_dtype: torch.dtype, points: torch.dtype, scores: torch.dtype
) -> list[Any]:
    """Fused arguments whose offsets and logits have dtypes of their own."""
    args = inputs_of(True, case, value_dtype)
    args[-2], args[-1] = args[-2].to(points), args[-1].to(scores)
    return args
