"""``fcache probe``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from fcache.cli.output import Progress, beside, emit_json, emit_table


def probe(
    cache: Annotated[str, typer.Argument(metavar="CACHE[@KEY]")],
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="labels=DIR (or a manifest), train_split=, val_split=, steps=, lr=, seed= ...",
        ),
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option("--picture", help="The overlay picture; default: beside the cache."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train a linear head on the four stages: are these features any good?

    Prints the mIoU on the validation split and draws frame, truth, prediction and error.
    """
    from fcache.cache import open_cache
    from fcache.config import ProbeConfig, load_recipe, read_overrides, resolve
    from fcache.errors import ConfigError
    from fcache.train.probe_run import run_probe
    from fcache.viz.overlay import Comparison, comparison_sheet

    overrides = read_overrides(words or [])
    recipe = load_recipe(overrides.pop("recipe", "") or "probe")
    config = resolve(ProbeConfig, recipe, overrides)
    opened = open_cache(cache)
    view = opened.view()
    path = picture or beside(opened.path, ".probe.png")
    if not path.parent.is_dir():
        raise ConfigError(f"--picture '{path}' lies in no folder; expected one that exists.")
    with Progress("probe", config.steps, "steps") as progress:
        result = run_probe(view, config, progress.move)
    comparisons = [Comparison(p.frame, p.truth, p.prediction, p.name) for p in result.pictures]
    comparison_sheet(comparisons, result.categories).save(path, format="PNG")
    if as_json:
        emit_json("probe", {**result.to_json(), "picture": path})
        return
    rows = [
        (category.name, "-" if math.isnan(iou) else f"{iou:.3f}")
        for category, iou in zip(result.categories, result.iou, strict=True)
    ]
    emit_table(("CLASS", "IOU"), rows)
    print(
        f"mIoU {result.miou:.3f} on {result.num_val} frames, trained on {result.num_train} "
        f"(class prior alone: {result.prior_miou:.3f}; {result.split_by})"
    )
    print(f"picture {path}")
