"""Manifests as text: TOML to be read and edited, JSON for many videos."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import tomli_w

if TYPE_CHECKING:
    from fcache.manifest.schema import Category


def as_toml(facts: dict[str, Any], categories: Iterable[Category]) -> str:
    """Returns TOML text, with a line for each category.

    Args:
        facts: All but the categories; None stands for a key that lacks.
        categories: In model order.
    """
    facts = _without_none(facts)
    tables = {key: value for key, value in facts.items() if isinstance(value, dict | list)}
    head = {key: value for key, value in facts.items() if key not in tables}
    # tomli_w spreads a category over eight lines; a hundred of them read better one a line.
    rows = "".join(f"    {_category_toml(category)},\n" for category in categories)
    parts = [tomli_w.dumps(head), f"categories = [\n{rows}]\n" if rows else ""]
    return "\n".join(part for part in [*parts, tomli_w.dumps(tables)] if part)


def as_json(facts: dict[str, Any]) -> str:
    """Returns JSON text, a line for each entry of a list."""
    return "{\n" + ",\n".join(_json_line(key, value) for key, value in facts.items()) + "\n}\n"


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
