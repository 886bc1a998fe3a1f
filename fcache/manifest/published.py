"""Scores that others have published, by board: a task on one data set."""

from __future__ import annotations

from typing import Literal

from pydantic import ValidationError

from fcache.config import Settings, read_toml, shipped
from fcache.errors import ConfigError, nearest
from fcache.manifest.explain import explain

PUBLISHED = "published"  # the file in manifests/ that is no manifest

Task = Literal["vps", "vss", "pq"]


class PublishedRow(Settings):
    """One method's scores, in the scales that ``fcache eval`` prints.

    ``split`` is what the source says, which may be nothing.
    """

    method: str
    split: Literal["val", "test", "dev", "not stated"]
    source: str
    scores: dict[str, float]


class Board(Settings):
    """Published rows of one task and data set, best first."""

    name: str
    task: Task
    data: str
    rows: tuple[PublishedRow, ...]


class _File(Settings):
    boards: tuple[Board, ...]


def load_boards() -> dict[str, Board]:
    """Returns the shipped boards by name.

    Raises:
        ConfigError: the file breaks its schema.
    """
    path = shipped("manifests") / f"{PUBLISHED}.toml"
    try:
        found = _File.model_validate(read_toml(path))
    except ValidationError as error:
        raise ConfigError(f"'{path}' breaks its schema: {explain(error, _File)}.") from None
    return {board.name: board for board in found.boards}


def load_board(name: str, task: Task) -> Board:
    """Returns a board.

    Raises:
        ConfigError: there is none of this name for the task.
    """
    boards = load_boards()
    names = [board.name for board in boards.values() if board.task == task]
    if name not in names:
        what = f"is of task {boards[name].task}" if name in boards else "is not known"
        raise ConfigError(
            f"board '{name}' {what}{nearest(name, names)}; expected one of {', '.join(names)}."
        )
    return boards[name]
