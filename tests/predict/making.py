"""Small predictions of tiny heads on rendered scenes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fcache.config import PredictConfig
from fcache.predict.inputs import open_cached
from fcache.predict.job import HeadResult, run_prediction
from fcache.predict.plan import plan_prediction

Events = list[dict[str, Any]]


def predict(
    heads: Path | list[Path],
    cache: Path | str,
    out: Path,
    *,
    report: Callable[[dict[str, Any]], None] = lambda event: None,
    **settings: Any,
) -> list[HeadResult]:
    """Runs a whole prediction in this process."""
    config = PredictConfig.model_validate({"device": "cpu", "num_readers": 1, **settings})
    paths = heads if isinstance(heads, list) else [heads]
    plan = plan_prediction(paths, open_cached(cache, config), out, config)
    return run_prediction(plan, report=report)


def files(out: Path) -> dict[str, bytes]:
    """What predictions hold, less where they come from."""
    paths = sorted(path for path in out.rglob("*") if path.is_file())
    named = {path.relative_to(out).as_posix(): path for path in paths}
    return {
        name: path.read_bytes()
        for name, path in named.items()
        if path.name not in {".lock", "about.json"}
    }
