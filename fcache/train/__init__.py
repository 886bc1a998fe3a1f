"""Training from the cache: loops, losses, and the linear probe.

``fcache.train(...)`` trains a stage: the package is a function too.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from fcache.report import Report

if TYPE_CHECKING:
    from fcache.train.job import TrainResult


def train(
    cache: str | Path | None,
    recipe: str | Path = "segmenter_vipseg",
    *,
    videos: str | Path | None = None,
    run: str | Path | None = None,
    report: Report = lambda event: None,
    **overrides: object,
) -> TrainResult:
    """Trains a stage from a cache; the same call after a stop goes on where it stopped.

    Args:
        cache: A cache's folder, or ``FOLDER@KEYPREFIX`` for one of several views; None to train
            without one.
        recipe: A shipped recipe's name, or the path of one.
        videos: A folder or a manifest to run the backbone on in the loop, with ``source="live"``.
        run: The run's folder; ``runs/<recipe's name>`` by default.
        report: Told every step and event, as a dict with the key ``event``.
        overrides: Settings of the recipe, such as ``steps=1000`` or ``extract={"model": ...}``.

    Returns:
        Where the checkpoints lie, and their scores.

    Raises:
        FcacheError: what ``fcache.train.job.run_training`` tells of.
    """
    from fcache.train.job import run_training
    from fcache.train.recipe import read_config

    config = read_config(recipe, values=overrides, videos=videos)
    folder = Path("runs") / Path(recipe).stem if run is None else Path(run)
    return run_training(cache, config, folder, videos=videos, report=report)


class _CallablePackage(ModuleType):
    # Importing this package makes it the attribute ``train`` of ``fcache``, in place of whatever
    # fcache would export under that name; so the package itself is what can be called.
    def __call__(self, *args: Any, **options: Any) -> TrainResult:  # noqa: ANN401 - those of train
        return train(*args, **options)


sys.modules[__name__].__class__ = _CallablePackage
