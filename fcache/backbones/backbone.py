"""A frozen network: uint8 canvases in, four stage outputs out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import cast

import torch
from torch import Tensor, nn

from fcache.backbones import packed
from fcache.backbones.description import Description
from fcache.backbones.pyramid import PyramidTrunk
from fcache.backbones.vit import VitTrunk
from fcache.errors import ConfigError


class Backbone(nn.Module):
    """A frozen network from uint8 canvases to four stage outputs.

    ``weights_sha256`` names the values (see ``weights_hash``), ``weights_source`` says where they
    came from, for example ``file dinov2_vitg14_pretrain.pth``.
    """

    mean: Tensor  # [3]
    std: Tensor  # [3]

    def __init__(
        self,
        trunk: VitTrunk | PyramidTrunk,
        description: Description,
        compute: torch.dtype,
        weights_sha256: str,
        weights_source: str,
    ) -> None:
        super().__init__()
        self.description = description
        self.weights_sha256 = weights_sha256
        self.weights_source = weights_source
        self.compute = compute
        self.trunk = trunk
        self.register_buffer("mean", torch.tensor(description.mean), persistent=False)
        self.register_buffer("std", torch.tensor(description.std), persistent=False)
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> Backbone:
        """Stays in evaluation mode: the backbone is frozen wherever it is built in."""
        super().train(False)
        return self

    @torch.no_grad()
    def forward(
        self,
        canvas: Tensor,  # [B, height, width, 3] uint8 RGB, on the backbone's device
        valid_hw: Sequence[tuple[int, int]] | tuple[int, int],
    ) -> list[Tensor]:  # 4 x [B, H, W, C] float32
        """Returns the stage outputs of padded frames.

        ``valid_hw`` is the (height, width) that holds a frame, at the top left: one pair for all,
        or one per frame. Outside it pixels are zero after normalisation, whatever the canvas holds.

        Raises:
            ValueError: the canvas is not uint8 [B, height, width, 3] with sides the network takes.
        """
        return self.stages(self.normalise(canvas, valid_hw))

    @torch.no_grad()
    def stages(
        self,
        pixels: Tensor,  # [B, 3, height, width] float32, as ``normalise`` makes them
    ) -> list[Tensor]:  # 4 x [B, H, W, C] float32
        """Returns the stage outputs of normalised frames."""
        with self._arithmetic(pixels.device):
            outputs = self.trunk(pixels)
        return [output.float().contiguous() for output in outputs]

    @torch.no_grad()
    def forward_mixed(
        self,
        canvases: Sequence[Tensor],  # F of [height, width, 3] uint8 RGB, on the backbone's device
        valid_hw: Sequence[tuple[int, int]],  # F of (height, width) in pixels
    ) -> list[list[Tensor]]:  # F x 4 x [H, W, C] float32
        """Returns the stage outputs of frames of any sizes, computed as one sequence of tokens.

        Each frame's equal what ``forward`` gives for it, up to rounding. ``mixed_attention`` names
        the attention that runs. Compiled blocks are not used.

        Raises:
            ConfigError: the network cannot take frames of different sizes together.
            ValueError: a canvas is not one that ``forward`` takes.
        """
        if self.mixed_refusal:
            raise ConfigError(
                f"model='{self.description.model}' computes frames of one size at a time: "
                f"{self.mixed_refusal}; expected a plain ViT of standard blocks and attention."
            )
        assert isinstance(self.trunk, VitTrunk)
        if not canvases:
            return []
        frames = [
            self.normalise(canvas[None], area)
            for canvas, area in zip(canvases, valid_hw, strict=True)
        ]
        attend = self._mixed.prepare([self.trunk.num_tokens(f) for f in frames], self.mean.device)
        with self._arithmetic(self.mean.device):
            outputs = self.trunk.forward_packed(frames, attend)
        return [[output.float().contiguous() for output in stages] for stages in outputs]

    @cached_property
    def mixed_refusal(self) -> str:
        """Why frames of different sizes cannot share a call; empty if they can."""
        if not isinstance(self.trunk, VitTrunk):
            return "it is a pyramid, whose layers look at neighbouring tokens"
        return packed.refusal(self.trunk.vit)

    @property
    def mixed_attention(self) -> str:
        """Names the attention of ``forward_mixed``, for provenance."""
        return self._mixed.name

    @cached_property
    def _mixed(self) -> packed.PackedAttention:
        assert isinstance(self.trunk, VitTrunk)
        return packed.choose_attention(
            self.mean.device, self.compute, packed.head_dim(self.trunk.vit)
        )

    def _arithmetic(self, device: torch.device) -> torch.autocast:
        return torch.autocast(
            device.type, dtype=self.compute, enabled=self.compute != torch.float32
        )

    def normalise(
        self,
        canvas: Tensor,  # [B, height, width, 3] uint8
        valid_hw: Sequence[tuple[int, int]] | tuple[int, int],
    ) -> Tensor:  # [B, 3, height, width] float32
        """Returns (pixel - mean) / std inside the valid area and zero outside."""
        if canvas.dtype != torch.uint8 or canvas.ndim != 4 or canvas.shape[-1] != 3:
            raise ValueError(
                f"canvas is {canvas.dtype} {tuple(canvas.shape)}; expected uint8 [B, H, W, 3]"
            )
        count, height, width, _ = canvas.shape
        multiple = self.trunk.multiple
        if height % multiple or width % multiple:
            raise ValueError(
                f"canvas is {height}x{width} pixels; expected multiples of {multiple} for "
                f"'{self.description.model}'"
            )
        areas = _areas(valid_hw, count, (height, width))
        pixels = ((canvas.float() - self.mean) / self.std).permute(0, 3, 1, 2).contiguous()
        for frame, (valid_height, valid_width) in zip(pixels, areas, strict=True):
            frame[:, valid_height:] = 0
            frame[:, :, valid_width:] = 0
        return pixels


def _areas(
    valid_hw: Sequence[tuple[int, int]] | tuple[int, int], count: int, canvas: tuple[int, int]
) -> list[tuple[int, int]]:
    is_pair = len(valid_hw) == 2 and all(isinstance(side, int) for side in valid_hw)
    areas = [valid_hw] * count if is_pair else list(valid_hw)
    pairs = [(int(area[0]), int(area[1])) for area in cast("list[tuple[int, int]]", areas)]
    inside = all(0 < h <= canvas[0] and 0 < w <= canvas[1] for h, w in pairs)
    if len(pairs) != count or not inside:
        raise ValueError(
            f"valid_hw={valid_hw} does not fit {count} canvases of {canvas[0]}x{canvas[1]} pixels; "
            f"expected one (height, width) for all or one each, inside the canvas"
        )
    return pairs
