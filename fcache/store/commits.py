"""The last commits of a view, found without parsing the others."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from fcache.store.layout import Bucket
from fcache.store.part_tables import TIMES
from fcache.store.tables import Tables


@dataclass(frozen=True, slots=True)
class Commit:
    """What a commit record says beside its arrays: see ``records.Part``."""

    bucket: Bucket
    provenance: dict[str, Any]
    stats: dict[str, Any]


def last_commits(tables: Tables, count: int) -> list[Commit]:
    """Returns the last commits, at most so many, the latest last."""
    shards = tables.shards
    array, _ = shards.encoded("array")
    rows = np.flatnonzero((array == 0) & np.asarray(shards["committed_s"].is_valid()))
    rows = rows[np.argsort(shards.array("committed_s")[rows], kind="stable")][-count:]
    names = ("bucket", "provenance", "stats", *TIMES)
    columns = (shards[name].take(rows).to_pylist() for name in names)
    found = []
    for bucket, provenance, stats, *times in zip(*columns, strict=True):
        told = {name: one for name, one in zip(TIMES, times, strict=True) if one is not None}
        made = {**json.loads(provenance), **told}
        found.append(Commit(Bucket.parse(bucket), made, json.loads(stats)))
    return found
