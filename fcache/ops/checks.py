"""What the ops accept: wrong arguments are told by name, with what was given and expected."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

MAX_LEVELS = 8  # kernels/ms_deform_attn.h hands them over by value
MAX_SIDE = 1 << 23  # float32 counts half pixels exactly up to here

_HALF = (torch.float16, torch.bfloat16)


def check_fused(
    value: Tensor,
    level_shapes: Sequence[tuple[int, int]],
    reference_points: Tensor,
    offsets: Tensor,
    logits: Tensor,
) -> list[int]:
    """Returns the level shapes as ``[h0, w0, h1, w1, ..]`` after all arguments were checked."""
    _check_tensors(value=value, reference_points=reference_points, offsets=offsets, logits=logits)
    flat = _check_value(value, level_shapes)
    num_levels = len(flat) // 2
    images, queries, points = _check_points("offsets", offsets, value, num_levels)
    heads = value.shape[2]
    _check_shape(
        "logits", logits, "[B, Q, H, L * P]", (images, queries, heads, num_levels * points)
    )
    shape = tuple(reference_points.shape)
    if (
        len(shape) != 4
        or shape[0] not in (1, images)
        or shape[1] != queries
        or shape[2] not in (1, num_levels)
        or shape[3] != 2
    ):
        raise ValueError(
            f"reference_points has shape {list(shape)}; expected [1 or B, Q, 1 or L, 2] = "
            f"[1 or {images}, {queries}, 1 or {num_levels}, 2]."
        )
    exact = torch.float64 if value.dtype == torch.float64 else torch.float32
    if reference_points.dtype != exact:
        raise TypeError(
            f"reference_points is {_name(reference_points)}; expected {_short(exact)} for a value "
            f"of {_name(value)} (half precision moves points by up to a third of a pixel)."
        )
    if reference_points.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            "reference_points requires a gradient, and the op has none for it; "
            "expected reference_points.detach(), or ms_deform_attn_sampled."
        )
    _check_parameter("offsets", offsets, value)
    _check_parameter("logits", logits, value)
    return flat


def check_sampled(
    value: Tensor, level_shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor
) -> list[int]:
    """Returns the level shapes as ``[h0, w0, h1, w1, ..]`` after all arguments were checked."""
    _check_tensors(value=value, locations=locations, weights=weights)
    flat = _check_value(value, level_shapes)
    num_levels = len(flat) // 2
    images, queries, points = _check_points("locations", locations, value, num_levels)
    shape = (images, queries, value.shape[2], num_levels, points)
    _check_shape("weights", weights, "[B, Q, H, L, P]", shape)
    _check_parameter("locations", locations, value)
    _check_parameter("weights", weights, value)
    return flat


def _check_tensors(value: Tensor, **others: Tensor) -> None:
    for name, tensor in {"value": value, **others}.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} is a {type(tensor).__name__}; expected a tensor.")
    for name, tensor in others.items():
        if tensor.device != value.device:
            raise ValueError(
                f"{name} is on {tensor.device}, value on {value.device}; expected one device."
            )


def _check_value(value: Tensor, level_shapes: Sequence[tuple[int, int]]) -> list[int]:
    if value.dtype not in (torch.float32, torch.float64, *_HALF):
        raise TypeError(f"value is {_name(value)}; expected float32, float16, bfloat16 or float64.")
    if value.dim() != 4 or value.shape[2] == 0 or value.shape[3] == 0:
        raise ValueError(
            f"value has shape {list(value.shape)}; expected [B, S, H, D] with H and D at least 1."
        )
    flat = _flat_shapes(level_shapes)
    num_cells = sum(h * w for h, w in zip(flat[::2], flat[1::2], strict=True))
    if value.shape[1] != num_cells:
        raise ValueError(
            f"value has {value.shape[1]} cells in shape {list(value.shape)}; "
            f"expected {num_cells}, which level_shapes {_pairs(flat)} hold."
        )
    return flat


def _flat_shapes(level_shapes: Sequence[tuple[int, int]]) -> list[int]:
    if isinstance(level_shapes, Tensor):
        raise TypeError(
            "level_shapes is a tensor, which would have to be fetched from its device at every "
            "call; expected pairs of Python integers (height, width)."
        )
    flat = []
    for pair in level_shapes:
        if not isinstance(pair, Sequence) or len(pair) != 2:
            raise TypeError(
                f"level_shapes has the entry {pair!r}; expected pairs of integers (height, width)."
            )
        for side in pair:
            if isinstance(side, bool) or not isinstance(side, (int, torch.SymInt)):
                raise TypeError(
                    f"level_shapes has the side {side!r}; expected pairs of integers "
                    "(height, width)."
                )
            if not 0 < side <= MAX_SIDE:
                raise ValueError(
                    f"level_shapes has the side {side} in {tuple(pair)}; expected 1 to {MAX_SIDE}."
                )
            flat.append(side)
    if not 0 < len(flat) <= 2 * MAX_LEVELS:
        raise ValueError(f"level_shapes has {len(flat) // 2} levels; expected 1 to {MAX_LEVELS}.")
    return flat


def _check_points(
    name: str, points: Tensor, value: Tensor, num_levels: int
) -> tuple[int, int, int]:
    shape = tuple(points.shape)
    images, _, heads, _ = value.shape
    if (
        len(shape) != 6
        or (shape[0], shape[2], shape[3], shape[5]) != (images, heads, num_levels, 2)
        or shape[4] == 0
    ):
        raise ValueError(
            f"{name} has shape {list(shape)}; expected [B, Q, H, L, P, 2] = "
            f"[{images}, Q, {heads}, {num_levels}, P, 2] with P at least 1 "
            f"for a value of shape {list(value.shape)} and {num_levels} level_shapes."
        )
    return shape[0], shape[1], shape[4]


def _check_shape(name: str, tensor: Tensor, letters: str, expected: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != expected:
        raise ValueError(
            f"{name} has shape {list(tensor.shape)}; expected {letters} = {list(expected)}."
        )


def _check_parameter(name: str, tensor: Tensor, value: Tensor) -> None:
    if tensor.dtype not in (value.dtype, torch.float32, *_HALF):
        raise TypeError(
            f"{name} is {_name(tensor)}; expected {_name(value)} as value, float32, "
            "or half precision."
        )


def _pairs(flat: list[int]) -> list[tuple[int, int]]:
    return list(zip(flat[::2], flat[1::2], strict=True))


def _name(tensor: Tensor) -> str:
    return _short(tensor.dtype)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
