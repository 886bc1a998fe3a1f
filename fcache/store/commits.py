"""The last commits of a view, found without parsing the others."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from fcache.store.layout import Bucket
from fcache.store.tables import Tables

ARRAYS = 9  # of a bucket at most: four stages, their scales, pixels
_COMMITTED = r'"committed_s":(?P<committed_s>[0-9.]+)'


@dataclass(frozen=True, slots=True)
class Commit:
    """What a commit record says beside its arrays: see ``records.Part``."""

    bucket: Bucket
    provenance: dict[str, Any]
    stats: dict[str, Any]


def last_commits(tables: Tables, count: int) -> list[Commit]:
    """Returns the last commits, at most so many, the latest last."""
    table = tables.shards.select(["bucket", "provenance", "stats"])
    found = pc.extract_regex(table["provenance"], _COMMITTED)
    times = pc.cast(pc.struct_field(found, "committed_s"), pa.float64())
    order = pc.array_sort_indices(times, order="descending", null_placement="at_end")
    latest = table.take(order.slice(0, count * ARRAYS)).to_pylist()
    rows = {(row["bucket"], row["provenance"]): row for row in latest}  # one row an array
    commits = [
        Commit(Bucket.parse(row["bucket"]), json.loads(row["provenance"]), json.loads(row["stats"]))
        for row in rows.values()
    ]
    return commits[:count][::-1]
