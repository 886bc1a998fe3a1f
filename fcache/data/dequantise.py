"""The compact tier read back, on the device that uses it."""

from __future__ import annotations

import torch
from torch import Tensor


def dequantise(
    values: Tensor,  # [..., H, W, C] int8
    scale: Tensor,  # [..., H, W] float16, one a token
    channel_scale: Tensor,  # [C] float32, of the stage
    dtype: torch.dtype = torch.float32,
) -> Tensor:  # [..., H, W, C]
    """Returns ``values * scale * channel_scale`` in ``dtype``, on the device of the values.

    The first product is exact in float32 (8 bits times 11), the second rounds once; bfloat16 and
    float16 round that once more. Values above 65504 become infinite in float16. Takes one float32
    temporary of the values' shape.

    Raises:
        ValueError: the types or shapes are not those of a stage of the compact tier.
    """
    types = (values.dtype, scale.dtype, channel_scale.dtype)
    fits = scale.shape == values.shape[:-1] and channel_scale.shape == values.shape[-1:]
    if types != (torch.int8, torch.float16, torch.float32) or not fits:
        shapes = [tuple(tensor.shape) for tensor in (values, scale, channel_scale)]
        raise ValueError(
            f"values, scale and channel_scale are {types} of {shapes}; expected int8 "
            "[..., H, W, C], float16 [..., H, W] and float32 [C]"
        )
    tokens = scale.float().unsqueeze(-1)
    return (values * tokens).mul_(channel_scale).to(dtype)
