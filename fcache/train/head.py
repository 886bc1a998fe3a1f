"""What a run's network reads and tells apart, kept in its folder for those who use it elsewhere.

A checkpoint holds numbers alone. ``head.json`` says which backbone's stage outputs they were
trained on, and which categories they tell apart, so that a run serves other views of the same
backbone when the cache that it was trained from is gone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fcache.config import Settings
from fcache.errors import ConfigError
from fcache.manifest import Category
from fcache.store.identity import Difference, differences

HEAD = "head.json"


class HeadFacts(Settings):
    """What a head is for.

    Attributes:
        backbone: As in the identity of the view that it was trained on.
        normalisation: Likewise.
        categories: In model order.
    """

    backbone: dict[str, Any]
    normalisation: dict[str, Any]
    categories: tuple[Category, ...]

    def to_text(self) -> str:
        """Returns the content of ``head.json``."""
        return self.model_dump_json(indent=2) + "\n"

    def misfits(self, identity: Mapping[str, Any]) -> list[Difference]:
        """Returns how a view's backbone and normalisation differ from these."""
        ours = {"backbone": self.backbone, "normalisation": self.normalisation}
        return differences(ours, {part: identity[part] for part in ours})


def read_head(run: Path) -> HeadFacts:
    """Returns what a run's head is for.

    Raises:
        ConfigError: it is not there, or damaged.
    """
    path = run / HEAD
    try:
        return HeadFacts.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise ConfigError(
            f"'{path}' is not there: the run was trained before it was written. Expected the "
            "command that trained it to be run again: it writes the file, and trains nothing twice."
        ) from None
    except (OSError, ValidationError) as error:
        raise ConfigError(f"'{path}' cannot be read: {error}.") from None
