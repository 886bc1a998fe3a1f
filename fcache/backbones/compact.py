"""Rounding to the compact tier: int8 = token scale x static channel scale.

The token scale is the smallest float16 that keeps a token within the levels, so that none clips.
"""

from __future__ import annotations

import torch
from torch import Tensor

LEVELS = 127  # values are in [-127, 127], the same on both sides of zero


def token_scales(
    scaled: Tensor,  # [..., C] float32, features over their channel scales
) -> Tensor:  # [...] float16
    """Returns what each token needs; 0 for a token of zeros, infinite beyond float16."""
    largest = torch.maximum(scaled.amax(-1), -scaled.amin(-1))
    scale = (largest / LEVELS).half()
    # The product is exact in float32: 11 bits times 7. A positive float16's successor is that of
    # its bits, from zero and the subnormals up to infinity.
    too_small = scale.float() * LEVELS < largest
    return torch.where(too_small, (scale.view(torch.int16) + 1).view(torch.float16), scale)


def to_levels_(
    scaled: Tensor,  # [..., C] float32, overwritten
    scale: Tensor,  # [...] float16
) -> Tensor:  # [..., C] float32
    """Returns the whole numbers that int8 holds, in the memory of ``scaled``."""
    divisor = torch.where(scale == 0, 1.0, scale.float()).unsqueeze(-1)
    return scaled.div_(divisor).round_()
