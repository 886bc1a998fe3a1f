"""The pass-through for pyramid backbones: their four outputs are the pyramid."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class PyramidAdapter(nn.Module):
    """Hands a pyramid backbone's outputs to the pixel decoder; it has no parameters.

    Args:
        channels: Channels of the four outputs, finest first.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        if len(channels) != 4:
            raise ValueError(f"channels={list(channels)}; expected four, at strides 4, 8, 16, 32.")
        self.channels = tuple(channels)

    def forward(
        self,
        stage_outputs: Sequence[Tensor],  # [B, 8H, 8W, C0], [B, 4H, 4W, C1], ... [B, H, W, C3]
        pixels: Tensor | None = None,
    ) -> list[Tensor]:  # [B, C0, 8H, 8W] ... [B, C3, H, W]
        """Returns the outputs channels first; pixels are not read.

        Raises:
            ValueError: the outputs have other channels, or do not halve from one to the next.
        """
        shapes = [tuple(output.shape) for output in stage_outputs]
        height, width = shapes[-1][1:3]
        expected = [
            (shapes[-1][0], height * scale, width * scale, dim)
            for scale, dim in zip((8, 4, 2, 1), self.channels, strict=True)
        ]
        if shapes != expected:
            raise ValueError(f"stage outputs are {shapes}; expected {expected}.")
        return [output.permute(0, 3, 1, 2) for output in stage_outputs]
