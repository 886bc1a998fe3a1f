"""Deformable attention by hand in float64: four corners gathered, gradients by autograd.

Written from the definition, without ``grid_sample``, so that it shares no mistake with the
reference.
"""

from __future__ import annotations

import torch
from torch import Tensor

Shapes = list[tuple[int, int]]


def attend(
    value: Tensor, shapes: Shapes, reference: Tensor, offsets: Tensor, logits: Tensor
) -> Tensor:
    """The fused form; all tensors float64."""
    weights = logits.softmax(-1).view(offsets.shape[:-1])
    return _gather(value, shapes, fused_pixels(shapes, reference, offsets), weights)


def attend_sampled(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """The unfused form; all tensors float64."""
    return _gather(value, shapes, sampled_pixels(shapes, locations), weights)


def fused_pixels(shapes: Shapes, reference: Tensor, offsets: Tensor) -> Tensor:
    sizes = torch.tensor([(w, h) for h, w in shapes], dtype=offsets.dtype)
    return (reference * sizes)[:, :, None, :, None] + offsets - 0.5


def sampled_pixels(shapes: Shapes, locations: Tensor) -> Tensor:
    sizes = torch.tensor([(w, h) for h, w in shapes], dtype=locations.dtype)
    return locations * sizes[:, None] - 0.5


def near_kink(pixels: Tensor, window_px: float = 1e-3) -> Tensor:
    """Coordinates beside a grid line, where the derivative jumps: no rounding agrees on a side."""
    finite = pixels.nan_to_num(nan=0.5, posinf=0.5, neginf=0.5)
    return (finite - finite.round()).abs() < window_px


def _gather(value: Tensor, shapes: Shapes, pixels: Tensor, weights: Tensor) -> Tensor:
    images, queries, heads = pixels.shape[:3]
    out = value.new_zeros(images, queries, heads, value.shape[3])
    image = torch.arange(images)[:, None, None, None]
    head = torch.arange(heads)[None, None, :, None]
    first = 0
    for level, (height, width) in enumerate(shapes):
        finite = pixels[:, :, :, level]
        finite = torch.where(finite.isfinite(), finite, -9.0)
        x, y = finite.unbind(-1)  # [B, Q, H, P]
        for corner_y in (y.floor(), y.floor() + 1):
            for corner_x in (x.floor(), x.floor() + 1):
                inside = (
                    (corner_x >= 0) & (corner_x < width) & (corner_y >= 0) & (corner_y < height)
                )
                cell = torch.where(inside, first + corner_y * width + corner_x, 0).detach().long()
                share = (1 - (x - corner_x.detach()).abs()) * (1 - (y - corner_y.detach()).abs())
                share = torch.where(inside, share, 0) * weights[:, :, :, level]
                out = out + (share[..., None] * value[image, cell, head]).sum(3)
        first += height * width
    return out.flatten(2)
