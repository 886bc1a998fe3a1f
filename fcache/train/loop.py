"""The loop of every train stage: steps, checkpoints, validation, and what is told meanwhile."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from fcache.config import TrainConfig
from fcache.errors import InterruptedJobError
from fcache.interrupt import StopRequest
from fcache.report import Report
from fcache.train.checkpoint import Checkpoints, Saved
from fcache.train.distributed import World
from fcache.train.log import RunLog
from fcache.train.stage import Batch, FrameScores, ReadBatch, Stage
from fcache.train.step import StepResult, TrainStep


class Step(Protocol):
    """What a rank reads of a step."""

    @property
    def step(self) -> int:
        """From 0."""

    @property
    def micro_batches(self) -> tuple[ReadBatch, ...]:
        """This rank's."""

    @property
    def waited_s(self) -> float:
        """How long the loop waited for it, seconds."""


Validation = Callable[[], AbstractContextManager[tuple[Iterable[Batch], FrameScores]]]
"""Opens this rank's part of the validation frames, and counts to begin with."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run goes on."""

    first_step: int
    saved: Saved | None


class Loop:
    """Trains one stage.

    Args:
        config: When to log, to save, to validate, and to end.
        stage: What is trained.
        step: Takes the steps.
        checkpoints: Where to save; rank 0 does.
        validation: The frames to score on.
        world: The ranks.
        log: Of rank 0.
        report: Told every step and every event, on rank 0.
    """

    def __init__(
        self,
        config: TrainConfig,
        stage: Stage,
        step: TrainStep,
        checkpoints: Checkpoints,
        validation: Validation,
        *,
        world: World,
        log: RunLog | None,
        report: Report,
    ) -> None:
        self.config = config
        self.stage = stage
        self.step = step
        self.checkpoints = checkpoints
        self.validation = validation
        self.world = world
        self.log = log
        self.report = report

    def run(self, steps: Iterable[Step], progress: Progress, stop: StopRequest) -> Saved:
        """Trains to the last step; returns the last checkpoint.

        Raises:
            InterruptedJobError: somebody asked to stop; the steps taken are saved.
            NotFiniteError: a loss or gradient; the last checkpoint stays.
            NoSpaceError: the disk is full; the last checkpoint stays.
        """
        saved = progress.saved
        if saved is not None and saved.metrics is None and self._validates(saved.step):
            saved = self._validated(saved)
        window = _Window()
        began = time.perf_counter()
        for batch in steps:
            result = self.step(batch.step, batch.micro_batches, stop=stop.asked)
            done = batch.step + 1
            seconds, began = time.perf_counter() - began, time.perf_counter()
            window.add(result, seconds, batch.waited_s)
            self._tell(done, result, seconds, batch.waited_s)
            ends = done == self.config.steps
            if done % self.config.log_every == 0 or ends or result.stopped:
                self._write("train", done, window.means())
                window = _Window()
            if result.stopped and not ends:
                self._save(done)
                raise InterruptedJobError(
                    f"stopped after step {done} of {self.config.steps}; it is saved in "
                    f"'{self.checkpoints.folder}'. The same command goes on."
                )
            if self._validates(done):
                saved = self._validated(self._save(done))
            elif done % self.config.save_every == 0:
                saved = self._save(done)
            else:
                continue
            began = time.perf_counter()
        assert saved is not None
        return saved

    def _validates(self, done: int) -> bool:
        every = self.config.val_every
        return done == self.config.steps or (every is not None and done % every == 0)

    def _save(self, done: int) -> Saved:
        module, optimizer = self.stage.module, self.step.optimizer
        saved = Saved(self.checkpoints.folder, done, None)
        if self.world.is_main:
            saved = self.checkpoints.save(done, module, optimizer, self.step.scaler.state_dict())
            self.report({"event": "saved", "step": done, "folder": str(saved.folder)})
        self.world.agree()
        return saved

    def _validated(self, saved: Saved) -> Saved:
        began = time.perf_counter()
        with self.validation() as (batches, scores):
            metrics = self.stage.evaluate(batches, scores, self.world)
        if self.world.is_main:
            saved = self.checkpoints.record(saved, metrics)
            self._write("val", saved.step, metrics)
            self.report(
                {
                    "event": "validated",
                    "step": saved.step,
                    "seconds": time.perf_counter() - began,
                    **metrics,
                }
            )
        self.world.agree()
        return saved

    def _tell(self, done: int, result: StepResult, seconds: float, waited_s: float) -> None:
        if self.world.is_main:
            self.report(
                {
                    "event": "step",
                    "step": done,
                    "steps": self.config.steps,
                    "seconds": seconds,
                    "waited_s": waited_s,
                    "lr": result.lr,
                    "grad_norm": result.grad_norm,
                    **result.losses,
                }
            )

    def _write(self, kind: str, step: int, numbers: Mapping[str, float]) -> None:
        if self.log is not None:
            self.log.write(kind, step, numbers)


class _Window:
    """Means over the steps since the last line of the log."""

    def __init__(self) -> None:
        self.count = 0
        self.sums: dict[str, float] = {}
        self.lr = math.nan

    def add(self, result: StepResult, seconds: float, waited_s: float) -> None:
        told = {**result.losses, "grad_norm": result.grad_norm}
        for name, value in {**told, "seconds": seconds, "waited_s": waited_s}.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.count += 1
        self.lr = result.lr

    def means(self) -> dict[str, float]:
        return {"lr": self.lr, **{name: total / self.count for name, total in self.sums.items()}}
