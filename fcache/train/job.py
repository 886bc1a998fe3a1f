"""A whole training run: opens what it needs, goes on where it stopped, and writes it all down."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

import fcache
from fcache.config import SegmenterConfig, TrainConfig
from fcache.data.features import Features
from fcache.data.footage import AnyView
from fcache.errors import ConfigError
from fcache.interrupt import interruptible
from fcache.report import Report
from fcache.train.build import build_segmenter, num_parameters, segmenter_stage
from fcache.train.checkpoint import MODEL, Checkpoints, Saved
from fcache.train.data import TrainData, train_loader, validation
from fcache.train.distributed import World, joined
from fcache.train.head import HEAD, HeadFacts
from fcache.train.initialise import initialise
from fcache.train.inputs import open_inputs
from fcache.train.lease import leased
from fcache.train.live import TrainedSegmenter
from fcache.train.log import RunLog
from fcache.train.loop import Loop, Progress
from fcache.train.methods import Told, methods_text, reproduce_text
from fcache.train.optimizer import MultiStep, make_optimizer
from fcache.train.run_folder import METHODS, REPRODUCE, RunFolder
from fcache.train.scores import BEST_BY
from fcache.train.segmenter import SegmenterStage
from fcache.train.source import Source, open_source
from fcache.train.step import TrainStep


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a finished run leaves.

    Attributes:
        run: Its folder.
        last: The checkpoint of the last step, validated.
        best: The one with the best score.
        metric: Which score that is.
    """

    run: Path
    last: Saved
    best: Saved
    metric: str

    def to_json(self) -> dict[str, Any]:
        """Returns it in JSON's types."""
        return {
            "run": str(self.run),
            "metric": self.metric,
            "steps": self.last.step,
            "metrics": dict(self.last.metrics or {}),
            "best_step": self.best.step,
            "best_metrics": dict(self.best.metrics or {}),
        }


def run_training(
    cache: str | Path | None,
    config: SegmenterConfig,
    run: Path,
    *,
    videos: str | Path | None = None,
    report: Report = lambda event: None,
    features: Callable[[AnyView], Features] | None = None,
) -> TrainResult:
    """Trains, or goes on training, in the folder ``run``.

    Under ``torchrun`` every rank calls this; rank 0 writes and reports.

    Args:
        cache: A cache's folder, or ``FOLDER@KEYPREFIX``; None without one.
        config: A resolved recipe.
        run: The run's folder.
        videos: A folder or a manifest, to run the backbone on in the loop.
        report: Told events: ``start``, ``step``, ``saved``, ``validated``, ``stopping``, ``note``.
        features: Where stage outputs of a view come from; by default where the recipe says.

    Raises:
        ConfigError: the cache lacks what the labels need, or the folder holds another run.
        SourceError: a video that is decoded in the loop is broken.
        WeightsError: ``init``, a checkpoint or a live backbone's weights are of another
            architecture, or the last are nowhere.
        NotFiniteError: a loss that is not a number; the last checkpoint stays.
        InterruptedJobError: Ctrl-C; the steps taken are saved.
        NoSpaceError: the disk is full; the last checkpoint stays.
    """
    with ExitStack() as stack:
        world = stack.enter_context(joined(config.device))
        data, config, chosen = open_inputs(cache, videos, config)
        source = Source(features) if features else open_source(config, data, world.device)
        folder = RunFolder(run)
        tell = report if world.is_main else _silent
        metric = BEST_BY[data.kind]
        checkpoints = Checkpoints(folder.checkpoints, metric)
        stage, notes = _stage(config, data, source, world, is_begun=checkpoints.last is not None)
        if world.is_main:
            stack.enter_context(folder.held())
            folder.begin(config, _facts(config, data, world))
            _write_texts(folder, config, data, stage, world)
            if data.cache is not None:
                views = sorted({data.view.key, data.val_view.key})
                missed = stack.enter_context(leased(data.cache, run, views))
                notes += [f"no lease in the cache: {missed}"] if missed else []
        world.agree()
        step = TrainStep(
            stage,
            make_optimizer(stage.groups()),
            MultiStep(config.milestones, config.gamma),
            clip_norm=config.clip_norm,
            amp=config.amp,
            world=world,
        )
        progress = _resume(checkpoints, step)
        world.agree()  # nobody prunes before everybody has read
        if world.is_main:
            checkpoints.sweep()
        tell(_started(config, data, stage, world, progress))
        for note in (*chosen, *notes):
            tell({"event": "note", "text": note})
        log = stack.enter_context(RunLog(run, progress.first_step)) if world.is_main else None
        loop = Loop(
            config,
            stage,
            step,
            checkpoints,
            partial(validation, data, config, world, source.features(data.val_view)),
            world=world,
            log=log,
            report=tell,
        )
        stop = stack.enter_context(interruptible(lambda: tell({"event": "stopping"})))
        loader = stack.enter_context(
            train_loader(data, config, world, source.features(data.view), progress.first_step)
        )
        loop.run(loader, progress, stop)
        world.agree()
        last, best = checkpoints.last, checkpoints.best
        assert last is not None
        return TrainResult(run, last, best or last, metric)


def _stage(
    config: SegmenterConfig, data: TrainData, source: Source, world: World, *, is_begun: bool
) -> tuple[SegmenterStage, list[str]]:
    """Returns the stage with its first weights, and what is to be said about them."""
    module = build_segmenter(config, data.view.layout, len(data.categories))
    if source.backbone is not None:
        module = TrainedSegmenter(module, source.backbone)
    notes = [f"left out: video '{video}': {reason}" for video, reason in data.quarantined]
    if config.init is not None and not is_begun:
        begun = initialise(module, config.init)
        if begun.fresh:
            notes.append(
                f"{len(begun.fresh)} tensors of init are for other categories and start afresh: "
                f"{', '.join(begun.fresh)}"
            )
        if begun.left_out:
            notes.append(
                f"{len(begun.left_out)} tensors of init belong to a part that this segmenter does "
                f"without: {', '.join(begun.left_out)}"
            )
        if begun.num_backbone:
            notes.append(
                f"{begun.num_backbone} tensors of init are its backbone's and are left out: the "
                "trained backbone starts from the weights of the view, with which the rest of "
                "init may not have been trained"
            )
    return segmenter_stage(config, module.to(world.device), data.categories), notes


def _resume(checkpoints: Checkpoints, step: TrainStep) -> Progress:
    saved = checkpoints.last
    if saved is None:
        return Progress(0, None)
    scaler = checkpoints.load(saved, step.stage.module, step.optimizer)
    step.scaler.load_state_dict(dict(scaler))
    return Progress(saved.step, saved)


def _facts(config: TrainConfig, data: TrainData, world: World) -> dict[str, Any]:
    return {
        "stage": "segmenter",
        "views": {"train": data.view.key, "val": data.val_view.key},
        "labels": data.kind,
        "categories": [category.name for category in data.categories],
        "parents": {} if config.init is None else {"init": _sha256(config.init)},
        data.where[0].lstrip("-"): data.where[1],
        "versions": _versions(),
        "ranks": world.size,
    }


def _write_texts(
    folder: RunFolder,
    config: SegmenterConfig,
    data: TrainData,
    stage: SegmenterStage,
    world: World,
) -> None:
    told = Told(
        identity=data.view.identity,
        data=data.labels.reader.origin,
        num_categories=len(data.categories),
        num_videos=len(data.videos),
        num_trained=num_parameters(stage.module),
        kind=data.kind,
        versions=_versions(),
        ranks=world.size,
    )
    head = HeadFacts(
        backbone=data.view.identity["backbone"],
        normalisation=data.view.identity["normalisation"],
        categories=data.categories,
    )
    folder.write_text(HEAD, head.to_text())
    folder.write_text(METHODS, methods_text(config, told))
    folder.write_text(REPRODUCE, reproduce_text(config, told, data.where), executable=True)


def _started(
    config: TrainConfig,
    data: TrainData,
    stage: SegmenterStage,
    world: World,
    progress: Progress,
) -> dict[str, Any]:
    return {
        "event": "start",
        "step": progress.first_step,
        "steps": config.steps,
        "batch": config.batch,
        "videos": len(data.videos),
        "val_frames": len(data.frames),
        "split_by": data.split_by,
        "targets": data.kind,
        "categories": len(data.categories),
        "parameters": num_parameters(stage.module),
        "views": {"train": data.view.key, "val": data.val_view.key},
        "device": str(world.device),
        "ranks": world.size,
    }


def _versions() -> dict[str, str]:
    return {
        "fcache": fcache.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _sha256(init: Path) -> str:
    path = init / MODEL if init.is_dir() else init
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ConfigError(
            f"init='{init}' cannot be read: {error.strerror}; expected the weights that the run "
            "starts, or started, from."
        ) from None


def _silent(event: dict[str, Any]) -> None:
    pass
