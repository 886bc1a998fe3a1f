"""An official checkpoint's file: where the model lies in it, and what else does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fcache.backbones.checkpoint import Tensors, open_checkpoint
from fcache.errors import ConfigError, WeightsError
from fcache.models.official import SEGMENTER_KEYS, VIT, Imported, import_official

HEAD = "sem_seg_head."  # what every official segmenter has
FAMILY = "Mask2Former, MinVIS, CTVIS, DVIS or DVIS++"


@dataclass(frozen=True, slots=True)
class OfficialFile:
    """An official checkpoint: names below what its own file nests them in."""

    opened: Tensors
    prefix: str

    @property
    def names(self) -> list[str]:
        """Official names of everything that lies beside the segmenter."""
        whole = self.opened.shapes
        return [name.removeprefix(self.prefix) for name in whole if name.startswith(self.prefix)]

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one tensor."""
        return tuple(self.opened.shapes[self.prefix + name])

    def read(self, name: str) -> Tensor:
        """One tensor, in its own type."""
        return self.opened.read(self.prefix + name).contiguous()

    def empty(self) -> dict[str, Tensor]:
        """Every tensor without its values."""
        return {name: torch.empty(self.shape(name), device="meta") for name in self.names}

    def other_names(self) -> list[str]:
        """What belongs to the backbone, the tracker or the refiner."""
        sorted_out = import_official(self.empty(), {})
        return [*sorted_out.backbone, *sorted_out.tracker, *sorted_out.refiner]


def open_official(path: Path) -> OfficialFile:
    """Returns the model in a file, no value read yet.

    Raises:
        WeightsError: the file cannot be read, or holds no official segmenter.
    """
    opened = open_checkpoint(path, exact=True, key="")
    # A trainer's file nests the model beside its optimizer: "model.", "state_dict.module.", ...
    found = Counter(name.partition(HEAD)[0] for name in opened.shapes if f".{HEAD}" in f".{name}")
    if found:
        return OfficialFile(opened, min(found, key=lambda prefix: (-found[prefix], len(prefix))))
    if any(SEGMENTER_KEYS.official(name) for name in opened.shapes):
        raise WeightsError(
            f"'{path}' has fcache's own names already; expected a checkpoint of {FAMILY}.",
            run=f"fcache train stage=segmenter init='{path}'",
        )
    raise WeightsError(
        f"'{path}' holds no segmenter: none of its {len(opened.shapes)} tensors is below "
        f"'{HEAD}' {shown(opened.shapes)}; expected a checkpoint of {FAMILY}."
    )


def shown(names: Mapping[str, object]) -> str:
    """Returns the first names, for the text of an error."""
    return f"(first: {', '.join(repr(name) for name in sorted(names)[:2])})"


def vit_names(found: Imported, source: Path) -> dict[str, str]:
    """Returns names as in the ViT's own files -> official names.

    Raises:
        ConfigError: the backbone is no plain ViT.
    """
    vit = {name.removeprefix(VIT): name for name in found.backbone if name.startswith(VIT)}
    if not vit:
        held = shown(found.backbone) if found.backbone else "at all"
        raise ConfigError(
            f"--backbone: '{source}' holds no '{VIT}' tensors {held}; only a plain ViT is "
            "written for 'fcache extract', whose pyramid backbones read timm's own files."
        )
    return vit
