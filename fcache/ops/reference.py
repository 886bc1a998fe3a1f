"""Multi-scale deformable attention in plain PyTorch: what the op means, and what runs uncompiled.

Everything is computed in float32 (float64 for float64 values) on contiguous maps and rounded once.
Both matter: PyTorch's CPU ``grid_sample`` reads out of bounds for half-precision strided views, and
coordinates of half precision lie up to a third of a pixel beside the point.

The backward is written out, because a kernel of the dispatcher runs below autograd. The tests hold
it against autograd of the forward.

Shape letters: ``B`` images, ``S`` cells of all levels, ``H`` heads, ``D`` channels of a head, ``Q``
queries, ``L`` levels, ``P`` points.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

OUTSIDE_PX = 2.0  # a point this far outside a level touches none of its cells


def ms_deform_attn(
    value: Tensor,  # [B, S, H, D]
    level_shapes: Sequence[int],  # h0, w0, h1, w1, ..
    reference_points: Tensor,  # [1 or B, Q, 1 or L, 2]
    offsets: Tensor,  # [B, Q, H, L, P, 2]
    logits: Tensor,  # [B, Q, H, L * P]
) -> Tensor:  # [B, Q, H * D]
    """Returns the fused op; ``fcache.ops.ms_deform_attn`` documents the arguments."""
    sizes = _level_sizes(level_shapes, value)
    weights = logits.to(sizes.dtype).softmax(-1).view(offsets.shape[:-1])
    return _sample(value, level_shapes, _fused_grid(sizes, reference_points, offsets), weights)


def ms_deform_attn_backward(
    grad_output: Tensor,  # [B, Q, H * D]
    value: Tensor,
    level_shapes: Sequence[int],
    reference_points: Tensor,
    offsets: Tensor,
    logits: Tensor,
    deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients of value, offsets and logits, each in the dtype of its tensor.

    ``deterministic`` changes nothing: on the CPU the result always is, on CUDA PyTorch's own
    ``grid_sample`` refuses while deterministic algorithms are asked for.
    """
    sizes = _level_sizes(level_shapes, value)
    weights = logits.to(sizes.dtype).softmax(-1).view(offsets.shape[:-1])
    grid = _fused_grid(sizes, reference_points, offsets)
    grad_value, grad_grid, grad_weights = _sample_backward(
        grad_output, value, level_shapes, grid, weights
    )
    grad_offsets = grad_grid * (2 / sizes)[:, None]
    mean = (weights * grad_weights).sum((-2, -1), keepdim=True)
    grad_logits = (weights * (grad_weights - mean)).view(logits.shape)
    return grad_value, grad_offsets.to(offsets.dtype), grad_logits.to(logits.dtype)


def ms_deform_attn_sampled(
    value: Tensor,  # [B, S, H, D]
    level_shapes: Sequence[int],  # h0, w0, h1, w1, ..
    locations: Tensor,  # [B, Q, H, L, P, 2]
    weights: Tensor,  # [B, Q, H, L, P]
) -> Tensor:  # [B, Q, H * D]
    """Returns the unfused op; ``fcache.ops.ms_deform_attn_sampled`` documents the arguments."""
    sizes = _level_sizes(level_shapes, value)
    grid = _sampled_grid(sizes, locations)
    return _sample(value, level_shapes, grid, weights.to(sizes.dtype))


def ms_deform_attn_sampled_backward(
    grad_output: Tensor,  # [B, Q, H * D]
    value: Tensor,
    level_shapes: Sequence[int],
    locations: Tensor,
    weights: Tensor,
    deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients of value, locations and weights, each in the dtype of its tensor."""
    sizes = _level_sizes(level_shapes, value)
    grad_value, grad_grid, grad_weights = _sample_backward(
        grad_output, value, level_shapes, _sampled_grid(sizes, locations), weights.to(sizes.dtype)
    )
    return grad_value, (2 * grad_grid).to(locations.dtype), grad_weights.to(weights.dtype)


def _level_sizes(level_shapes: Sequence[int], value: Tensor) -> Tensor:  # [L, 2] as (width, height)
    dtype = torch.float64 if value.dtype == torch.float64 else torch.float32
    pairs = zip(level_shapes[1::2], level_shapes[::2], strict=True)
    return torch.tensor(list(pairs), dtype=dtype, device=value.device)


def _fused_grid(sizes: Tensor, reference_points: Tensor, offsets: Tensor) -> Tensor:
    centres = reference_points.to(sizes.dtype) * sizes - 0.5  # [1 or B, Q, L, 2]
    return _grid(sizes, centres[:, :, None, :, None] + offsets.to(sizes.dtype))


def _sampled_grid(sizes: Tensor, locations: Tensor) -> Tensor:
    return _grid(sizes, locations.to(sizes.dtype) * sizes[:, None] - 0.5)


def _grid(sizes: Tensor, pixels: Tensor) -> Tensor:  # [B, Q, H, L, P, 2] both
    """Turns pixels, cell i centred at i, into what ``grid_sample`` reads, all of it finite."""
    sizes = sizes[:, None]
    inside = pixels.nan_to_num(nan=-OUTSIDE_PX).clamp(min=-OUTSIDE_PX)
    return (2 * inside.minimum(sizes - 1 + OUTSIDE_PX) + 1) / sizes - 1


def _levels(
    value: Tensor, level_shapes: Sequence[int], grid: Tensor, weights: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yields the map [B*H, D, h, w], grid [B*H, Q, P, 2] and weights [B*H, 1, Q, P] of a level."""
    batch, _, num_heads, head_dim = value.shape
    num_queries, num_points = weights.shape[1], weights.shape[4]
    first = 0
    for level, (height, width) in enumerate(
        zip(level_shapes[::2], level_shapes[1::2], strict=True)
    ):
        cells = value[:, first : first + height * width].to(grid.dtype).permute(0, 2, 3, 1)
        first += height * width
        yield (
            cells.reshape(batch * num_heads, head_dim, height, width).contiguous(),
            grid[:, :, :, level].transpose(1, 2).reshape(-1, num_queries, num_points, 2),
            weights[:, :, :, level].transpose(1, 2).reshape(-1, 1, num_queries, num_points),
        )


def _sample(value: Tensor, level_shapes: Sequence[int], grid: Tensor, weights: Tensor) -> Tensor:
    batch, _, num_heads, head_dim = value.shape
    num_queries = grid.shape[1]
    if batch * num_queries == 0:
        return value.new_zeros(batch, num_queries, num_heads * head_dim)
    out = grid.new_zeros(batch * num_heads, head_dim, num_queries)
    for cells, points, attention in _levels(value, level_shapes, grid, weights):
        out = out + (_bilinear(cells, points) * attention).sum(-1)
    out = out.view(batch, num_heads * head_dim, num_queries).transpose(1, 2)
    return out.to(value.dtype).contiguous()


def _bilinear(cells: Tensor, points: Tensor) -> Tensor:  # [B * H, D, Q, P]
    return F.grid_sample(cells, points, mode="bilinear", padding_mode="zeros", align_corners=False)


def _sample_backward(
    grad_output: Tensor, value: Tensor, level_shapes: Sequence[int], grid: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients of value (in its dtype), grid and weights (in that of the grid)."""
    batch, _, num_heads, head_dim = value.shape
    num_queries = grid.shape[1]
    if batch * num_queries == 0:
        return torch.zeros_like(value), torch.zeros_like(grid), torch.zeros_like(weights)
    grad = grad_output.to(grid.dtype).transpose(1, 2)
    grad = grad.reshape(batch * num_heads, head_dim, num_queries, 1)
    grad_cells, grad_grid, grad_weights = [], [], []
    for cells, points, attention in _levels(value, level_shapes, grid, weights):
        grad_weights.append((grad * _bilinear(cells, points)).sum(1))  # [B * H, Q, P]
        of_cells, of_points = torch.ops.aten.grid_sampler_2d_backward(
            grad * attention, cells, points, 0, 0, False, [True, True]
        )
        grad_cells.append(of_cells.view(batch, num_heads, head_dim, -1).permute(0, 3, 1, 2))
        grad_grid.append(of_points)  # [B * H, Q, P, 2]
    heads = (batch, num_heads, len(grad_grid), num_queries)
    return (
        torch.cat(grad_cells, 1).to(value.dtype).contiguous(),
        torch.stack(grad_grid, 1).view(*heads, -1, 2).permute(0, 3, 1, 2, 4, 5).contiguous(),
        torch.stack(grad_weights, 1).view(*heads, -1).permute(0, 3, 1, 2, 4).contiguous(),
    )
