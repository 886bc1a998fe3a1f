"""Batch norm whose statistics are over the micro-batches of all ranks, on any device.

torch's own ``SyncBatchNorm`` refuses CPU tensors. Ranks may hold maps of different sizes: every
position counts once.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

MAP_AXES = (0, 2, 3)


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """``nn.BatchNorm2d``, synced while it trains on several ranks; alone it is the same module.

    Every rank must run it equally often.
    """

    def forward(
        self,
        input: Tensor,  # noqa: A002 - nn.BatchNorm2d's name  [B, C, H, W]
    ) -> Tensor:  # [B, C, H, W]
        """Returns the normed map; in float32 inside, in the input's dtype outside."""
        if not (self.training and dist.is_initialized() and dist.get_world_size() > 1):
            return super().forward(input)
        normed, mean, variance, count = _SyncedNorm.apply(input, self.weight, self.bias, self.eps)
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            assert self.momentum is not None
            self.num_batches_tracked.add_(1)
            unbiased = variance * (count / (count - 1).clamp(min=1))
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(unbiased, self.momentum)
        out: Tensor = normed
        return out


class _SyncedNorm(torch.autograd.Function):
    """Normalises by joint statistics; the backward pass sums what they depend on over ranks."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's own
        maps: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        values = maps.float()
        mean, variance, count = _joint_statistics(values)
        scale = (variance + eps).rsqrt()
        centred = (values - mean[:, None, None]) * scale[:, None, None]
        ctx.save_for_backward(centred, weight, scale, count)
        out = centred * weight[:, None, None] + bias[:, None, None]
        ctx.mark_non_differentiable(mean, variance, count)
        return out.to(maps.dtype), mean, variance, count

    @staticmethod
    def backward(
        ctx: Any,  # noqa: ANN401 - torch's own
        grad: Tensor,
        *_: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, None]:
        centred, weight, scale, count = ctx.saved_tensors
        wide = grad.float()
        by_bias = wide.sum(MAP_AXES)
        by_weight = (wide * centred).sum(MAP_AXES)
        sums = torch.stack([by_bias, by_weight])
        dist.all_reduce(sums)
        mean_grad, mean_product = (sums / count)[:, :, None, None].unbind()
        factor = (weight * scale)[:, None, None]
        by_input = factor * (wide - mean_grad - centred * mean_product)
        return by_input.to(grad.dtype), by_weight, by_bias, None


def _joint_statistics(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns mean [C], biased variance [C] and the count of positions, over all ranks.

    Each rank's mean and variance are joined (Chan et al. 1979): a sum of squares would lose the
    variance of channels whose mean is far from zero.
    """
    variance, mean = torch.var_mean(values, MAP_AXES, correction=0)
    count = values.new_tensor([float(values[:, 0].numel())])
    mine = torch.cat([mean, variance, count])
    everyone = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, mine)
    rows = torch.stack(everyone)
    counts = rows[:, -1:]
    means, variances = rows[:, :-1].chunk(2, 1)
    total = counts.sum()
    joint = (means * counts).sum(0) / total
    spread = ((variances + (means - joint).square()) * counts).sum(0) / total
    return joint, spread, total
