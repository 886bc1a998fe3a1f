"""What the commit records of a view tell: what its stored type costs, where the time went.

numpy only, so that a command that reads commit records needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fcache.extract.precision import describe_errors, merge_errors
from fcache.store.cache import View

Stats = Sequence[Mapping[str, Any]]  # of each row group, as ``store.inspect.commit_stats`` has it


def stored_errors(view: View, stats: Stats) -> list[dict[str, float]]:
    """Returns for each stage how far stored values are from what they stand for.

    Of int8 that is what the network gave, of a copy what its source holds. Of other views there is
    nothing to tell. See ``precision.describe_errors``; the error weighed by channel scales is left
    out where there are none.
    """
    sums = [told["errors"] for told in stats if "errors" in told]
    if not sums:
        return []
    described = describe_errors(merge_errors([np.array(sums)]))
    copied = view.index.attributes["provenance"].get("copied_from", {})
    if "int8" not in {view.identity["dtype"], copied.get("dtype")}:
        for stage in described:
            del stage["bulk_relative_l2"]
    return described


def spent_seconds(stats: Stats, share: float = 1.0) -> dict[str, float]:
    """Returns the seconds that those who wrote the view spent on what, all together.

    Args:
        stats: What row groups of the view tell.
        share: Which share of all row groups these are; the others are taken to be alike.
    """
    total: dict[str, float] = {}
    for told in stats:
        for name, seconds in told.get("seconds", {}).items():
            total[name] = total.get(name, 0.0) + seconds
    return {name: round(seconds / share, 3) for name, seconds in total.items()}
