"""Multi-scale deformable attention, the op of Deformable DETR (arXiv 2010.04159, section 4.1).

``ms_deform_attn`` is the fused form: it takes what the linear layers of the module emit, and does
the softmax, the locations, the sampling and the sum in one pass. ``ms_deform_attn_sampled`` takes
locations and weights, as the official call does.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fcache.ops import schemas as _schemas  # noqa: F401 - defines torch.ops.fcache
from fcache.ops.checks import check_fused, check_sampled


def ms_deform_attn(
    value: Tensor,  # [B, S, H, D]               S = sum of height * width over the levels
    level_shapes: Sequence[tuple[int, int]],  # L pairs (height, width), in the order of S
    reference_points: Tensor,  # [1 or B, Q, 1 or L, 2]     (x, y) in [0, 1]
    offsets: Tensor,  # [B, Q, H, L, P, 2]         (x, y) in pixels of the level
    logits: Tensor,  # [B, Q, H, L * P]           before the softmax over L * P
) -> Tensor:  # [B, Q, H * D]
    """Reads P points per level and head for every query, and adds them up by attention weight.

    Point p of level l lies at ``reference_points * (W_l, H_l) + offsets - 0.5`` in pixels, cell i
    centred at i. A point is interpolated from the four cells around it; cells outside the level
    count as zero. A NaN or infinite offset contributes zero and gets zero gradient.

    Coordinates, softmax and sums are float32 (float64 for float64 values) whatever the dtypes are;
    the result is rounded once. Tensors that are not contiguous are copied.

    Args:
        value: float32, float16, bfloat16 or float64.
        reference_points: float32, or float64 where value is. They get no gradient.
        offsets: Of the dtype of value, half precision or float32.
        logits: Likewise.

    Raises:
        TypeError: A dtype that is not among these, or something that is not a tensor.
        ValueError: Shapes or devices that disagree; the message names the argument and both.
        KernelError: ``FCACHE_KERNELS=require`` and there is no compiled library for the device.
    """
    flat = check_fused(value, level_shapes, reference_points, offsets, logits)
    out: Tensor = torch.ops.fcache.ms_deform_attn(
        value.contiguous(),
        flat,
        reference_points.contiguous(),
        _readable(offsets, value),
        _readable(logits, value),
    )
    return out


def ms_deform_attn_sampled(
    value: Tensor,  # [B, S, H, D]        S = sum of height * width over the levels
    level_shapes: Sequence[tuple[int, int]],  # L pairs (height, width), in the order of S
    locations: Tensor,  # [B, Q, H, L, P, 2]  (x, y) in [0, 1]; outside reads as zero
    weights: Tensor,  # [B, Q, H, L, P]     used as they are
) -> Tensor:  # [B, Q, H * D]
    """Reads P points per level and head at given locations, and adds them up by given weights.

    The unfused form, for parity with the official call. Locations of half precision are read as
    they are: they can lie a third of a pixel beside the point that was meant.

    Raises:
        TypeError: A dtype that cannot be read, or something that is not a tensor.
        ValueError: Shapes or devices that disagree; the message names the argument and both.
        KernelError: ``FCACHE_KERNELS=require`` and there is no compiled library for the device.
    """
    flat = check_sampled(value, level_shapes, locations, weights)
    out: Tensor = torch.ops.fcache.ms_deform_attn_sampled(
        value.contiguous(), flat, _readable(locations, value), _readable(weights, value)
    )
    return out


def _readable(parameter: Tensor, value: Tensor) -> Tensor:
    """Widens half precision that is not value's own, as autocast can leave it; exact."""
    if parameter.dtype not in (value.dtype, torch.float32):
        parameter = parameter.float()
    return parameter.contiguous()
