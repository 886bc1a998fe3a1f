"""``fcache train``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fcache.cli.output import Progress, emit_json, emit_lines
from fcache.errors import ConfigError, nearest

if TYPE_CHECKING:
    from fcache.config import SegmenterConfig
    from fcache.report import Report
    from fcache.train.plan import TrainPlan

RECIPES = {"segmenter": "segmenter_vipseg"}  # of a stage that is named without a recipe


def train(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="stage=segmenter, or recipe=NAME (or a file), and any of its settings.",
        ),
    ] = None,
    cache: Annotated[
        str | None, typer.Option("--cache", metavar="CACHE[@KEY]", help="What is trained on.")
    ] = None,
    videos: Annotated[
        str | None,
        typer.Option(
            "--videos",
            metavar="FOLDER|MANIFEST",
            help="Without a cache: what the backbone runs on in the loop, as extract.KEY=VALUE "
            "says; needs source=live or source=auto.",
        ),
    ] = None,
    run: Annotated[
        Path | None, typer.Option("--run", help="The run's folder; default: runs/RECIPE.")
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Say what would be trained.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train a stage on cached features, or with the backbone in the loop.

    source=live runs the backbone on a cache's stored pixels, or on --videos. It then trains too
    with backbone.trainable=true, if it is a pyramid.

    Resumes: run the same command again after anything that happened. Several GPUs or machines:
    torchrun --no-python -- fcache train ...
    """
    from fcache.config import read_overrides
    from fcache.train.job import run_training
    from fcache.train.plan import plan_training
    from fcache.train.recipe import read_config

    overrides = read_overrides(words or [])
    recipe = _recipe(overrides)
    config = read_config(recipe, overrides, videos=videos)
    if plan:
        _show_plan(plan_training(cache, config, videos=videos), config, as_json=as_json)
        return
    folder = run or Path("runs") / Path(recipe).stem
    with Progress("train", config.steps, "steps") as progress:
        result = run_training(
            cache, config, folder, videos=videos, report=_reporter(progress, config)
        )
    # Under torchrun every rank comes to here.
    if os.environ.get("RANK", "0") != "0":
        return
    if as_json:
        emit_json("train", result.to_json())
        return
    for what, saved in (("last", result.last), ("best", result.best)):
        print(f"{what}: step {saved.step:,}, {_numbers(saved.metrics or {})}")
    print(f"run {result.run}")


def _recipe(overrides: dict[str, str]) -> str:
    """Takes the recipe out of the overrides: the one that is named, or the stage's."""
    stage = overrides.get("stage")
    named = overrides.pop("recipe", "")
    if named:
        return named
    if stage is None:
        raise ConfigError(
            f"nothing says what is trained; expected stage= (one of: {', '.join(RECIPES)}) or "
            "recipe=.",
            run="fcache recipes",
        )
    if stage not in RECIPES:
        raise ConfigError(
            f"stage={stage} is none that trains here{nearest(stage, RECIPES)}; expected one of: "
            f"{', '.join(RECIPES)}.",
            run="fcache recipes",
        )
    return RECIPES[stage]


def _reporter(progress: Progress, config: SegmenterConfig) -> Report:
    def report(event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "start":
            progress.advance(event["step"])
            progress.start()
            progress.note(event, _started(event))
        elif kind == "step":
            progress.advance(1)
            if event["step"] % config.log_every == 0 or event["step"] == event["steps"]:
                progress.note(event, _step(event))
        elif kind == "validated":
            told = {key: event[key] for key in event if key not in {"event", "step", "seconds"}}
            progress.note(event, f"step {event['step']:,}: {_numbers(told)}")
        elif kind == "note":
            progress.note(event, event["text"])
        elif kind == "stopping":
            progress.note(event, "stopping after the step at hand; Ctrl-C again stops at once")

    return report


def _started(event: Mapping[str, Any]) -> str:
    from fcache.ops.library import kernel_use

    device = event["device"].partition(":")[0]
    first = f"goes on after step {event['step']:,}" if event["step"] else "begins"
    return (
        f"{first}: {event['parameters'] / 1e6:,.1f} M parameters, {event['videos']:,} videos, "
        f"{event['steps']:,} steps of {event['batch']} on {event['ranks']} x {event['device']}; "
        f"validates on {event['val_frames']:,} frames ({event['split_by']})\n"
        f"deformable attention on {kernel_use(device)}"
    )


def _step(event: Mapping[str, Any]) -> str:
    wait = event["waited_s"] / event["seconds"] if event["seconds"] else 0.0
    return (
        f"step {event['step']:,}: loss {event['loss']:.4g}, lr {event['lr']:.3g}, "
        f"{event['seconds']:.2f} s a step, {wait:.0%} of it waiting for data"
    )


def _numbers(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())


def _backbone(found: TrainPlan) -> str:
    frames = f"{found.live_frames:,} frames and {found.live_val_frames:,} to validate"
    if found.backbone_runs == "cached":
        return f"does not run; source=live would pass it {frames}"
    trains = "; it trains" if found.backbone_runs == "trained" else ""
    return f"runs in the loop: {frames}{trains}"


def _show_plan(found: TrainPlan, config: SegmenterConfig, *, as_json: bool) -> None:
    if as_json:
        recipe = config.model_dump(mode="json")
        emit_json("train.plan", {**found.to_json(), "recipe": recipe})
        return
    parts = ", ".join(f"{name} {count / 1e6:,.2f} M" for name, count in found.num_by_part.items())
    emit_lines(
        [
            ("view", f"{found.view}  {found.backbone}"),
            ("val view", found.val_view),
            ("backbone", _backbone(found)),
            ("labels", f"{found.targets}, {found.num_categories} categories"),
            ("trained", f"{found.num_trained / 1e6:,.2f} M parameters: {parts}"),
            ("videos", f"{found.num_videos:,}, each seen {found.epochs:,.1f} times"),
            ("validation", f"{found.num_val_frames:,} frames ({found.split_by})"),
            *((f"without {video}", reason) for video, reason in found.quarantined),
            *(("note", note) for note in found.notes),
        ]
    )
    for key, value in config.model_dump(mode="json", exclude_none=True).items():
        print(f"{key} = {value}")
    print("nothing was written. Remove --plan to start.")
