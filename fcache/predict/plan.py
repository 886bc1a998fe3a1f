"""What a prediction would do: heads, where their maps go, and which windows are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import fcache
from fcache.config import FREE_PREDICT_KEYS, PredictConfig
from fcache.errors import ConfigError
from fcache.predict.folder import PLACE, PROVENANCE, VIDEOS, PredictFolder
from fcache.predict.formats import FORMATS, Format
from fcache.predict.heads import Head, open_heads
from fcache.predict.inputs import PredictInputs
from fcache.predict.schedule import VideoSchedule, schedule
from fcache.store.identity import digest
from fcache.train.distributed import pick_device


@dataclass(frozen=True, slots=True)
class Prepared:
    """A head, and the folder of its predictions.

    Attributes:
        facts: What decides its maps, of each video too, and what it comes from.
    """

    head: Head
    folder: PredictFolder
    facts: dict[str, Any]


@dataclass(frozen=True, slots=True)
class PredictPlan:
    """A prediction that is ready to start.

    Attributes:
        prepared: The heads.
        device: Where they compute.
    """

    inputs: PredictInputs
    config: PredictConfig
    prepared: tuple[Prepared, ...]
    device: torch.device

    def todo(self) -> list[tuple[VideoSchedule, tuple[Prepared, ...]]]:
        """Returns the videos that lack for some head, with these heads."""
        found = []
        stride = self.inputs.view.layout.strides[-1]
        for video in self.inputs.videos:
            lacking = tuple(p for p in self.prepared if not p.folder.is_done(video.video_id))
            linked = [p.head.num_queries for p in lacking if p.folder.format.is_linked]
            if lacking:
                planned = schedule(
                    video,
                    num_queries=linked,
                    stride=stride,
                    window=self.config.window,
                    held_bytes=self.config.held_bytes,
                    max_frames=self.config.max_frames,
                )
                found.append((planned, lacking))
        return found

    def to_json(self) -> dict[str, Any]:
        """Returns it in JSON's types."""
        todo = [planned for planned, _ in self.todo()]
        return {
            "view": self.inputs.view.key,
            "backbone": self.inputs.view.identity["backbone"]["model"],
            "videos": len(self.inputs.videos),
            "chosen_by": self.inputs.chosen_by,
            "quarantined": [list(one) for one in self.inputs.lost],
            "videos_todo": len(todo),
            "frames_todo": sum(planned.num_frames for planned in todo),
            "frames_read": sum(planned.num_reads for planned in todo),
            "device": str(self.device),
            "heads": [
                {
                    "head": str(one.head.path),
                    "step": one.head.step,
                    "format": one.folder.format.name,
                    "out": str(one.folder.path),
                    "categories": len(one.head.categories),
                    "notes": list(one.head.notes),
                }
                for one in self.prepared
            ],
        }


def plan_prediction(
    heads: Sequence[Path], inputs: PredictInputs, out: Path, config: PredictConfig
) -> PredictPlan:
    """Loads the heads and looks at what is there; writes nothing.

    Args:
        heads: Runs' folders or files of imported weights; those of ``config`` come after them.
        inputs: What is predicted.
        out: Where; of several heads, a folder for each is made in it.
        config: Everything else.

    Raises:
        FcacheError: what ``open_heads`` tells of.
        ConfigError: other predictions lie there, or maps of two videos would lie in one place.
    """
    device = pick_device(config.device)
    loaded = open_heads([*heads, *map(Path, config.heads)], inputs.view, config, device)
    prepared = []
    for head in loaded:
        form = _format(head, config)
        folder = PredictFolder(out / head.name if len(loaded) > 1 else out, form)
        facts = _facts(head, folder, inputs, config)
        folder.check(facts)
        prepared.append(Prepared(head, folder, facts))
    return PredictPlan(inputs, config, tuple(prepared), device)


def _format(head: Head, config: PredictConfig) -> Format:
    name = config.format or ("vspw" if head.labels == "semantic" else "vipseg")
    form = FORMATS[name]
    if config.semantic != "queries" and form.is_panoptic:
        raise ConfigError(f"semantic={config.semantic} has no meaning with format={name}.")
    ids = [category.id for category in head.categories]
    if not form.is_panoptic and not 0 <= min(ids) <= max(ids) <= 255:
        raise ConfigError(
            f"format={name} writes category ids as bytes; those of '{head.path}' go from "
            f"{min(ids)} to {max(ids)}."
        )
    return form


def _facts(
    head: Head, folder: PredictFolder, inputs: PredictInputs, config: PredictConfig
) -> dict[str, Any]:
    videos = {}
    for video in inputs.videos:
        names = video.names[: config.max_frames]
        videos[video.video_id] = {
            "content": inputs.contents[video.video_id],
            "num_frames": len(names),
            "names_sha256": digest({"names": list(names)}),
            PLACE: folder.place(video.video_id, names),
        }
    settings = config.model_dump(mode="json", exclude=set(FREE_PREDICT_KEYS))
    return {
        "weights_sha256": head.sha256,
        "step": head.step,
        "view": inputs.view.key,
        "settings": settings | {"format": folder.format.name},
        "categories": [category.model_dump(mode="json") for category in head.categories],
        VIDEOS: videos,
        PROVENANCE: {
            "head": str(head.path.absolute()),
            "cache": None if inputs.cache is None else str(inputs.cache.absolute()),
            "fcache": fcache.__version__,
            "torch": torch.__version__,
        },
    }
