"""What is wrong with a manifest, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from pydantic import BaseModel, ValidationError

from fcache.errors import nearest

MOST = 5  # problems that are told one by one


def explain(
    error: ValidationError,
    kind: type[BaseModel],
    parts: Mapping[str, type[BaseModel]] = MappingProxyType({}),
) -> str:
    """Returns in words what is wrong with a table: the first five problems, and how many more.

    Args:
        error: What reading it raised.
        kind: What it was to be.
        parts: What the tables below a key are.
    """
    items = error.errors()
    texts = [
        _explain_one(item["loc"], item["type"], item["msg"], kind, parts) for item in items[:MOST]
    ]
    if len(items) > MOST:
        texts.append(f"and {len(items) - MOST} more")
    return "; ".join(texts)


def _explain_one(
    where: Sequence[int | str],
    problem: str,
    message: str,
    kind: type[BaseModel],
    parts: Mapping[str, type[BaseModel]],
) -> str:
    name = ".".join(str(part) for part in where)
    if problem == "extra_forbidden":
        part = parts.get(str(where[0]), kind) if len(where) > 1 else kind
        return f"'{name}' is not a key{nearest(str(where[-1]), part.model_fields)}"
    if problem == "missing":
        return f"'{name}' is needed"
    text = message.removeprefix("Value error, ")
    return f"{name}: {text}" if name else text
