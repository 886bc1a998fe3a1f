"""What the loop asks of a train stage: a module, its losses, its parameters, its scores.

The loop knows no model. Segmenter, tracker, refiner and VSS are stages.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from fcache.models import Targets
from fcache.models.panoptic import PanopticMap
from fcache.train.distributed import World
from fcache.train.optimizer import ParameterGroup


class Segments(Protocol):
    """The segments of a clip; every one is listed in every frame."""

    @property
    def classes(self) -> Tensor:
        """[N] int64."""

    @property
    def masks(self) -> Tensor:
        """[N, T, H, W] bool."""


class Batch(Protocol):
    """B clips of T frames on the device, frames of a clip together."""

    @property
    def stages(self) -> tuple[Tensor, ...]:
        """Four of [B*T, h, w, C]."""

    @property
    def pixels(self) -> Tensor:
        """[B*T, 3, H, W] normalised, zero in the padding."""

    @property
    def targets(self) -> Sequence[Segments]:
        """Of each clip."""

    @property
    def extents(self) -> Sequence[tuple[float, float]]:
        """Of each clip, the valid part (x, y) of width and height."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of each image, B*T; no two of a run have the same."""


class ReadBatch(Protocol):
    """A micro-batch as it was read."""

    @property
    def targets(self) -> Sequence[Segments]:
        """Of each clip."""

    def to(self, device: torch.device | str, dtype: torch.dtype = torch.float32) -> Batch:
        """Returns it on a device."""
        ...


class FrameScores(Protocol):
    """Counts of validation frames, on one rank.

    Attributes:
        wants_segments: Whether it counts panoptic maps too.
    """

    wants_segments: bool

    def add(
        self, name: str, truth: Targets, semantic: Tensor, panoptic: PanopticMap | None
    ) -> None:
        """Counts a frame; masks and maps are of its valid part."""

    def joined(self, world: World) -> FrameScores:
        """Returns the counts of all ranks together."""
        ...

    def metrics(self) -> dict[str, float]:
        """Returns the scores."""
        ...


@dataclass(frozen=True, slots=True)
class LossParts:
    """The loss of a micro-batch, and what it is made of."""

    total: Tensor  # scalar, with gradient
    parts: Mapping[str, Tensor]  # scalars, without


class Stage(Protocol):
    """One train stage.

    Attributes:
        name: As recipes call it.
        module: What is trained and saved.
        loss_names: The keys of ``LossParts.parts``, in order.
    """

    name: str
    module: nn.Module
    loss_names: tuple[str, ...]

    def groups(self) -> list[ParameterGroup]:
        """Returns the trained parameters with their rates."""
        ...

    def divisors(self, targets: Sequence[Segments]) -> Tensor:  # [n] float32, on the CPU
        """Returns what a micro-batch adds to the divisors of its step's losses."""
        ...

    def loss(self, model: nn.Module, batch: Batch, step: int, divisors: Tensor) -> LossParts:
        """Returns a micro-batch's part of the step's loss; the parts of all of them add up.

        Args:
            model: ``module``, or what wraps it.
            batch: The clips.
            step: Of the optimizer, from 0.
            divisors: Summed over all micro-batches of all ranks.
        """
        ...

    def evaluate(
        self, batches: Iterable[Batch], scores: FrameScores, world: World
    ) -> dict[str, float]:
        """Returns scores over the batches of all ranks, counted from ``scores`` on."""
        ...


def frame_targets(clip: Segments, extent: tuple[float, float] = (1.0, 1.0)) -> list[Targets]:
    """Returns the targets of each frame of a clip: absent segments keep their class there."""
    return [Targets(clip.classes, frame, extent) for frame in clip.masks.unbind(1)]
