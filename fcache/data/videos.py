"""The videos that clips are drawn from: those with labels, and their labelled frames."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fcache.data.dataset import entries_of
from fcache.data.footage import Footage
from fcache.data.labels import LabelReader
from fcache.errors import ConfigError
from fcache.store.cache import View

LabelKind = Literal["panoptic", "semantic"]


@dataclass(frozen=True, slots=True, eq=False)
class ClipVideo:
    """A video with labels.

    Attributes:
        draws: Its crops, in a view of crops; else one.
        labelled: Of each of them, the positions of the frames with a label, in order.
        afresh: Makes the crop of an epoch, where every epoch has another. Frames are those of the
            first of ``draws``, which is what validation sees.
    """

    video_id: str
    draws: tuple[Footage, ...]
    labelled: tuple[Sequence[int], ...]
    afresh: Callable[[int], Footage] | None = None


def clip_videos(
    view: View,
    labels: LabelReader,
    kind: LabelKind,
    *,
    split: str | None = None,
    selection: Mapping[str, Any] | None = None,
) -> list[ClipVideo]:
    """Returns the videos of a split that have labels, sorted by id.

    Args:
        view: Where features lie.
        labels: Of its frames.
        kind: Which labels.
        split: All videos by default.
        selection: Only what was extracted under this frame selection; needed where a video is
            cached under several.

    Raises:
        ConfigError: there is no video of the split, none has a label, or a video is cached under
            several selections.
    """
    found: dict[str, list[Footage]] = {}
    splits = set()
    for entry in entries_of(view, selection):
        splits.add(entry.split)
        if split in (None, entry.split):
            found.setdefault(entry.video_id, []).append(view.catalogue.frames(*entry))
    if not found:
        known = ", ".join(sorted(name for name in splits if name))
        where = "" if split is None else f" of split '{split}'"
        raise ConfigError(
            f"view {view.key} has no complete video{where}; expected one of: "
            f"{known or 'none, since no split is known'}.",
            run=f"fcache ls '{view.folder.parent}' --videos",
        )
    videos = [labelled(video_id, found[video_id], labels, kind) for video_id in sorted(found)]
    usable = [video for video in videos if all(video.labelled)]
    if not usable:
        some = videos[0].draws[0]
        raise ConfigError(
            f"none of {len(videos)} cached videos has {kind} labels from {labels.origin}. Labels "
            f"join by video id and frame name; the cache has for example video '{some.video_id}', "
            f"frame '{some.names[0]}'.",
            run=f"fcache ls '{view.folder.parent}' --videos",
        )
    return usable


def labelled(
    video_id: str,
    draws: Sequence[Footage],
    labels: LabelReader,
    kind: LabelKind,
    afresh: Callable[[int], Footage] | None = None,
) -> ClipVideo:
    """Returns a video with the positions of its labelled frames.

    Args:
        video_id: As the manifest calls it.
        draws: Its crops, or its one full view.
        labels: Of its frames.
        kind: Which labels.
        afresh: Makes the crop of an epoch, where every epoch has another.
    """
    has = labels.has if kind == "semantic" else labels.has_panoptic
    draws = sorted(draws, key=lambda frames: frames.draw or 0)
    known: dict[str, bool] = {}
    places = []
    for frames in draws:
        for name in frames.names:
            if name not in known:
                known[name] = has(video_id, name, frames.split)
        places.append(tuple(i for i, name in enumerate(frames.names) if known[name]))
    return ClipVideo(video_id, tuple(draws), tuple(places), afresh)
