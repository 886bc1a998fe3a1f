"""What makes two views, or two items, the same: content and settings, never a path or a time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

KEY_LENGTH = 16  # hex digits: 64 bits, plenty for the views of one cache
ITEM_LENGTH = 24  # hex digits: 96 bits, plenty for the items of one view


def canonical(content: Mapping[str, Any]) -> bytes:
    """JSON with sorted keys and no spaces: equal content gives equal bytes."""
    return _ENCODER.encode(content).encode()


_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest(content: Mapping[str, Any]) -> str:
    """The sha256 of canonical content, hexadecimal."""
    return hashlib.sha256(canonical(content)).hexdigest()


def view_key(identity: Mapping[str, Any]) -> str:
    """The folder name of a view."""
    return digest(identity)[:KEY_LENGTH]


def item_id(content_sha256: str, selection: Mapping[str, Any], **more: Any) -> str:  # noqa: ANN401
    """The name of an item: one source's content, under one frame selection.

    Args:
        content_sha256: The content.
        selection: Which frames of it.
        more: What else tells items apart: the draw of a crop, or that frames are joined by name.
    """
    content = {"content": content_sha256, "selection": dict(selection), **more}
    return digest(content)[:ITEM_LENGTH]


@dataclass(frozen=True, slots=True)
class Difference:
    """One field in which two identities differ."""

    field: str
    ours: Any
    theirs: Any

    def __str__(self) -> str:
        return f"{self.field}: {_short(self.ours)} -> {_short(self.theirs)}"


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[Difference]:
    """Every field in which two identities differ, sorted by name."""
    flat_ours, flat_theirs = dict(_flatten(ours)), dict(_flatten(theirs))
    return [
        Difference(field, flat_ours.get(field), flat_theirs.get(field))
        for field in sorted({*flat_ours, *flat_theirs})
        if flat_ours.get(field) != flat_theirs.get(field)
    ]


def _flatten(content: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:  # noqa: ANN401 - JSON
    if isinstance(content, Mapping):
        entries: Iterable[tuple[Any, Any]] = content.items()
    elif isinstance(content, list | tuple):  # JSON makes a list of a tuple: they are the same
        entries = enumerate(content)
    else:
        yield prefix, content
        return
    for name, value in entries:
        yield from _flatten(value, f"{prefix}.{name}" if prefix else str(name))


def _short(value: Any) -> str:  # noqa: ANN401 - any JSON value
    text = "absent" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."
