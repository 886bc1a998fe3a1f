"""Videos as clips are drawn from them: stored in a cache, or still to be decoded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from fcache.store.layout import Bucket, ViewLayout


class Footage(Protocol):
    """The selected frames of a video, on one canvas."""

    @property
    def video_id(self) -> str:
        """As the manifest calls it."""

    @property
    def split(self) -> str | None:
        """Which part of the data set it is of, where that is known."""

    @property
    def names(self) -> Sequence[str]:
        """Frame names in order, which labels join by."""

    @property
    def bucket(self) -> Bucket:
        """The canvas."""

    @property
    def placement(self) -> Mapping[str, int | bool]:
        """How a frame lies on the canvas, pixels."""

    @property
    def draw(self) -> int | None:
        """Which crop of the video; None for a full view."""

    @property
    def valid(self) -> tuple[int, int]:
        """Height and width of the canvas that the frame covers, pixels."""


class AnyView(Protocol):
    """A backbone under one geometry: a view of a cache, or one that is computed in the loop."""

    @property
    def key(self) -> str:
        """Names it."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """Everything that decides the values."""

    @property
    def layout(self) -> ViewLayout:
        """The shapes of its stage outputs."""
