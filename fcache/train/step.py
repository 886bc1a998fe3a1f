"""One step of the optimizer: the losses of all micro-batches, gradients, clipping, the update.

Imports no config and no cache, so that it runs wherever the models do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fcache.errors import FcacheError
from fcache.train.distributed import World
from fcache.train.optimizer import MultiStep
from fcache.train.stage import Batch, LossParts, ReadBatch, Stage

AMP_TYPES = {"none": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
BAD_FEATURES = ", whose stage outputs are not finite"


class NotFiniteError(FcacheError):
    """A loss or a gradient that is not a number; the parameters are those of the step before."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What happened in a step, the same on every rank."""

    losses: dict[str, float]  # ``loss`` is their weighted sum
    lr: float
    grad_norm: float  # before clipping; infinite where float16 overflowed and the step was skipped
    stopped: bool  # whether any rank was asked to stop


class TrainStep:
    """Runs steps of one stage.

    Args:
        stage: What is trained.
        optimizer: Over ``stage.groups()``.
        schedule: Sets the rates.
        clip_norm: Largest norm of the whole gradient; 0 does not clip.
        amp: ``none``, ``bfloat16`` or ``float16``; float16 scales its losses.
        world: The ranks; this one's device is where the module lies.
    """

    def __init__(
        self,
        stage: Stage,
        optimizer: torch.optim.Optimizer,
        schedule: MultiStep,
        *,
        clip_norm: float = 0.0,
        amp: str = "none",
        world: World | None = None,
    ) -> None:
        self.stage = stage
        self.optimizer = optimizer
        self.schedule = schedule
        self.clip_norm = clip_norm
        self.world = world or World()
        self.amp = AMP_TYPES[amp]
        self.scaler = torch.amp.GradScaler(
            self.world.device.type, enabled=self.amp == torch.float16
        )
        self.model: nn.Module = self.world.wrap(stage.module)
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def __call__(
        self, step: int, batches: Sequence[ReadBatch], *, stop: bool = False
    ) -> StepResult:
        """Takes one step on this rank's micro-batches.

        Args:
            step: From 0.
            batches: Equally many on every rank.
            stop: Whether this rank was asked to stop.

        Raises:
            NotFiniteError: on every rank, naming step and clip.
        """
        self.stage.module.train()
        lr = self.schedule.apply(self.optimizer, step)
        self.optimizer.zero_grad(set_to_none=True)
        divisors = self.world.sum(
            torch.stack([self.stage.divisors(b.targets) for b in batches]).sum(0)
        )
        sums = torch.zeros(len(self.stage.loss_names) + 2, device=self.world.device)
        sums[-1] = float(stop)
        failed = ""
        for index, read in enumerate(batches):
            batch = read.to(self.world.device)
            loss = self._backward(batch, step, divisors, last=index == len(batches) - 1)
            told = [loss.parts[name].detach() for name in self.stage.loss_names]
            sums[:-1] += torch.stack([loss.total.detach(), *told])
            if not failed and not bool(torch.isfinite(loss.total)):
                failed = _names(batch)
        total, *parts, stopped = self.world.sum(sums).tolist()
        if not all(map(_is_finite, (total, *parts))):
            self._refuse(step, f"loss is {total}", failed)
        norm = self._update(step)
        losses = dict(zip(("loss", *self.stage.loss_names), (total, *parts), strict=True))
        return StepResult(losses, lr, norm, bool(stopped))

    def _backward(self, batch: Batch, step: int, divisors: Tensor, *, last: bool) -> LossParts:
        kind = self.world.device.type
        with self.world.accumulating(self.model, last=last):
            with torch.autocast(kind, self.amp, enabled=self.amp is not None):
                loss = self.stage.loss(self.model, batch, step, divisors)
            # Gradients are averaged over ranks, and each rank's loss is a part of one sum.
            self.scaler.scale(loss.total * self.world.size).backward()
        return loss

    def _update(self, step: int) -> float:
        self.scaler.unscale_(self.optimizer)
        limit = self.clip_norm or float("inf")
        norm = float(nn.utils.clip_grad_norm_(self.parameters, limit))
        if not (_is_finite(norm) or self.scaler.is_enabled()):
            self._refuse(step, f"norm of the gradient is {norm}", "")
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return norm

    def _refuse(self, step: int, what: str, failed: str) -> None:
        """Raises the same error on every rank."""
        told = [clips for clips in self.world.gather(failed) if clips]
        # Synced norms spread what is not finite; the clips that brought it in are the ones to name.
        clips = "; ".join([clips for clips in told if clips.endswith(BAD_FEATURES)] or told)
        raise NotFiniteError(
            f"step {step}: the {what}{f', from {clips}' if clips else ''}; training stopped before "
            "the update. Expected finite numbers: a smaller lr, amp=bfloat16 or amp=none may give "
            "them."
        )


def _names(batch: Batch) -> str:
    """Names the images of a micro-batch, and says whether their features are at fault."""
    bad = [
        name
        for index, name in enumerate(batch.names)
        if not all(bool(torch.isfinite(stage[index]).all()) for stage in batch.stages)
    ]
    if bad:
        return f"{', '.join(bad)}{BAD_FEATURES}"
    return ", ".join(batch.names)


def _is_finite(value: float) -> bool:
    return value - value == 0
