"""Wrong arguments: which one, what was given, what was expected; and that direct calls are safe."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fcache.ops import ms_deform_attn, ms_deform_attn_sampled
from tests.ops.cases import Case, fused_inputs, require_compiled, sampled_inputs

CASE = Case(2, 5, 2, 4, 3, ((3, 4), (2, 2)))
FUSED = ("value", "level_shapes", "reference_points", "offsets", "logits")
SAMPLED = ("value", "level_shapes", "locations", "weights")

Change = Callable[[Any], Any]


def fused_arguments(dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    value, *rest = fused_inputs(CASE, dtype)
    return dict(zip(FUSED, (value, CASE.levels, *rest), strict=True))


def sampled_arguments() -> dict[str, Any]:
    value, *rest = sampled_inputs(CASE, torch.float32)
    return dict(zip(SAMPLED, (value, CASE.levels, *rest), strict=True))


@pytest.mark.parametrize(
    ("name", "change", "text"),
    [
        ("value", lambda t: t[0], "value has shape [16, 2, 4]; expected [B, S, H, D]"),
        ("value", lambda t: t[:, :, :, :0], "expected [B, S, H, D] with H and D at least 1"),
        ("value", lambda t: t[:, :15], "value has 15 cells in shape [2, 15, 2, 4]; expected 16"),
        ("value", lambda t: t[:1], "offsets has shape [2, 5, 2, 2, 3, 2]; expected"),
        ("level_shapes", lambda s: s[:1], "expected 12, which level_shapes [(3, 4)] hold"),
        ("level_shapes", lambda s: [], "level_shapes has 0 levels; expected 1 to 8"),
        ("level_shapes", lambda s: [(1, 1)] * 9, "level_shapes has 9 levels; expected 1 to 8"),
        ("level_shapes", lambda s: [(3, 4), (0, 2)], "the side 0 in (0, 2); expected 1 to"),
        ("level_shapes", lambda s: [(3, 4), (-2, -2)], "the side -2 in (-2, -2); expected 1 to"),
        ("reference_points", lambda t: t[:, :4], "reference_points has shape [1, 4, 1, 2]"),
        ("reference_points", lambda t: t.repeat(3, 1, 1, 1), "= [1 or 2, 5, 1 or 2, 2]."),
        ("reference_points", lambda t: t[..., :1], "expected [1 or B, Q, 1 or L, 2]"),
        ("reference_points", lambda t: t[0], "reference_points has shape [5, 1, 2]; expected"),
        ("offsets", lambda t: t[..., :1], "expected [B, Q, H, L, P, 2] = [2, Q, 2, 2, P, 2]"),
        ("offsets", lambda t: t[:, :, :1], "offsets has shape [2, 5, 1, 2, 3, 2]; expected"),
        ("offsets", lambda t: t[:, :, :, :1], "offsets has shape [2, 5, 2, 1, 3, 2]; expected"),
        ("offsets", lambda t: t[:, :, :, :, :0], "with P at least 1"),
        ("offsets", lambda t: t.flatten(3), "offsets has shape [2, 5, 2, 12]; expected"),
        ("offsets", lambda t: t[:, :4], "logits has shape [2, 5, 2, 6]; expected"),
        ("logits", lambda t: t[..., :5], "expected [B, Q, H, L * P] = [2, 5, 2, 6]"),
        ("logits", lambda t: t.unflatten(3, (2, 3)), "logits has shape [2, 5, 2, 2, 3]; expected"),
        ("logits", lambda t: t.to("meta"), "logits is on meta, value on cpu; expected one device"),
        ("value", lambda t: t.to("meta"), "reference_points is on cpu, value on meta"),
        ("reference_points", lambda t: t.requires_grad_(), "expected reference_points.detach()"),
    ],
)
def test_what_disagrees_is_told(name: str, change: Change, text: str) -> None:
    arguments = fused_arguments()
    arguments[name] = change(arguments[name])
    with pytest.raises(ValueError, match=re.escape(text)):
        ms_deform_attn(**arguments)


@pytest.mark.parametrize(
    ("name", "change", "text"),
    [
        ("value", Tensor.long, "value is int64; expected float32, float16, bfloat16 or float64"),
        ("value", lambda t: t.to(torch.complex64), "value is complex64; expected"),
        ("value", lambda t: t.tolist(), "value is a list; expected a tensor"),
        ("value", Tensor.double, "reference_points is float32; expected float64 for a value of"),
        ("level_shapes", torch.tensor, "level_shapes is a tensor"),
        ("level_shapes", lambda s: [3, 4, 2, 2], "level_shapes has the entry 3; expected pairs"),
        ("level_shapes", lambda s: [(3.0, 4), (2, 2)], "level_shapes has the side 3.0; expected"),
        ("level_shapes", lambda s: [(3, 4, 1), (2, 2)], "level_shapes has the entry (3, 4, 1)"),
        ("reference_points", Tensor.bfloat16, "reference_points is bfloat16; expected float32"),
        ("offsets", Tensor.double, "offsets is float64; expected float32 as value"),
        ("offsets", Tensor.int, "offsets is int32; expected"),
        ("logits", Tensor.double, "logits is float64; expected"),
        ("logits", lambda t: None, "logits is a NoneType; expected a tensor"),
    ],
)
def test_wrong_types_are_told(name: str, change: Change, text: str) -> None:
    arguments = fused_arguments()
    arguments[name] = change(arguments[name])
    with pytest.raises(TypeError, match=re.escape(text)):
        ms_deform_attn(**arguments)


@pytest.mark.parametrize(
    ("name", "change", "error", "text"),
    [
        ("locations", lambda t: t[..., :1], ValueError, "locations has shape"),
        ("weights", lambda t: t.flatten(3), ValueError, "expected [B, Q, H, L, P]"),
        ("weights", lambda t: t.to("meta"), ValueError, "weights is on meta, value on cpu"),
        ("weights", Tensor.double, TypeError, "weights is float64; expected float32 as value"),
        ("locations", Tensor.long, TypeError, "locations is int64; expected"),
    ],
)
def test_the_sampled_form_is_checked_too(
    name: str, change: Change, error: type[Exception], text: str
) -> None:
    arguments = sampled_arguments()
    arguments[name] = change(arguments[name])
    with pytest.raises(error, match=re.escape(text)):
        ms_deform_attn_sampled(**arguments)


def test_reference_points_with_a_gradient_pass_where_none_is_asked_for() -> None:
    arguments = fused_arguments()
    arguments["reference_points"].requires_grad_()
    with torch.no_grad():
        assert ms_deform_attn(**arguments).isfinite().all()


def test_every_dtype_is_taken_with_the_parameters_of_a_linear_layer() -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        assert ms_deform_attn(**fused_arguments(dtype)).dtype == dtype


@pytest.mark.parametrize(
    ("at", "change"),
    [
        (0, lambda t: t[:, :15].contiguous()),
        (0, lambda t: t.transpose(0, 1)),
        (0, Tensor.long),
        (1, lambda s: [3, 4, 2]),
        (1, lambda s: [3, 4, 2, 3]),
        (1, lambda s: [-3, -4, 2, 2]),
        (1, lambda s: [1 << 40, 1 << 40, 2, 2]),
        (2, lambda t: t[:, :4].contiguous()),
        (2, Tensor.double),
        (3, lambda t: t[:, :, :1].contiguous()),
        (3, lambda t: t.transpose(0, 1)),
        (3, Tensor.half),
        (4, lambda t: t[..., :5].contiguous()),
    ],
)
def test_the_compiled_op_called_directly_refuses_what_it_cannot_read(
    at: int, change: Change
) -> None:
    require_compiled()
    value, *rest = fused_inputs(CASE, torch.float32)
    arguments: list[Any] = [value, CASE.flat, *rest]
    arguments[at] = change(arguments[at])
    with pytest.raises(RuntimeError):
        torch.ops.fcache.ms_deform_attn(*arguments)
    with pytest.raises(RuntimeError):
        torch.ops.fcache.ms_deform_attn_backward(torch.ones(2, 5, 8), *arguments, False)


@pytest.mark.parametrize(
    "grad", [torch.ones(2, 5, 7), torch.ones(2, 8, 5), torch.ones(2, 5, 8).double()]
)
def test_a_gradient_of_another_shape_or_dtype_is_refused(grad: Tensor) -> None:
    require_compiled()
    value, *rest = fused_inputs(CASE, torch.float32)
    with pytest.raises(RuntimeError):
        torch.ops.fcache.ms_deform_attn_backward(grad, value, CASE.flat, *rest, False)
    value, *rest = sampled_inputs(CASE, torch.float32)
    with pytest.raises(RuntimeError):
        torch.ops.fcache.ms_deform_attn_sampled_backward(grad, value, CASE.flat, *rest, False)
