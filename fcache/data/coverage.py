"""Whether a cache holds what the labels of a split need, told before training starts."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from fcache.config import (
    BackboneSettings,
    ExtractConfig,
    Selection,
    ViewGeometry,
    load_recipe,
    resolve,
)
from fcache.data.labels import LabelReader
from fcache.errors import CoverageError
from fcache.manifest import Manifest, Video, manifest_names
from fcache.store.cache import View

MOST_NAMED = 5
# What decides which features are made, of which frames; the rest says how a job runs.
_SETTINGS = (
    *BackboneSettings.model_fields,
    *ViewGeometry.model_fields,
    *Selection.model_fields,
    "dtype",
    "crops",
    "reuse",
)


@dataclass(frozen=True, slots=True)
class Coverage:
    """How a view fits the videos of a split.

    Attributes:
        num_videos: Videos of the split that can be read, with every crop.
        missing: What the view lacks: ids of videos, ``ID crop K`` in a view of crops.
        quarantined: Videos that the extraction left out, and why.
    """

    num_videos: int
    missing: tuple[str, ...]
    quarantined: tuple[tuple[str, str], ...]


def check_coverage(
    view: View,
    labels: LabelReader,
    split: str | None = None,
    *,
    manifest: str | None = None,
    strict: bool = True,
) -> Coverage:
    """Compares what a view holds with the videos of a split.

    These are the videos that the labels' manifest lists, or those of the manifests that the view
    was built from where it lists none.

    Args:
        view: Where features lie.
        labels: A bare folder lists no videos.
        split: All videos by default.
        manifest: What the labels' manifest is called on a command line.
        strict: Whether missing videos are an error.

    Raises:
        CoverageError: the view lacks videos or crops; names them, and the command that adds them.
    """
    wanted = _wanted(view, labels, split)
    held: dict[str, set[int | None]] = {}
    for entry in view.catalogue.entries():
        held.setdefault(entry.video_id, set()).add(entry.item.draw)
    draws = set().union(*held.values())
    lost = view.state.outcomes.quarantined
    quarantined = {one.video_id: one.reason for one in lost.values()}
    quarantined |= {
        name.video_id: lost[name.item].reason for name in view.state.names if name.item in lost
    }
    left_out = {
        name: quarantined[name] for name in wanted if name in quarantined and name not in held
    }
    missing = []
    for video_id in wanted:
        if video_id not in held and video_id not in left_out:
            missing.append(video_id)
        elif video_id in held:
            lacking = sorted(draw for draw in draws - held[video_id] if draw is not None)
            missing += [f"{video_id} crop {draw}" for draw in lacking]
    if missing and strict:
        raise _missing(view, labels, split, wanted, missing, manifest)
    return Coverage(
        num_videos=sum(held.get(video_id) == draws for video_id in wanted),
        missing=tuple(missing),
        quarantined=tuple(sorted(left_out.items())),
    )


def extract_command(view: View, sources: Iterable[str], split: str | None = None) -> str | None:
    """Returns the ``fcache extract`` that adds sources to a view; None if it tells no recipe."""
    recorded = view.index.attributes["provenance"].get("recipe")
    if recorded is None:
        return None
    settings = overrides(recorded) | ({"split": split} if split else {})
    draws = [entry.item.draw for entry in view.catalogue.entries() if entry.item.draw is not None]
    if draws:  # later jobs may have added crops
        settings["crops"] = str(max(recorded["crops"], max(draws) + 1))
    words = [*sources, "--cache", str(view.folder.parent)]
    words += [f"{key}={value}" for key, value in settings.items()]
    return "fcache extract " + " ".join(map(shlex.quote, words))


def overrides(recorded: dict[str, Any]) -> dict[str, str]:
    """Returns what the command line must add to the default recipe to make the recorded view."""
    usual = resolve(ExtractConfig, load_recipe("extract"), {}).model_dump(mode="json")
    config = ExtractConfig.model_validate(recorded).model_dump(mode="json")
    return {key: _typed(key, config[key]) for key in _SETTINGS if config[key] != usual[key]}


def _typed(key: str, value: Any) -> str:  # noqa: ANN401 - any JSON value
    if value is None:
        return "none"
    if key in {"size", "crop"}:
        return f"{value[0]}x{value[1]}"
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def _wanted(view: View, labels: LabelReader, split: str | None) -> dict[str, Video]:
    """The videos of the split, by id, sorted."""
    listed = labels.manifest.videos if labels.manifest else ()
    if not listed:
        embedded = [Manifest.model_validate(content) for content in view.index.manifests()]
        listed = tuple(video for manifest in embedded for video in manifest.videos)
    found = {video.id: video for video in listed if split in (None, video.split)}
    return {video_id: found[video_id] for video_id in sorted(found)}


def _missing(
    view: View,
    labels: LabelReader,
    split: str | None,
    wanted: dict[str, Video],
    missing: list[str],
    manifest: str | None,
) -> CoverageError:
    named = ", ".join(f"'{name}'" for name in missing[:MOST_NAMED])
    more = f" and {len(missing) - MOST_NAMED} more" if len(missing) > MOST_NAMED else ""
    where = f" of split '{split}'" if split else ""
    sources = _sources(labels, wanted, missing, manifest)
    return CoverageError(
        f"view {view.key} lacks {len(missing)} of what {labels.origin} needs{where} "
        f"({len(wanted)} videos): {named}{more}.",
        run=extract_command(view, sources, split) if sources else None,
    )


def _sources(
    labels: LabelReader, wanted: dict[str, Video], missing: list[str], manifest: str | None
) -> list[str]:
    """What to hand to ``fcache extract`` so that video ids come out as they are."""
    known = labels.manifest
    if manifest is not None and known is not None:
        return [manifest]
    if known is not None and known.name in manifest_names() and known.root:
        return [known.name, f"root={known.root}"]
    folders = set()
    for name in missing:
        video = wanted[name.partition(" crop ")[0] if name not in wanted else name]
        path = video.path if video.kind == "frames" else video.path.rpartition(".")[0]
        if not path.endswith("/" + video.id):
            return []
        folders.add(path.removesuffix("/" + video.id) or "/")
    return sorted(folders)
