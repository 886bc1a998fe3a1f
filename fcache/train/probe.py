"""A linear head on the four stage outputs: are these features any good, in about a minute.

Per stage, channels are standardised and mapped by one matrix to a logit per category; the four
maps are brought to one grid and added. That equals a linear layer on the concatenation of the
resampled stages, at a fraction of its memory. Because the head is linear, a stage finer than the
grid may be averaged before the map instead of after it, so training keeps only averaged features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from fcache.config import ProbeConfig
from fcache.eval.semantic import ConfusionMatrix
from fcache.train.probe_data import (
    IGNORE,
    Batches,
    KeptFrame,
    ProbeFrames,
    ProbeProgress,
    Size,
    as_tensor,
    grid_of,
    read_frames,
    resample,
)

__all__ = ["ProbeFrames", "ProbeHead", "ProbeProgress", "evaluate", "train_probe"]


class ProbeHead(nn.Module):
    """Standardisation and one linear map per stage.

    Args:
        channels: C of each stage.
        num_categories: K.
        stride: Pixels a logit covers, each way.
    """

    def __init__(self, channels: Sequence[int], num_categories: int, stride: int) -> None:
        super().__init__()
        self.num_categories = num_categories
        self.stride = stride
        # Zero is the usual start of a convex problem, and needs no seed.
        self.weights = nn.ParameterList([torch.zeros(num_categories, c) for c in channels])
        self.bias = nn.Parameter(torch.zeros(num_categories))
        for index, c in enumerate(channels):
            self.register_buffer(f"mean{index}", torch.zeros(c))
            self.register_buffer(f"std{index}", torch.ones(c))

    def forward(
        self,
        stages: Sequence[Tensor],  # [B, h, w, C] each
        grid: Size,
    ) -> Tensor:  # [B, K, H, W]
        """Returns the logits on a grid of ``grid`` = (H, W) cells."""
        total = self.bias[None, :, None, None]
        for index, stage in enumerate(stages):
            matrix = self.weights[index] / self.get_buffer(f"std{index}")
            logits = F.linear(stage, matrix, -matrix @ self.get_buffer(f"mean{index}"))
            total = total + resample(logits.permute(0, 3, 1, 2), grid)
        return total

    @torch.no_grad()
    def predict(
        self,
        stages: Sequence[NDArray[np.floating]],  # [h, w, C] each
        size: Size,
    ) -> NDArray[np.int64]:  # [height, width]
        """Returns the category of every pixel of a canvas of ``size`` = (height, width)."""
        batch = [as_tensor(stage)[None] for stage in stages]
        logits = self(batch, grid_of(size, self.stride))
        full = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
        return full[0].argmax(0).numpy()


def train_probe(
    train: ProbeFrames,
    *,
    config: ProbeConfig,
    num_categories: int,
    progress: Callable[[ProbeProgress], None] | None = None,
) -> ProbeHead:
    """Returns a head fitted by cross-entropy over all labelled pixels.

    Every frame is read once, in a seeded order, until ``config.memory_bytes`` of averaged features
    are held; a larger set is thereby sampled. The same frames, settings and number of threads give
    the same head.

    Raises:
        ConfigError: a label outside 0..K-1, or no labelled pixel at all.
        FeatureError: a stage output that is not finite.
    """
    report = progress or (lambda _: None)
    rng = np.random.default_rng(config.seed)
    frames, moments = read_frames(train, config, num_categories, rng, report)
    head = ProbeHead([len(m.total) for m in moments], num_categories, config.stride)
    for index, moment in enumerate(moments):
        mean, std = moment.mean_std()
        head.get_buffer(f"mean{index}").copy_(mean)
        head.get_buffer(f"std{index}").copy_(std)
    _fit(head, frames, config, rng, report)
    return head.eval()


def evaluate(head: ProbeHead, frames: ProbeFrames) -> ConfusionMatrix:
    """Returns the pixel counts of a head's predictions on every frame, at label size."""
    matrix = ConfusionMatrix(head.num_categories, IGNORE)
    for index in range(len(frames)):
        label = frames.label(index)
        matrix.add(label, head.predict(frames.stages(index), (label.shape[0], label.shape[1])))
    return matrix


def _fit(
    head: ProbeHead,
    frames: list[KeptFrame],
    config: ProbeConfig,
    rng: np.random.Generator,
    report: Callable[[ProbeProgress], None],
) -> None:
    decayed = list(head.weights)
    optimizer = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": config.weight_decay},
            {"params": [head.bias], "weight_decay": 0.0},
        ],
        lr=config.lr,
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
    batches = Batches(frames, config.batch, rng)
    for step in range(1, config.steps + 1):
        chosen = batches.draw()
        pixels = torch.stack([frame.pixels for frame in chosen]).float()  # [B, H, W, K]
        stages = [
            torch.stack(maps).float() for maps in zip(*(f.stages for f in chosen), strict=True)
        ]
        logits = head(stages, (pixels.shape[1], pixels.shape[2]))
        loss = -(pixels.permute(0, 3, 1, 2) * logits.log_softmax(1)).sum() / pixels.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        report(ProbeProgress("fit", step, config.steps, float(loss.detach())))
