"""What ``verify`` finds, and what would mend it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

from fcache.store.layout import Bucket

# From the other copy; from the identity and the journal; by doing without it, for the next extract
# writes it again; by giving up the commit, for the next extract makes the shard again.
Remedy = Literal["restore", "rewrite", "remove", "remake"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        path: The file.
        problem: What is wrong with it.
        bucket: The row group that must be made again, if that mends it.
        shard: Its number in the bucket.
        videos: Ids of the videos with frames in it.
        remedy: How ``--repair`` mends it; None if nothing in the cache can.
    """

    path: Path
    problem: str
    bucket: Bucket | None = None
    shard: int | None = None
    videos: tuple[str, ...] = ()
    remedy: Remedy | None = None

    @classmethod
    def of_shard(
        cls, path: Path, problem: str, bucket: Bucket, shard: int, videos: tuple[str, ...] = ()
    ) -> Self:
        """A finding that is mended by making a row group again."""
        return cls(path, problem, bucket, shard, videos, "remake")

    def to_json(self) -> dict[str, Any]:
        """A JSON object that ``from_json`` reads back."""
        bucket = self.bucket.name if self.bucket else None
        return {**asdict(self), "path": str(self.path), "bucket": bucket}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Reads ``to_json``."""
        bucket = Bucket.parse(content["bucket"]) if content["bucket"] else None
        videos = tuple(content["videos"])
        return cls(**{**content, "path": Path(content["path"]), "bucket": bucket, "videos": videos})
