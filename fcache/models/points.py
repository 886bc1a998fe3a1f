"""Points that stand for whole masks in matching and losses: where from, and what lies there.

Mask2Former, section 3.4, and PointRend. Points are (x, y) in [0, 1]; a mask and a prediction of
another size are read at the same points.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

Purpose = Literal["match", "candidates", "fresh"]


class Draw(Protocol):
    """Gives the uniform random numbers of one loss computation."""

    def __call__(
        self, purpose: Purpose, layer: int, image: int, shape: tuple[int, ...]
    ) -> Tensor:  # [*shape] float32 in [0, 1)
        """Returns the numbers of one purpose for one layer and one image of the batch."""
        ...


class SeededDraw:
    """Random numbers that depend on what they are for, never on rank, order or what came before.

    Args:
        seed: Of the run.
        step: Of the optimizer; a resumed run goes on with the same numbers.
        images: A name for each image of the batch: the clip's, with the frame where it has some.
        device: Where the numbers are drawn; another kind of device draws others.
    """

    def __init__(
        self, seed: int, step: int, images: Sequence[str], device: torch.device | str = "cpu"
    ) -> None:
        self.seed = seed
        self.step = step
        self.images = tuple(images)
        self.device = torch.device(device)

    def __call__(
        self, purpose: Purpose, layer: int, image: int, shape: tuple[int, ...]
    ) -> Tensor:  # [*shape] float32 in [0, 1)
        """Returns the numbers of one purpose for one layer and one image of the batch."""
        told = "\n".join(map(str, (self.seed, self.step, layer, purpose, self.images[image])))
        digest = hashlib.blake2b(told.encode(), digest_size=8).digest()
        generator = torch.Generator(self.device)
        generator.manual_seed(int.from_bytes(digest, "little") >> 1)
        return torch.rand(shape, generator=generator, device=self.device)


def sample_logits(
    logits: Tensor,  # [N, h, w]
    points: Tensor,  # [1 or N, P, 2]
) -> Tensor:  # [N, P] float32
    """Returns bilinear readings of maps, with gradient; outside counts as zero.

    One set of points for all maps is read in one pass, the maps as channels.
    """
    grid = (2 * points - 1)[:, :, None]
    if points.shape[0] == 1:
        return F.grid_sample(logits.float()[None], grid, align_corners=False)[0, :, :, 0]
    return F.grid_sample(logits.float()[:, None], grid, align_corners=False)[:, 0, :, 0]


@torch.no_grad()
def sample_masks(
    masks: Tensor,  # [N, height, width] bool, uint8 or float
    points: Tensor,  # [1 or N, P, 2]
) -> Tensor:  # [N, P] float32
    """Returns bilinear readings of masks without turning whole masks into floats."""
    num_masks, height, width = masks.shape
    flat = masks.flatten(1)
    corner = points.new_tensor([width, height]) * points - 0.5
    low = corner.floor()
    part = corner - low
    out = points.new_zeros(num_masks, points.shape[1])
    for right in (0, 1):
        for down in (0, 1):
            x, y = (low[..., 0] + right).long(), (low[..., 1] + down).long()
            inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
            index = (y.clamp(0, height - 1) * width + x.clamp(0, width - 1)).expand(num_masks, -1)
            weight = (part[..., 0] - (1 - right)).abs() * (part[..., 1] - (1 - down)).abs()
            out += flat.gather(1, index) * (weight * inside)
    return out


@torch.no_grad()
def uncertain_points(
    logits: Tensor,  # [N, h, w]
    candidates: Tensor,  # [N, oversample * P, 2]
    fresh: Tensor,  # [N, P - kept, 2]
    num_points: int,
) -> Tensor:  # [N, P, 2]
    """Returns the candidates whose logits are nearest to zero, then the fresh points."""
    kept = num_points - fresh.shape[1]
    certainty = sample_logits(logits, candidates).abs()
    nearest = certainty.topk(kept, 1, largest=False).indices
    chosen = candidates.gather(1, nearest[..., None].expand(-1, -1, 2))
    return torch.cat([chosen, fresh], 1)
