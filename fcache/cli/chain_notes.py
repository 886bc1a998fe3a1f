"""Which steps of a chain have ended: ``chain.json`` in its folder."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fcache.errors import ConfigError
from fcache.store.files import make_folder, write_whole

if TYPE_CHECKING:
    from fcache.config.chain import ChainCommand

NOTES = "chain.json"
OUTPUTS = ("--cache", "--run", "--out", "--picture")  # options that name what a step makes or needs


@dataclass(slots=True)
class Notes:
    """Which steps of a chain have ended, and how they were told.

    Attributes:
        path: Where they lie.
        ended: What each was told, by its name.
    """

    path: Path
    ended: dict[str, dict[str, Any]]

    @classmethod
    def read(cls, folder: Path) -> Notes:
        """Returns the notes in a chain's folder; empty ones where it has none.

        Raises:
            ConfigError: they are damaged.
        """
        path = folder / NOTES
        try:
            ended = json.loads(path.read_text(encoding="utf-8"))["ended"]
        except FileNotFoundError:
            ended = {}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"'{path}' cannot be read: {error}. Remove it, and every step runs again; those "
                "that have ended find their work done."
            ) from None
        return cls(path, ended)

    def first_to_run(self, commands: Sequence[ChainCommand], again: str | None) -> int:
        """Returns the place of the first step that has not ended as it would be run today."""
        for place, command in enumerate(commands):
            is_same = self.ended.get(command.name) == told(command)
            if command.name == again or not is_same or not made(command):
                return place
        return len(commands)

    def forget(self, commands: Sequence[ChainCommand]) -> None:
        """Notes that steps are about to run."""
        for command in commands:
            self.ended.pop(command.name, None)
        self._write()

    def note(self, command: ChainCommand) -> None:
        """Notes that a step has ended."""
        self.ended[command.name] = told(command)
        self._write()

    def _write(self) -> None:
        make_folder(self.path.parent)
        write_whole(self.path, (json.dumps({"ended": self.ended}, indent=2) + "\n").encode())


def told(command: ChainCommand) -> dict[str, Any]:
    """Returns what a step is told: its words, where they count from, and the files they name."""
    named = [Path(word) for word in (*command.words, *command.settings.values())]
    files = {str(path): _sha256(path) for path in named if path.is_file()}
    return {"words": command.argv, "folder": str(Path.cwd()), "files": files}


def made(command: ChainCommand) -> bool:
    """Says whether what a step writes is still there."""
    pairs = itertools.pairwise(command.words)
    return all(Path(path).exists() for option, path in pairs if option in OUTPUTS)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
