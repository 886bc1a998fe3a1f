"""The documents that make a folder a cache, and a folder in it a view."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from fcache.errors import CacheCorruptError, CacheError, CacheNotFoundError, ConfigError
from fcache.store.files import (
    TMP_SUFFIX,
    copy_of,
    read_attributes,
    repair_command,
    sealed,
    write_whole,
)
from fcache.store.identity import KEY_LENGTH, view_key
from fcache.store.layout import LAYOUT_VERSION, group_json

_PREFIX = re.compile(f"[0-9a-f]{{0,{KEY_LENGTH}}}")

ROOT_DOCUMENT = group_json({"fcache": sealed({"cache": LAYOUT_VERSION})})


def split_key(path: str) -> tuple[Path, str]:
    """Divides ``PATH@KEYPREFIX``; a path may hold an ``@`` of its own."""
    whole = Path(path)
    if whole.exists() or "@" not in whole.name:
        return whole, ""
    before, _, prefix = path.rpartition("@")
    if Path(before).exists() or _PREFIX.fullmatch(prefix):
        return Path(before), prefix
    return whole, ""


def create_root(path: Path) -> None:
    """Makes an empty cache where there is none.

    Raises:
        ConfigError: the path holds something else.
        CacheError: it is of a newer layout.
    """
    if path.exists():
        entries = {entry.name for entry in path.iterdir()} if path.is_dir() else {path.name}
        if "zarr.json" in entries:
            check_root(path)
            return
        # Another job may be making the same cache at this moment.
        if not all(name.endswith(TMP_SUFFIX) for name in entries):
            raise ConfigError(
                f"'{path}' holds other files and is no cache; expected an empty or a new folder."
            )
    write_whole(path / "zarr.json", ROOT_DOCUMENT)


def check_root(path: Path) -> None:
    """Checks that a path is a cache this version can read.

    Raises:
        CacheNotFoundError: it is not there, or no cache.
        CacheCorruptError: its ``zarr.json`` is damaged.
        CacheError: it is of a newer layout.
    """
    if not path.is_dir():
        raise CacheNotFoundError(f"'{path}' does not exist; expected the folder of a cache.")
    try:
        content = read_attributes(path / "zarr.json")
    except FileNotFoundError:
        raise CacheNotFoundError(
            f"'{path}' is no cache: it has no zarr.json of fcache's. A cache is what "
            "'fcache extract SRC --cache PATH' makes."
        ) from None
    except CacheCorruptError as error:
        run = repair_command(path) if _holds_views(path) else None
        raise CacheCorruptError(error.message, run=run) from error
    if "cache" not in content:
        raise CacheNotFoundError(
            f"'{path}' is a view; expected the cache around it.",
            run=f"fcache info '{path.parent}@{path.name}'",
        )
    _check_version(path, content["cache"])


def view_folders(path: Path, prefix: str = "") -> list[Path]:
    """The folders of a cache's views, whether or not their documents are sound.

    Raises:
        CacheNotFoundError: none has a key that starts with ``prefix``.
    """
    folders = sorted(
        folder
        for folder in path.iterdir()
        if folder.name.startswith(prefix) and (folder / "index").is_dir()
    )
    if prefix and not folders:
        raise CacheNotFoundError(
            f"'{path}' has no view whose key starts with '{prefix}'.", run=f"fcache ls '{path}'"
        )
    return folders


def check_root_document(path: Path) -> str | None:
    """Returns what is wrong with the document of a cache that is known by its views, if anything.

    Raises:
        CacheNotFoundError: the path is not there, or no cache.
        CacheCorruptError: the document is damaged, and no view beside it says that this is a cache.
        CacheError: the cache is of a newer layout.
    """
    document = path / "zarr.json"
    try:
        check_root(path)
    except CacheCorruptError:
        if not _holds_views(path):
            raise
    except CacheNotFoundError:
        if document.exists() or not _holds_views(path):
            raise
        return "the file is missing"
    if document.read_bytes() != ROOT_DOCUMENT:
        return "the file is not the one that every cache has"
    return None


def view_attributes(folder: Path) -> dict[str, Any]:
    """Reads and checks the attributes of a view's group: layout, identity, provenance.

    Raises:
        CacheNotFoundError: the folder holds no view.
        CacheError: the view is of a newer layout.
        CacheCorruptError: the attributes fail their checksum, or name another folder.
    """
    path, index = folder / "zarr.json", folder / "index"
    try:
        record = read_attributes(path)
    except FileNotFoundError:
        if copy_of(index, path).exists():
            run = repair_command(folder.parent)
            raise CacheCorruptError(f"'{path}' is missing.", run=run) from None
        raise CacheNotFoundError(f"'{folder}' holds no view.") from None
    if "identity" not in record:
        raise CacheNotFoundError(f"'{folder}' holds no view; expected a folder named by its key.")
    _check_version(folder, record["layout"])
    if view_key(record["identity"]) != folder.name:
        raise CacheCorruptError(
            f"'{folder}' holds the view {view_key(record['identity'])}; a folder is named by its "
            "view's identity."
        )
    return record


def _holds_views(path: Path) -> bool:
    """Whether a folder is a cache by what is in it; other groups are not to be written over."""
    key = re.compile(f"[0-9a-f]{{{KEY_LENGTH}}}")
    return any(key.fullmatch(index.parent.name) for index in path.glob("*/index"))


def _check_version(path: Path, version: int) -> None:
    if version > LAYOUT_VERSION:
        raise CacheError(
            f"'{path}' has layout {version}; this fcache reads up to {LAYOUT_VERSION}. "
            "Update fcache."
        )
