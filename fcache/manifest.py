"""Manifests: what goes into a job. Facts only; choices live in recipes.

A manifest names the videos (or images) of a data set with their content hashes, the splits, the
categories and where the labels lie. ``fcache data init`` writes one; ``manifests/`` ships the
categories and layouts of the data sets of the paper. Every cache embeds the manifest it was built
from.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import tomli_w
from pydantic import Field, ValidationError, model_validator

from fcache.config import Settings, read_toml, shipped
from fcache.errors import ConfigError, nearest

SourceKind = Literal["video", "frames", "image"]


class Category(Settings):
    """One class. ``id`` is the value in the data set's files."""

    id: int
    name: str
    isthing: bool
    color: tuple[int, int, int] = (0, 0, 0)


class Layout(Settings):
    """Where a data set keeps its videos, as patterns relative to its root.

    ``videos`` is a pattern with ``{video}`` and optionally ``{split}``; ``id`` builds the video id
    from the same fields; ``splits`` maps a split to a file that lists its videos, one a line.
    """

    videos: str
    id: str = "{video}"
    splits: dict[str, str] = Field(default_factory=dict)


class Labels(Settings):
    """How labels are stored, as patterns relative to the root.

    ``{video}`` is the whole video id, ``{frame}`` the frame name without suffix, ``{split}`` the
    split. ``format`` is ``semantic`` (one-channel PNG: category id + ``offset``) or ``panoptic``
    (RGB PNG, segment id = R + 256 G + 65536 B, with a VIPSeg- or COCO-shaped ``json``).
    Values in ``void`` belong to no category.
    """

    format: Literal["semantic", "panoptic"]
    path: str
    json_path: str | None = None
    offset: int = 0
    void: tuple[int, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Labels:
        if (self.format == "panoptic") != (self.json_path is not None):
            raise ValueError("labels of format 'panoptic', and only they, need a json_path")
        return self


class Video(Settings):
    """One source of frames: a video file, a folder of frames, or a single image.

    ``sha256`` is the content: of the file; for a folder, of the ordered list of
    (file name, sha256) of its frames. ``height`` and ``width`` are pixels as displayed (rotation
    applied); ``num_frames`` is what the container promises, never trusted.
    """

    id: str
    path: str
    kind: SourceKind
    sha256: str | None = None
    split: str | None = None
    num_frames: int | None = None
    height: int | None = None
    width: int | None = None


class Manifest(Settings):
    """What goes into a job."""

    schema_version: Literal[1] = 1
    name: str
    about: str = ""
    root: str | None = None
    layout: Layout | None = None
    sampling: dict[str, int | float | str] = Field(default_factory=dict)
    labels: tuple[Labels, ...] = ()
    categories: tuple[Category, ...] = ()
    videos: tuple[Video, ...] = ()

    @model_validator(mode="after")
    def _unique(self) -> Manifest:
        for what, names in (
            ("video id", [video.id for video in self.videos]),
            ("category id", [category.id for category in self.categories]),
        ):
            twice = sorted({str(name) for name in names if names.count(name) > 1}) if len(
                set(names)
            ) < len(names) else []
            if twice:
                raise ValueError(f"{what} used twice: {', '.join(twice[:5])}")
        return self

    @property
    def sha256(self) -> str:
        """The content hash of the manifest, independent of where its root lies."""
        facts = self.model_dump(mode="json", exclude={"root"})
        text = json.dumps(facts, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def to_toml(self) -> str:
        """Returns the manifest as TOML text that ``load_manifest`` reads back equal."""
        return tomli_w.dumps(_without_none(self.model_dump(mode="json")))


def _without_none(value: Any) -> Any:  # noqa: ANN401 - TOML has no null; a missing key says it
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_none(item) for item in value]
    return value


def manifest_names() -> list[str]:
    """Returns the names of the shipped manifests, sorted."""
    return sorted(path.stem for path in shipped("manifests").glob("*.toml"))


def load_manifest(name: str, root: Path | None = None) -> Manifest:
    """Returns a manifest by shipped name or by path.

    Args:
        name: A name from ``manifest_names()`` or a path ending in ``.toml``.
        root: Overrides the manifest's root. A relative root in the file is relative to the file.

    Raises:
        ConfigError: no such manifest, or its content breaks the schema.
    """
    path = Path(name)
    if path.suffix != ".toml" and len(path.parts) == 1:
        if name not in manifest_names():
            raise ConfigError(
                f"manifest '{name}' is not shipped{nearest(name, manifest_names())}; "
                "expected one of " + ", ".join(manifest_names()) + " or a path to a .toml file."
            )
        path = shipped("manifests") / f"{name}.toml"
    return parse_manifest(read_toml(path), origin=path, root=root)


def parse_manifest(table: dict[str, Any], *, origin: Path, root: Path | None = None) -> Manifest:
    """Builds a manifest from a table read at ``origin``.

    Raises:
        ConfigError: the table breaks the schema; every problem is named.
    """
    if root is not None:
        table = {**table, "root": str(root)}
    elif "root" in table and not Path(table["root"]).is_absolute():
        table = {**table, "root": str((origin.parent / table["root"]).resolve())}
    try:
        return Manifest.model_validate(table)
    except ValidationError as error:
        problems = [
            f"{'.'.join(str(part) for part in item['loc']) or 'manifest'}: "
            f"{str(item['msg']).removeprefix('Value error, ')}"
            for item in error.errors()[:5]
        ]
        raise ConfigError(f"'{origin}' breaks the manifest schema: {'; '.join(problems)}.") from None
