"""ViT-Adapter's spatial prior: a small convolutional pyramid over the pixels."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from fcache.models.layers import Norm2d


class ConvNorm(nn.Module):
    """A 3x3 convolution without bias, a norm and a ReLU."""

    def __init__(self, in_dim: int, out_dim: int, stride: int, norm: Norm2d) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_dim, out_dim, 3, stride, padding=1, bias=False)
        self.norm = norm(out_dim)

    def forward(
        self,
        maps: Tensor,  # [B, in_dim, H, W]
    ) -> Tensor:  # [B, out_dim, H / stride, W / stride]
        """Returns the activated map."""
        return F.relu(self.norm(self.conv(maps)))


class SpatialPrior(nn.Module):
    """Four maps of the pixels at strides 4, 8, 16 and 32, all of the backbone's width.

    Args:
        dim: Channels of the outputs.
        width: Channels of the stem; the later convolutions have 2, 4 and 4 times as many.
        norm: Makes the norm after each 3x3 convolution.
    """

    def __init__(self, dim: int, width: int = 64, norm: Norm2d = nn.BatchNorm2d) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            ConvNorm(3, width, 2, norm),
            ConvNorm(width, width, 1, norm),
            ConvNorm(width, width, 1, norm),
        )
        self.down8 = ConvNorm(width, 2 * width, 2, norm)
        self.down16 = ConvNorm(2 * width, 4 * width, 2, norm)
        self.down32 = ConvNorm(4 * width, 4 * width, 2, norm)
        self.project4 = nn.Conv2d(width, dim, 1)
        self.project8 = nn.Conv2d(2 * width, dim, 1)
        self.project16 = nn.Conv2d(4 * width, dim, 1)
        self.project32 = nn.Conv2d(4 * width, dim, 1)

    def forward(
        self,
        pixels: Tensor,  # [B, 3, height, width] normalised, zero outside the valid area
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # [B, C, height / 4, width / 4] ... / 32
        """Returns the maps, finest first."""
        at4 = F.max_pool2d(self.stem(pixels), 3, stride=2, padding=1)
        at8 = self.down8(at4)
        at16 = self.down16(at8)
        at32 = self.down32(at16)
        return self.project4(at4), self.project8(at8), self.project16(at16), self.project32(at32)
