"""Manifests: what goes into a job. Facts only; choices live in recipes.

A manifest names the videos (or images) of a data set with their content hashes, the splits, the
categories and where the labels lie. ``fcache data init`` writes one; ``manifests/`` ships the
categories and layouts of the data sets of the paper. Every cache embeds the manifest it was built
from.

A manifest is a TOML file, or JSON with the same keys for many videos: Python's TOML reader takes
seconds for 100,000 of them. The manifest's hash does not depend on the form.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import string
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import AfterValidator, BaseModel, Field, ValidationError, model_validator

from fcache.config import Selection, Settings, read_toml, shipped
from fcache.errors import ConfigError, NoSpaceError, nearest

SourceKind = Literal["video", "frames", "image"]
MANIFEST_SUFFIXES = (".toml", ".json")


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
            raise ValueError(f"sampling: {_explain(error, Selection)}") from None
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
        facts = _without_none({"schema_version": self.schema_version, **facts})
        tables = {key: value for key, value in facts.items() if isinstance(value, dict | list)}
        head = {key: value for key, value in facts.items() if key not in tables}
        # tomli_w spreads a category over eight lines; a hundred of them read better one a line.
        rows = "".join(f"    {_category_toml(category)},\n" for category in self.categories)
        parts = [tomli_w.dumps(head), f"categories = [\n{rows}]\n" if rows else ""]
        return "\n".join(part for part in [*parts, tomli_w.dumps(tables)] if part)

    def to_json(self) -> str:
        """Returns the manifest as JSON text, a line for each video and category."""
        facts = self.model_dump(mode="json", exclude_defaults=True, exclude_none=True)
        facts = {"schema_version": self.schema_version, **facts}
        return "{\n" + ",\n".join(_json_line(key, value) for key, value in facts.items()) + "\n}\n"

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


def _category_toml(category: Category) -> str:
    name = tomli_w.dumps({"name": category.name}).strip()
    isthing = "true" if category.isthing else "false"
    return f"{{ id = {category.id}, {name}, isthing = {isthing}, color = {list(category.color)} }}"


def _json_line(key: str, value: Any) -> str:  # noqa: ANN401 - any JSON value
    if isinstance(value, list):
        rows = ",\n".join(json.dumps(row, ensure_ascii=False) for row in value)
        return f"{json.dumps(key)}: [\n{rows}\n]"
    return f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}"


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
        name: A name from ``manifest_names()`` or a path ending in ``.toml`` or ``.json``.
        root: Overrides the manifest's root. A relative root in the file is relative to the file.

    Raises:
        ConfigError: no such manifest, or its content breaks the schema.
    """
    path = Path(name)
    if path.suffix not in MANIFEST_SUFFIXES and len(path.parts) == 1:
        if name not in manifest_names():
            raise ConfigError(
                f"manifest '{name}' is not shipped{nearest(name, manifest_names())}; "
                f"expected one of {', '.join(manifest_names())} or a path to a .toml or .json file."
            )
        path = shipped("manifests") / f"{name}.toml"
    table = _read_json(path) if path.suffix == ".json" else read_toml(path)
    return parse_manifest(table, origin=path, root=root)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"'{path}' does not exist; expected a JSON file.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"'{path}' is not a readable JSON file: {error}.") from None
    if not isinstance(table, dict):
        raise ConfigError(f"'{path}' is no manifest: its JSON is not one object.")
    return table


def parse_manifest(table: dict[str, Any], *, origin: Path, root: Path | None = None) -> Manifest:
    """Builds a manifest from a table read at ``origin``.

    Raises:
        ConfigError: the table breaks the schema; every problem is named.
    """
    written = table.get("root")
    if root is not None:
        table = {**table, "root": os.path.abspath(os.path.expanduser(root))}
    elif isinstance(written, str):
        folder = os.path.abspath(origin.parent)
        table = {**table, "root": os.path.normpath(os.path.join(folder, written))}
    try:
        return Manifest.model_validate(table)
    except ValidationError as error:
        text = _explain(error, Manifest)
        raise ConfigError(f"'{origin}' breaks the manifest schema: {text}.") from None


_PARTS: Mapping[str, type[BaseModel]] = {
    "layout": Layout,
    "labels": Labels,
    "categories": Category,
    "videos": Video,
}


def _explain(error: ValidationError, kind: type[BaseModel], most: int = 5) -> str:
    items = error.errors()
    texts = [_explain_one(item["loc"], item["type"], item["msg"], kind) for item in items[:most]]
    if len(items) > most:
        texts.append(f"and {len(items) - most} more")
    return "; ".join(texts)


def _explain_one(
    where: Sequence[int | str], problem: str, message: str, kind: type[BaseModel]
) -> str:
    name = ".".join(str(part) for part in where)
    if problem == "extra_forbidden":
        part = _PARTS.get(str(where[0]), kind) if len(where) > 1 else kind
        return f"'{name}' is not a key{nearest(str(where[-1]), part.model_fields)}"
    if problem == "missing":
        return f"'{name}' is needed"
    text = message.removeprefix("Value error, ")
    return f"{name}: {text}" if name else text
