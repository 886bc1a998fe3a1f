"""A torch data set of clips out of a view, for a head of one's own."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from fcache.data.canvas import label_on_canvas
from fcache.data.labels import LabelReader
from fcache.errors import ConfigError
from fcache.store.cache import VideoFrames, View
from fcache.store.frames import Entry
from fcache.store.reader import OpenFiles


class ClipDataset(Dataset[dict[str, Any]]):
    """Clips of consecutive frames, with labels where asked for.

    A video of T frames gives ``T // clip_frames`` clips that do not overlap; in a view of crops,
    each crop of it does. With labels, a clip counts if each of its frames has one. Clips of
    different videos or crops may differ in size, so a batch of several needs a sampler that keeps
    to one ``bucket``.

    Args:
        view: Where features lie.
        clip_frames: T, frames of a clip.
        stages: Which stage outputs.
        split: Only the videos of a split.
        labels: A folder of masks or a manifest (see ``LabelReader.open``), or a reader of them.
        selection: Only what was extracted under this frame selection, such as ``{"fps": 5.0}``
            (``{}`` for every frame); needed where a video is cached under several.
        draw: Only this crop of each video, in a view of crops.

    Raises:
        ConfigError: nothing is left to draw from, a video is cached under several selections, or
            there is no such crop.
    """

    def __init__(
        self,
        view: View,
        *,
        clip_frames: int = 1,
        stages: tuple[int, ...] = (0, 1, 2, 3),
        split: str | None = None,
        labels: str | Path | LabelReader | None = None,
        selection: Mapping[str, Any] | None = None,
        draw: int | None = None,
    ) -> None:
        if clip_frames < 1:
            raise ValueError(f"clip_frames={clip_frames}; expected at least 1")
        self.view = view
        self.stages = stages
        self.clip_frames = clip_frames
        held = entries_of(view, selection, draw)
        ids = list(dict.fromkeys(one.video_id for one in held))
        splits = sorted({one.split for one in held if one.split})
        held = [one for one in held if split in (None, one.split)]
        if split is not None and not held:
            raise ConfigError(
                f"view {view.key} has no complete video of split '{split}'; expected one of: "
                f"{', '.join(splits) or 'none, since no split is known'}."
            )
        videos = [view.catalogue.frames(*one) for one in held]
        self.labels = (
            labels
            if labels is None or isinstance(labels, LabelReader)
            else LabelReader.open(labels, video_ids=ids)
        )
        self.clips = [
            (video, first)
            for video in videos
            for first in range(0, len(video) - clip_frames + 1, clip_frames)
            if self._is_labelled(video, first)
        ]
        if not self.clips:
            raise ConfigError(
                self._nothing(videos, split), run=f"fcache ls '{view.folder.parent}' --videos"
            )

    def __getstate__(self) -> dict[str, Any]:
        # A view holds open files and a lock, which no other process can use.
        return {**self.__dict__, "view": self.view.folder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({**state, "view": View(state["view"], OpenFiles())})

    def only(self, wanted: Callable[[VideoFrames], bool]) -> ClipDataset:
        """Returns this data set with the wanted videos alone; it may be empty."""
        part = copy.copy(self)
        part.clips = [clip for clip in self.clips if wanted(clip[0])]
        return part

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> dict[str, Any]:
        video, first = self.clips[index]
        frames = list(range(first, first + self.clip_frames))
        clip = self.view.read(video, frames, stages=self.stages)
        sample: dict[str, Any] = {
            "stages": [torch.from_numpy(clip.floats(stage)) for stage in range(len(clip.stages))],
            "pixels": torch.from_numpy(clip.pixels),
            "valid": clip.valid,
            "video": video.video_id,
            "frames": [video.names[frame] for frame in frames],
        }
        if video.item.draw is not None:
            sample["draw"] = video.item.draw
        if self.labels is not None:
            label = np.stack([self.label(video, frame) for frame in frames])
            sample["label"] = torch.from_numpy(label).long()
        return sample

    def label(self, video: VideoFrames, frame: int) -> np.ndarray:  # [H, W] uint8
        """Returns the label of a frame on its canvas, 255 where there is none.

        Raises:
            LabelError: it is missing, damaged, or contradicts the frame's shape.
        """
        assert self.labels is not None
        name = video.names[frame]
        label = self.labels.semantic(video.video_id, name, video.split)
        return label_on_canvas(label, video, f"label of '{video.video_id}' frame '{name}'")

    def _nothing(self, videos: list[VideoFrames], split: str | None) -> str:
        where = f" in split '{split}'" if split else ""
        if self.labels is None:
            longest = max((len(video) for video in videos), default=0)
            return (
                f"view {self.view.key} has no clip of {self.clip_frames} frames{where}; its "
                f"longest complete video has {longest}."
            )
        example = "no complete video"
        if videos:
            example = f"for example video '{videos[0].video_id}', frame '{videos[0].names[0]}'"
        return (
            f"view {self.view.key} has no clip of {self.clip_frames} frames{where} with labels "
            f"from {self.labels.origin}. Labels join by video id and frame name; the cache has "
            f"{example}."
        )

    def _is_labelled(self, video: VideoFrames, first: int) -> bool:
        labels = self.labels
        return labels is None or all(
            labels.has(video.video_id, video.names[frame], video.split)
            for frame in range(first, first + self.clip_frames)
        )


def entries_of(
    view: View, selection: Mapping[str, Any] | None = None, draw: int | None = None
) -> list[Entry]:
    """Returns the item of each complete video; in a view of crops one for each crop.

    Raises:
        ConfigError: a video is cached under several selections, and none is chosen; or there is no
            such crop.
    """
    held: list[Entry] = []
    first: dict[str, Mapping[str, Any]] = {}
    for one in view.catalogue.entries():
        found = one.item.selection
        if selection is not None and dict(found) != dict(selection):
            continue
        before = first.setdefault(one.video_id, found)
        if before != found:
            raise ConfigError(
                f"video '{one.video_id}' is cached under several selections; give "
                f"selection='{_inline(before)}' or '{_inline(found)}'."
            )
        held.append(one)
    if draw is None:
        return held
    draws = sorted({one.item.draw for one in held if one.item.draw is not None})
    if not draws:
        raise ConfigError(f"view {view.key} holds no crops; draw={draw} has no meaning there.")
    if draw not in draws:
        known = ", ".join(map(str, draws))
        raise ConfigError(f"view {view.key} holds no crop {draw}; expected one of: {known}.")
    return [one for one in held if one.item.draw == draw]


def _inline(selection: Mapping[str, Any]) -> str:
    """A selection as the command line takes it: a TOML inline table."""
    return "{" + ", ".join(f"{key}={json.dumps(value)}" for key, value in selection.items()) + "}"
