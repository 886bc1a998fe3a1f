"""The set criterion: class, mask and dice losses of matched queries, for every layer.

Mask2Former, section 3.3. Frames of a clip are images of the batch (MinVIS); a tracker hands in
the matches of its clip, a refiner stacks the frames of a clip into one tall image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fcache.models.matcher import Match, Matcher
from fcache.models.points import Draw, sample_logits, sample_masks, uncertain_points
from fcache.models.predictions import Prediction
from fcache.models.targets import Targets


@dataclass(frozen=True, slots=True)
class Losses:
    """Unweighted losses by layer: the final one first, then the auxiliary ones."""

    classes: Tensor  # [layers]
    masks: Tensor  # [layers]
    dice: Tensor  # [layers]

    def total(self, *, classes: float = 2.0, masks: float = 5.0, dice: float = 5.0) -> Tensor:
        """Returns the weighted sum over kinds and layers, a scalar."""
        return classes * self.classes.sum() + masks * self.masks.sum() + dice * self.dice.sum()

    def named(self) -> dict[str, Tensor]:
        """Returns each loss, detached, under the name the field's logs give it.

        ``loss_ce``, ``loss_mask`` and ``loss_dice`` are the final layer's; auxiliary ones end in
        ``_0``, ``_1``, ...
        """
        kinds = {"loss_ce": self.classes, "loss_mask": self.masks, "loss_dice": self.dice}
        return {
            name if layer == 0 else f"{name}_{layer - 1}": value
            for name, values in kinds.items()
            for layer, value in enumerate(values.detach().unbind())
        }


class SetCriterion(nn.Module):
    """Losses between the predictions of all layers and the segments of all images.

    Args:
        num_categories: Classes without "no object".
        matcher: Pairs queries with segments.
        num_points: Points of a mask loss; the refiner takes this many per frame.
        oversample: Candidates per point, of which the most uncertain are kept.
        uncertain: Part of the points that comes from the candidates.
        no_object_weight: Weight of "no object" in the class loss.
    """

    class_weight: Tensor  # [K + 1]

    def __init__(
        self,
        num_categories: int,
        matcher: Matcher,
        *,
        num_points: int = 12544,
        oversample: float = 3.0,
        uncertain: float = 0.75,
        no_object_weight: float = 0.1,
    ) -> None:
        super().__init__()
        self.matcher = matcher
        self.num_points = num_points
        self.num_candidates = int(num_points * oversample)
        self.num_fresh = num_points - int(uncertain * num_points)
        self.no_object_weight = no_object_weight
        weight = torch.ones(num_categories + 1)
        weight[-1] = no_object_weight
        self.register_buffer("class_weight", weight)

    def divisors(self, targets: Sequence[Targets], num_queries: int) -> Tensor:  # [2] float32
        """Returns what this batch adds to the divisors: masks, and sum of class weights.

        Divisors of micro-batches and ranks are summed and handed to ``forward``: their losses then
        add up to the loss of the whole batch.
        """
        counts = [target.classes.shape[0] for target in targets]
        matched = sum(min(count, num_queries) for count in counts)
        rest = len(counts) * num_queries - matched
        return torch.tensor([float(sum(counts)), matched + self.no_object_weight * rest])

    def forward(
        self,
        layers: Sequence[Prediction],  # the final one first
        targets: Sequence[Targets],  # one per image
        draw: Draw,
        *,
        matches: Sequence[Match] | None = None,  # one per image, reused for every layer
        divisors: Tensor | None = None,  # [2] of the whole batch, of this one by default
    ) -> Losses:
        """Returns the losses in float32, also under autocast.

        Raises:
            ValueError: another number of targets or matches than images.
        """
        num_images, num_queries = layers[0].class_logits.shape[:2]
        if len(targets) != num_images:
            raise ValueError(f"{num_images} images have {len(targets)} targets; expected one each.")
        if matches is not None and len(matches) != num_images:
            raise ValueError(f"{num_images} images have {len(matches)} matches; expected one each.")
        by_layer = (
            self.matcher(layers, targets, draw)
            if matches is None
            else [list(matches) for _ in layers]
        )
        divisors = self.divisors(targets, num_queries) if divisors is None else divisors
        num_masks, class_weight = divisors.to(layers[0].class_logits.device).unbind()
        with torch.autocast(layers[0].mask_logits.device.type, enabled=False):
            classes = [
                self._class_loss(prediction, targets, matched) / class_weight
                for prediction, matched in zip(layers, by_layer, strict=True)
            ]
            masks = torch.stack(
                [
                    self._mask_losses(index, prediction, targets, by_layer[index], draw)
                    for index, prediction in enumerate(layers)
                ]
            ) / num_masks.clamp(min=1)
        return Losses(torch.stack(classes), masks[:, 0], masks[:, 1])

    def _class_loss(
        self, prediction: Prediction, targets: Sequence[Targets], matches: Sequence[Match]
    ) -> Tensor:  # scalar, weighted sum
        logits = prediction.class_logits.float()
        wanted = torch.full(
            logits.shape[:2], logits.shape[2] - 1, dtype=torch.int64, device=logits.device
        )
        for image, (target, match) in enumerate(zip(targets, matches, strict=True)):
            wanted[image, match.queries] = target.classes[match.segments]
        return F.cross_entropy(
            logits.flatten(0, 1), wanted.flatten(), self.class_weight, reduction="sum"
        )

    def _mask_losses(
        self,
        layer: int,
        prediction: Prediction,
        targets: Sequence[Targets],
        matches: Sequence[Match],
        draw: Draw,
    ) -> Tensor:  # [2] binary cross-entropy and dice, summed over masks
        queries = torch.cat([match.queries for match in matches])
        images = torch.cat([torch.full_like(m.queries, i) for i, m in enumerate(matches)])
        logits = prediction.mask_logits[images, queries].float()
        if not logits.shape[0]:
            return logits.sum().expand(2)
        masks = [
            target.masks[match.segments] for target, match in zip(targets, matches, strict=True)
        ]
        candidates, fresh = self._uniform(layer, targets, matches, draw)
        points = uncertain_points(logits, candidates, fresh, self.num_points)
        inside = sample_masks(torch.cat(masks), points)
        return point_losses(sample_logits(logits, points), inside)

    def _uniform(
        self, layer: int, targets: Sequence[Targets], matches: Sequence[Match], draw: Draw
    ) -> tuple[Tensor, Tensor]:  # [masks, candidates, 2], [masks, fresh, 2]
        candidates, fresh = [], []
        for image, (target, match) in enumerate(zip(targets, matches, strict=True)):
            num_masks = match.queries.shape[0]
            if not num_masks:
                continue
            shapes = ((num_masks, self.num_candidates, 2), (num_masks, self.num_fresh, 2))
            first = draw("candidates", layer, image, shapes[0])
            second = draw("fresh", layer, image, shapes[1])
            extent = first.new_tensor(target.extent)
            candidates.append(first * extent)
            fresh.append(second * extent)
        return torch.cat(candidates), torch.cat(fresh)


def point_losses(
    logits: Tensor,  # [N, P]
    inside: Tensor,  # [N, P]
) -> Tensor:  # [2]
    """Returns mean binary cross-entropy and dice loss at the points, summed over masks."""
    cross_entropy = F.binary_cross_entropy_with_logits(logits, inside, reduction="none").mean(1)
    probability = logits.sigmoid()
    overlap = 2 * (probability * inside).sum(1)
    total = probability.sum(1) + inside.sum(1)
    dice = 1 - (overlap + 1) / (total + 1)
    return torch.stack([cross_entropy.sum(), dice.sum()])
