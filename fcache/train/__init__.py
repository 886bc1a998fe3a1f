"""Training from the cache: loops, losses, and the linear probe.

``fcache.train(...)`` trains a stage: the package is a function too.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fcache.train.job import TrainResult


def train(
    cache: str | Path,
    recipe: str | Path = "segmenter_vipseg",
    *,
    run: str | Path | None = None,
    report: Callable[[dict[str, Any]], None] = lambda event: None,
    **overrides: object,
) -> TrainResult:
    """Trains a stage from a cache; the same call after a stop goes on where it stopped.

    Args:
        cache: A cache's folder, or ``FOLDER@KEYPREFIX`` for one of several views.
        recipe: A shipped recipe's name, or the path of one.
        run: The run's folder; ``runs/<recipe's name>`` by default.
        report: Told every step and event, as a dict with the key ``event``.
        overrides: Settings of the recipe, such as ``steps=1000``.

    Returns:
        Where the checkpoints lie, and their scores.

    Raises:
        FcacheError: what ``fcache.train.job.run_training`` tells of.
    """
    from fcache.train.job import run_training
    from fcache.train.recipe import read_config

    config = read_config(recipe, values=overrides)
    folder = Path("runs") / Path(recipe).stem if run is None else Path(run)
    return run_training(cache, config, folder, report=report)


class _CallablePackage(ModuleType):
    # Importing this package makes it the attribute ``train`` of ``fcache``, in place of whatever
    # fcache would export under that name; so the package itself is what can be called.
    def __call__(self, *args: Any, **options: Any) -> TrainResult:  # noqa: ANN401 - those of train
        return train(*args, **options)


sys.modules[__name__].__class__ = _CallablePackage
