"""Hungarian matching: which query answers for which segment, for every layer at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from fcache.models.points import Draw, sample_logits, sample_masks
from fcache.models.predictions import Prediction
from fcache.models.targets import Targets

# What replaces a cost that is not finite: matching goes on, and the loss itself shows the NaN.
WORST_COST = 1e6


@dataclass(frozen=True, slots=True)
class Match:
    """Pairs of one image: query ``queries[i]`` answers for segment ``segments[i]``."""

    queries: Tensor  # [n] int64, ascending, n = min(Q, N)
    segments: Tensor  # [n] int64


class Matcher(Protocol):
    """Pairs queries with segments."""

    def __call__(
        self, layers: Sequence[Prediction], targets: Sequence[Targets], draw: Draw
    ) -> list[list[Match]]:
        """Returns one match per layer and image; images are those of the batch, in order."""
        ...


class HungarianMatcher:
    """The cheapest assignment by class probability, mask cross-entropy and dice.

    Costs are taken at points that all queries and segments of an image share.

    Args:
        num_points: Points of an image; the refiner takes this many per frame.
        class_cost: Weight of the negative class probability.
        mask_cost: Weight of the mean binary cross-entropy.
        dice_cost: Weight of the dice loss.
    """

    def __init__(
        self,
        num_points: int = 12544,
        *,
        class_cost: float = 2.0,
        mask_cost: float = 5.0,
        dice_cost: float = 5.0,
    ) -> None:
        self.num_points = num_points
        self.class_cost = class_cost
        self.mask_cost = mask_cost
        self.dice_cost = dice_cost

    @torch.no_grad()
    def __call__(
        self, layers: Sequence[Prediction], targets: Sequence[Targets], draw: Draw
    ) -> list[list[Match]]:
        """Returns one match per layer and image.

        The costs of all layers come to the CPU in one transfer.
        """
        device = layers[0].mask_logits.device
        with torch.autocast(device.type, enabled=False):
            costs = [
                self.costs(prediction, image, target, draw("match", layer, image, self._shape))
                for layer, prediction in enumerate(layers)
                for image, target in enumerate(targets)
            ]
        solved = iter(_solve(costs))
        return [[next(solved) for _ in targets] for _ in layers]

    @property
    def _shape(self) -> tuple[int, int, int]:
        return (1, self.num_points, 2)

    def costs(
        self,
        prediction: Prediction,
        image: int,
        target: Targets,
        uniform: Tensor,  # [1, P, 2] in [0, 1)
    ) -> Tensor:  # [Q, N] float32
        """Returns what it costs that a query answers for a segment of this image."""
        points = uniform * uniform.new_tensor(target.extent)
        logits = sample_logits(prediction.mask_logits[image], points)  # [Q, P]
        inside = sample_masks(target.masks, points)  # [N, P]
        probability = prediction.class_logits[image].float().softmax(-1)
        class_cost = -probability[:, target.classes]
        mask_cost = _pairwise_cross_entropy(logits, inside)
        dice_cost = _pairwise_dice(logits.sigmoid(), inside)
        return (
            self.class_cost * class_cost + self.mask_cost * mask_cost + self.dice_cost * dice_cost
        )


def _pairwise_cross_entropy(logits: Tensor, inside: Tensor) -> Tensor:  # [Q, P], [N, P] -> [Q, N]
    # softplus(-x) t + softplus(x) (1 - t) = softplus(x) - x t, which needs one product.
    return (F.softplus(logits).sum(1)[:, None] - logits @ inside.t()) / logits.shape[1]


def _pairwise_dice(probability: Tensor, inside: Tensor) -> Tensor:  # [Q, P], [N, P] -> [Q, N]
    overlap = 2 * (probability @ inside.t())
    total = probability.sum(1)[:, None] + inside.sum(1)
    return 1 - (overlap + 1) / (total + 1)


def _solve(costs: Sequence[Tensor]) -> list[Match]:
    """Assigns each cost matrix; the indices come back to the device of the costs."""
    device = costs[0].device
    flat = torch.cat([cost.flatten() for cost in costs]).cpu()
    flat = flat.nan_to_num(nan=WORST_COST, posinf=WORST_COST, neginf=WORST_COST)
    pairs = []
    for cost, values in zip(costs, flat.split([c.numel() for c in costs]), strict=True):
        rows, columns = linear_sum_assignment(values.view(cost.shape).numpy())
        pairs.append((torch.from_numpy(rows), torch.from_numpy(columns)))
    joined = torch.cat([torch.stack(pair) for pair in pairs], 1).to(device)
    return [
        Match(queries, segments)
        for queries, segments in (
            part.unbind() for part in joined.split([len(rows) for rows, _ in pairs], 1)
        )
    ]
