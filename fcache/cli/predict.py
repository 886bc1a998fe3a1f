"""``fcache predict``."""

from __future__ import annotations

from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fcache.cli.output import Progress, emit_json, emit_lines, human_seconds
from fcache.errors import QUARANTINED_EXIT_CODE, ConfigError

if TYPE_CHECKING:
    from fcache.config import PredictConfig
    from fcache.predict.inputs import PredictInputs
    from fcache.predict.plan import PredictPlan
    from fcache.report import Report

EXTRACT = "extract."  # before the settings of how videos are seen


def predict(
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Where maps go; of several runs, a folder each.")
    ],
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN... [VIDEOS]... [KEY=VALUE]...",
            help="Runs' folders, or weights that 'fcache weights import' wrote: several read the "
            "frames once. Without --cache: videos, folders or a manifest, seen as "
            "extract.KEY=VALUE says. Then settings, such as window=8 or checkpoint=last.",
        ),
    ] = None,
    cache: Annotated[
        str | None,
        typer.Option("--cache", metavar="CACHE[@KEY]", help="A full view of the videos."),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option("--split", help="Only this one, or 'all'; default: val where there is one."),
    ] = None,
    form: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="vipseg|vspw|coco",
            help="The layout; default: vipseg, for a run on semantic labels vspw.",
        ),
    ] = None,
    videos: Annotated[
        str | None, typer.Option("--videos", metavar="A,B", help="Only these videos.")
    ] = None,
    max_frames: Annotated[
        int | None, typer.Option("--max-frames", help="Only the first N frames of a video.")
    ] = None,
    zipped: Annotated[bool, typer.Option("--zip", help="Write submission.zip too.")] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Say what would be predicted.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Write panoptic or semantic maps of whole videos, in the layouts of the official evaluators.

    Resumes: run the same command again after anything that happened.
    """
    from fcache.config import PredictConfig, resolve, split_overrides
    from fcache.predict.job import run_prediction
    from fcache.predict.plan import plan_prediction

    plain, overrides = split_overrides(words or [])
    options = {
        "split": split,
        "format": form,
        "max_frames": None if max_frames is None else str(max_frames),
        "zip": "true" if zipped else None,
    }
    overrides |= {key: value for key, value in options.items() if value is not None}
    seen = [key for key in overrides if key.startswith(EXTRACT)]
    extract = {key.removeprefix(EXTRACT): overrides.pop(key) for key in seen}
    lists = {key: overrides.pop(key, None) for key in ("heads", "videos")}
    lists["videos"] = videos or lists["videos"]
    named = {key: _listed(key, text) for key, text in lists.items() if text is not None}
    config = resolve(PredictConfig, named, overrides)
    heads, sources = _heads_first(plain, config.heads, is_cached=cache is not None)
    inputs = _inputs(cache, heads, sources, extract, config)
    planned = plan_prediction(heads, inputs, out, config)
    if plan:
        _show_plan(planned, as_json=as_json)
        return
    total = sum(one.num_reads for one, _ in planned.todo())
    with Progress("predict", total) as progress:
        results = run_prediction(planned, report=_reporter(progress))
    if as_json:
        lost = [{"video": video, "reason": reason} for video, reason in inputs.lost]
        emit_json(
            "predict", {"heads": [result.to_json() for result in results], "quarantined": lost}
        )
    for result in results if not as_json else []:
        print(
            f"{result.out}: {result.num_videos:,} videos, {result.num_frames:,} frames as "
            f"{result.format}, from {result.head}"
        )
    if inputs.lost:
        raise typer.Exit(QUARANTINED_EXIT_CODE)


def _heads_first(
    plain: list[str], more: tuple[str, ...], *, is_cached: bool
) -> tuple[list[Path], list[str]]:
    """Divides words into heads and, without a cache, the videos behind them."""
    from fcache.predict.heads import is_head

    if is_cached:
        return [Path(word) for word in plain], []
    heads = list(takewhile(lambda word: is_head(Path(word)), plain))
    sources = plain[len(heads) :]
    if not heads and not more and sources:
        raise ConfigError(f"'{sources[0]}' is no run; expected a run's folder before videos.")
    if not sources:
        raise ConfigError(
            "nothing says what is predicted; expected --cache CACHE, or videos after the run."
        )
    return [Path(word) for word in heads], sources


def _inputs(
    cache: str | None,
    heads: list[Path],
    sources: list[str],
    extract: dict[str, str],
    config: PredictConfig,
) -> PredictInputs:
    if cache is None:
        from fcache.predict.footage import live_settings_of, open_footage

        every = [*heads, *map(Path, config.heads)]
        return open_footage(sources, live_settings_of(every, extract), config)
    from fcache.predict.inputs import open_cached

    if extract:
        raise ConfigError("extract.* says how videos are seen; it has no meaning with --cache.")
    return open_cached(cache, config)


def _listed(key: str, text: str) -> list[str]:
    names = [name for name in text.split(",") if name]
    if not names:
        raise ConfigError(f"{key}={text} names nothing; expected names with commas between.")
    return names


def _reporter(progress: Progress) -> Report:
    def report(event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "start":
            progress.start()
            progress.note(event, _started(event))
        elif kind == "frames":
            progress.advance(event["frames"])
        elif kind == "video":
            seconds = human_seconds(event["seconds"])
            progress.note(event, f"video '{event['video']}': {event['frames']:,} frames, {seconds}")
        elif kind == "note":
            progress.note(event, event["text"])
        elif kind == "stopping":
            text = "stopping; the video at hand is given up, those before it stay"
            progress.note(event, text)

    return report


def _started(event: dict[str, Any]) -> str:
    from fcache.ops.library import kernel_use

    done = event["videos"] - event["videos_todo"]
    there = f", {done:,} are there" if done else ""
    return (
        f"{event['videos']:,} videos ({event['chosen_by']}{there}), {event['frames_todo']:,} "
        f"frames to predict with {len(event['heads'])} heads on {event['device']}\n"
        f"deformable attention on {kernel_use(event['device'].partition(':')[0])}"
    )


def _show_plan(planned: PredictPlan, *, as_json: bool) -> None:
    found = planned.to_json()
    if as_json:
        emit_json("predict.plan", {**found, "settings": planned.config.model_dump(mode="json")})
        return
    twice = found["frames_read"] - found["frames_todo"]
    emit_lines(
        [
            ("view", f"{found['view']}  {found['backbone']}"),
            ("videos", f"{found['videos']:,} ({found['chosen_by']})"),
            ("to predict", f"{found['videos_todo']:,} videos, {found['frames_todo']:,} frames"),
            *((f"without {video}", reason) for video, reason in found["quarantined"]),
            ("twice", f"{twice:,} frames, whose masks held_bytes= does not hold"),
            ("device", found["device"]),
        ]
    )
    for one in found["heads"]:
        step = "" if one["step"] is None else f" of step {one['step']:,}"
        print(
            f"{one['head']}{step}, {one['categories']} categories: {one['format']} in {one['out']}"
        )
        for note in one["notes"]:
            print(f"  {note}")
    print("nothing was written. Remove --plan to start.")
