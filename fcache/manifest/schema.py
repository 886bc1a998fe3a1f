"""What a manifest holds."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import string
import uuid
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationError, model_validator

from fcache.config import Selection, Settings
from fcache.errors import ConfigError, NoSpaceError
from fcache.manifest.explain import explain
from fcache.manifest.text import as_json, as_toml

SourceKind = Literal["video", "frames", "image"]


def _pattern(*allowed: str) -> AfterValidator:
    """Accepts text whose ``{fields}`` are among ``allowed``."""

    def check(text: str) -> str:
        try:
            fields = [name for _, name, _, _ in string.Formatter().parse(text) if name is not None]
        except ValueError as error:
            raise ValueError(f"'{text}' is not a pattern: {error}") from None
        for name in fields:
            if name not in allowed:
                known = ", ".join(f"{{{key}}}" for key in allowed)
                raise ValueError(f"'{text}' uses {{{name}}}; expected only {known}")
        return text

    return AfterValidator(check)


def _video_id(text: str) -> str:
    if any(part in {"", ".", ".."} for part in text.split("/")):
        raise ValueError(f"video id '{text}' is not parts divided by '/', such as 'train/0001'")
    return text


class Category(Settings):
    """One class. ``id`` is the value in the data set's files; a manifest's order is the model's."""

    id: int
    name: str
    isthing: bool
    color: tuple[int, int, int] = (0, 0, 0)


class Layout(Settings):
    """Where a data set keeps its videos, as patterns relative to its root.

    ``videos`` is a pattern with ``{video}`` and optionally ``{split}``; ``id`` builds the video id
    from the same fields; ``splits`` maps a split to a file that lists its videos: text, one a line,
    or the JSON of its panoptic labels. Without splits, ``{split}`` in the path says it.
    """

    videos: Annotated[str, _pattern("video", "split")]
    id: Annotated[str, _pattern("video", "split")] = "{video}"
    splits: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _consistent(self) -> Layout:
        if "{video}" not in self.videos or "{video}" not in self.id:
            raise ValueError("a layout's videos and id need {video}")
        if "{split}" in self.id and "{split}" not in self.videos:
            raise ValueError("a layout's id uses {split}, which its videos pattern lacks")
        return self


class Labels(Settings):
    """How labels are stored, as patterns relative to the root.

    ``{video}`` is the whole video id, ``{frame}`` the frame name without suffix, ``{split}`` the
    split. ``format`` is ``semantic`` (one-channel PNG: category id + ``offset``) or ``panoptic``
    (RGB PNG, segment id = R + 256 G + 65536 B, 0 void, with VIPSeg- or COCO-shaped JSON at
    ``json_path``). Values in ``void`` belong to no category; a value that neither they nor the
    categories name is an error, or with ``unlisted = "void"`` void too.
    """

    format: Literal["semantic", "panoptic"]
    path: Annotated[str, _pattern("video", "frame", "split")]
    json_path: Annotated[str, _pattern("video", "split")] | None = None
    offset: int = 0
    void: tuple[Annotated[int, Field(ge=0, le=65535)], ...] = ()
    unlisted: Literal["error", "void"] = "error"

    @model_validator(mode="after")
    def _consistent(self) -> Labels:
        if (self.format == "panoptic") != (self.json_path is not None):
            raise ValueError("labels of format 'panoptic', and only they, need a json_path")
        return self


class Video(Settings):
    """One source of frames: a video file, a folder of frames, or a single image.

    ``sha256`` is the content: of the file; for a folder, of the ordered list of
    (sha256, file name) of its frames. ``height`` and ``width`` are pixels as displayed (rotation
    applied); ``num_frames`` is what the container promises, never trusted.
    """

    id: Annotated[str, AfterValidator(_video_id)]
    path: str
    kind: SourceKind
    sha256: str | None = None
    split: str | None = None
    num_frames: int | None = None
    height: int | None = None
    width: int | None = None


class Manifest(Settings):
    """What goes into a job.

    ``root`` is the folder that relative paths count from. ``sampling`` holds the settings of
    ``fcache.config.Selection`` that the data set is to be read with. Categories stand in model
    order: the position is the class index.
    """

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
    def _consistent(self) -> Manifest:
        for what, names in (
            ("video id", [video.id for video in self.videos]),
            ("category id", [str(category.id) for category in self.categories]),
        ):
            twice = [name for name, count in Counter(names).items() if count > 1]
            if twice:
                raise ValueError(f"{what} used twice: {', '.join(twice[:5])}")
        try:
            Selection.model_validate(self.sampling)
        except ValidationError as error:
            raise ValueError(f"sampling: {explain(error, Selection)}") from None
        return self

    def locate(self, path: str, what: str) -> Path:
        """Returns the absolute place of a path of this manifest.

        Raises:
            ConfigError: the path is relative and the manifest has no root; ``what`` names it.
        """
        if os.path.isabs(path):
            return Path(path)
        if self.root is None:
            raise ConfigError(
                f"{what} of manifest '{self.name}' lies at the relative path '{path}' and the "
                "manifest has no root; give root=FOLDER."
            )
        return Path(os.path.abspath(os.path.join(self.root, path)))

    @property
    def sha256(self) -> str:
        """The content hash of the manifest, independent of where its root lies."""
        facts = self.model_dump(mode="json", exclude={"root"})
        text = json.dumps(facts, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def to_toml(self) -> str:
        """Returns the manifest as TOML text that ``load_manifest`` reads back equal."""
        facts = self.model_dump(mode="json", exclude_defaults=True, exclude={"categories"})
        return as_toml({"schema_version": self.schema_version, **facts}, self.categories)

    def to_json(self) -> str:
        """Returns the manifest as JSON text, a line for each video and category."""
        facts = self.model_dump(mode="json", exclude_defaults=True, exclude_none=True)
        return as_json({"schema_version": self.schema_version, **facts})

    def write(self, path: Path, *, force: bool = False) -> None:
        """Writes the manifest to a file that is seen whole or not at all: JSON if called so.

        Raises:
            ConfigError: the file exists and ``force`` is not given, or it cannot be written.
            NoSpaceError: the disk or quota is full.
        """
        if path.exists() and not force:
            raise ConfigError(f"'{path}' exists; pass --force to replace it, or another -o FILE.")
        partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
        try:
            text = self.to_json() if path.suffix == ".json" else self.to_toml()
            partial.write_text(text, encoding="utf-8")
            partial.replace(path)
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise NoSpaceError(f"no space left while writing '{path}'.") from error
            raise ConfigError(f"'{path}' cannot be written: {error.strerror}.") from error
        finally:
            with suppress(OSError):
                partial.unlink()
