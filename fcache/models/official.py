"""The names of official checkpoints and ours, both ways.

Mask2Former, MinVIS, CTVIS, DVIS and DVIS++ share one set of names for the segmenter. What belongs
to the frozen backbone keeps its official name, because the backbone room reads those files itself;
what belongs to trackers and refiners is told by its prefix.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from torch import Tensor

from fcache.errors import WeightsError
from fcache.models.official_names import SEGMENTER

Part = Literal["segmenter", "backbone", "tracker", "refiner", "unknown"]
Shape = tuple[int, ...]

LATER = ("tracker.", "refiner.")
VIT = "backbone.vit_module."


@dataclass(frozen=True)
class KeyMap:
    """Pairs of official and our names, each standing for many.

    ``#`` stands for one number, a ``*`` at the end for the rest of a name; both sides of a pair
    hold the same of them in the same order.
    """

    pairs: tuple[tuple[str, str], ...]

    def ours(self, official: str) -> str | None:
        """Returns our name, or None where the name is not in the map."""
        return _translate(self._from_official, official)

    def official(self, ours: str) -> str | None:
        """Returns the official name, or None where the name is not in the map."""
        return _translate(self._from_ours, ours)

    @cached_property
    def _from_official(self) -> list[tuple[re.Pattern[str], str]]:
        return [_rule(official, ours) for official, ours in self.pairs]

    @cached_property
    def _from_ours(self) -> list[tuple[re.Pattern[str], str]]:
        return [_rule(ours, official) for official, ours in self.pairs]


def _rule(source: str, result: str) -> tuple[re.Pattern[str], str]:
    pattern = re.escape(source).replace(r"\#", r"(\d+)").replace(r"\*", r"(.+)")
    groups = iter(range(1, 10))
    return re.compile(pattern), re.sub(r"[#*]", lambda _: rf"\g<{next(groups)}>", result)


def _translate(rules: list[tuple[re.Pattern[str], str]], name: str) -> str | None:
    for pattern, result in rules:
        if found := pattern.fullmatch(name):
            return found.expand(result)
    return None


SEGMENTER_KEYS = KeyMap(SEGMENTER)
# Mask2Former's first checkpoints call the query features so.
OLD_NAMES = {
    "sem_seg_head.predictor.static_query.weight": "sem_seg_head.predictor.query_feat.weight"
}


def part_of(official: str, *, has_adapter: bool = True) -> Part:
    """Returns what a tensor of an official checkpoint belongs to.

    Args:
        official: Its name there.
        has_adapter: Whether the checkpoint has a ViT-Adapter. Without one, everything below
            ``backbone.`` is the backbone's, such as the ``norm1`` of a Swin transformer.
    """
    for prefix in LATER:
        if official.startswith(prefix):
            return "tracker" if prefix == "tracker." else "refiner"
    known = SEGMENTER_KEYS.ours(OLD_NAMES.get(official, official)) is not None
    if official.startswith("backbone."):
        if official.startswith(VIT) or not has_adapter:
            return "backbone"
        return "segmenter" if known else "unknown"
    return "segmenter" if known else "unknown"


def segmenter_names(official: Iterable[str]) -> dict[str, str]:
    """Returns our name -> official name for what belongs to the segmenter."""
    names = list(official)
    has_adapter = any(name.startswith("backbone.spm.") for name in names)
    found = {name: SEGMENTER_KEYS.ours(OLD_NAMES.get(name, name)) for name in names}
    return {
        ours: name
        for name, ours in found.items()
        if ours is not None and part_of(name, has_adapter=has_adapter) == "segmenter"
    }


@dataclass(frozen=True, slots=True)
class Reshaped:
    """A tensor of the right name and another shape, such as a class head of other categories."""

    name: str
    found: Shape
    expected: Shape


@dataclass(frozen=True, slots=True)
class Imported:
    """An official checkpoint under our names, and everything about it that does not fit.

    ``tensors`` holds what a module of the expected shapes can load; ``backbone``, ``tracker`` and
    ``refiner`` hold what belongs elsewhere, under official names.
    """

    tensors: dict[str, Tensor]
    backbone: dict[str, Tensor]
    tracker: dict[str, Tensor]
    refiner: dict[str, Tensor]
    missing: tuple[str, ...]  # our names that the checkpoint lacks
    extra: tuple[str, ...]  # official names that have no place in this model
    reshaped: tuple[Reshaped, ...]  # our names

    @property
    def is_complete(self) -> bool:
        """Whether every expected tensor came in, and nothing was left over."""
        return not (self.missing or self.extra or self.reshaped)


def import_official(checkpoint: Mapping[str, Tensor], expected: Mapping[str, Shape]) -> Imported:
    """Returns a checkpoint sorted by what it belongs to, the segmenter under our names.

    Args:
        checkpoint: Tensors under official names.
        expected: Shapes under our names: those of a ``Segmenter``'s state, and of its criterion's
            under ``criterion.`` where its weights are wanted.
    """
    has_adapter = any(name.startswith("backbone.spm.") for name in checkpoint)
    parts: dict[Part, dict[str, Tensor]] = {}
    for name, tensor in checkpoint.items():
        parts.setdefault(part_of(name, has_adapter=has_adapter), {})[name] = tensor
    tensors: dict[str, Tensor] = {}
    extra = list(parts.get("unknown", ()))
    reshaped: list[Reshaped] = []
    for name, tensor in parts.get("segmenter", {}).items():
        ours = SEGMENTER_KEYS.ours(OLD_NAMES.get(name, name))
        assert ours is not None
        found = tuple(tensor.shape)
        if ours not in expected:
            extra.append(name)
        elif found != tuple(expected[ours]):
            reshaped.append(Reshaped(ours, found, tuple(expected[ours])))
        else:
            tensors[ours] = tensor
    told = tensors.keys() | {entry.name for entry in reshaped}
    return Imported(
        tensors=tensors,
        backbone=parts.get("backbone", {}),
        tracker=parts.get("tracker", {}),
        refiner=parts.get("refiner", {}),
        missing=tuple(sorted(expected.keys() - told)),
        extra=tuple(sorted(extra)),
        reshaped=tuple(sorted(reshaped, key=lambda entry: entry.name)),
    )


def export_official(
    tensors: Mapping[str, Tensor], others: Iterable[Mapping[str, Tensor]] = ()
) -> dict[str, Tensor]:
    """Returns tensors under official names.

    Args:
        tensors: Those of a segmenter (and its criterion), under our names.
        others: Tensors that keep their official names: a backbone's, a tracker's, a refiner's.

    Raises:
        WeightsError: a tensor has no official name, such as those of MRFP.
    """
    names = {ours: SEGMENTER_KEYS.official(ours) for ours in tensors}
    nameless = sorted(ours for ours, official in names.items() if official is None)
    if nameless:
        shown = ", ".join(f"'{name}'" for name in nameless[:3])
        raise WeightsError(
            f"{len(nameless)} tensors have no official name (first: {shown}); expected a segmenter "
            f"with ViT-Adapter or a pyramid backbone."
        )
    exported = {official: tensors[ours] for ours, official in names.items() if official is not None}
    for other in others:
        exported.update(other)
    return exported
