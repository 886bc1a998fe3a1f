"""The segmenter as a train stage: frames are independent images, as in MinVIS."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fcache.models import HungarianMatcher, SeededDraw, Segmenter, SetCriterion, Targets
from fcache.models.panoptic import Canvas, class_probabilities, panoptic_map, semantic_map
from fcache.train.distributed import World
from fcache.train.optimizer import ParameterGroup, parameter_groups
from fcache.train.stage import Batch, FrameScores, LossParts, Segments, frame_targets

ADAPTER, BACKBONE = "adapter.", "backbone."


class SegmenterStage:
    """Trains adapter, pixel decoder and masked decoder with one loss per frame.

    Args:
        module: On its device.
        is_thing: Of each category, in model order.
        seed: Of the run.
        lr: Of the decoders.
        weight_decay: Of all but norms and embeddings.
        adapter_lr_factor: What the adapter's rate is multiplied by.
        backbone_lr_factor: Likewise of a backbone that trains with it.
        num_points: Points of a mask, in matching and in losses.
    """

    name = "segmenter"
    loss_names: tuple[str, ...] = ("loss_ce", "loss_mask", "loss_dice")

    def __init__(
        self,
        module: Segmenter,
        is_thing: Sequence[bool],
        *,
        seed: int,
        lr: float,
        weight_decay: float,
        adapter_lr_factor: float = 0.1,
        backbone_lr_factor: float = 0.1,
        num_points: int = 12544,
    ) -> None:
        self.module: nn.Module = module
        self.is_thing = tuple(is_thing)
        self.seed = seed
        self.lr = lr
        self.weight_decay = weight_decay
        self.factors = {ADAPTER: adapter_lr_factor, BACKBONE: backbone_lr_factor}
        self.num_queries = module.masked_decoder.query_features.num_embeddings
        self.criterion = SetCriterion(
            len(self.is_thing), HungarianMatcher(num_points), num_points=num_points
        ).to(next(module.parameters()).device)

    def groups(self) -> list[ParameterGroup]:
        """Returns the trained parameters; adapter and backbone learn at rates of their own."""
        return parameter_groups(
            self.module,
            lr=self.lr,
            weight_decay=self.weight_decay,
            factors=self.factors,
        )

    def divisors(self, targets: Sequence[Segments]) -> Tensor:  # [2] float32
        """Returns the masks and the class weights that a micro-batch counts; frames count each."""
        frames = [frame for clip in targets for frame in frame_targets(clip)]
        return self.criterion.divisors(frames, self.num_queries)

    def loss(self, model: nn.Module, batch: Batch, step: int, divisors: Tensor) -> LossParts:
        """Returns a micro-batch's part of the step's loss, and the last layer's three kinds."""
        output = model(batch.stages, batch.pixels)
        targets = [
            frame
            for clip, extent in zip(batch.targets, batch.extents, strict=True)
            for frame in frame_targets(clip, extent)
        ]
        draw = SeededDraw(self.seed, step, batch.names, batch.pixels.device)
        losses = self.criterion(output.layers, targets, draw, divisors=divisors)
        named = losses.named()
        return LossParts(losses.total(), {name: named[name] for name in self.loss_names})

    @torch.no_grad()
    def evaluate(
        self, batches: Iterable[Batch], scores: FrameScores, world: World
    ) -> dict[str, float]:
        """Returns the scores of single frames over the batches of all ranks."""
        self.module.eval()
        for batch in batches:
            output = self.module(batch.stages, batch.pixels, keep_aux=False)
            padded = (batch.pixels.shape[-2], batch.pixels.shape[-1])
            predicted = zip(output.final.class_logits, output.final.mask_logits, strict=True)
            for (logits, masks), frame in zip(predicted, _frames(batch), strict=True):
                canvas = Canvas(padded, (frame.truth.masks.shape[1], frame.truth.masks.shape[2]))
                classes = class_probabilities(logits)
                segments = None
                if scores.wants_segments:
                    segments = panoptic_map(classes, masks[:, None], canvas, self.is_thing)
                semantic = semantic_map(classes, masks[:, None], canvas)[0]
                scores.add(frame.name, frame.truth, semantic, segments)
        return scores.joined(world).metrics()


@dataclass(frozen=True, slots=True)
class _Frame:
    name: str
    truth: Targets  # of the valid part


def _frames(batch: Batch) -> Iterator[_Frame]:
    names = iter(batch.names)
    height, width = batch.pixels.shape[-2:]
    for clip, (x, y) in zip(batch.targets, batch.extents, strict=True):
        valid = clip.masks[..., : round(y * height), : round(x * width)]
        for masks in valid.unbind(1):
            yield _Frame(next(names), Targets(clip.classes, masks))
