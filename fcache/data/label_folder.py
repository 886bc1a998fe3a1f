"""Labels in a bare folder, without a manifest: the places where data sets keep them.

A semantic mask of video V, frame F is looked for at ``V/semantic/F.png`` (also ``mask``, ``masks``,
``labels``, ``annotations``), ``semantic/V/F.png`` and so on, then ``V/F.png``, and ``V.png`` for a
single image: the folder may hold the images too. Panoptic PNGs need JSON whose name holds
``panoptic``, in the folder, in its ``annotations``, or beside a video's own folders.

Categories, in model order: ``categories.json`` in the folder or up to two above, as it lists them;
else those of the panoptic JSON, things first, each group by ascending id (the order of the shipped
VIPSeg, VSPW and COCO manifests); else one for each value from 0 to the highest found. 255 is void.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from fcache.data.label_images import ONE_CHANNEL_MODES, label_header, read_mask
from fcache.data.panoptic_json import read_categories, read_segments
from fcache.errors import ConfigError, LabelError
from fcache.manifest import Category, Labels

VOID = 255
MAX_SCANNED = 2000  # masks read to find the values of a folder without categories
_SEMANTIC_NAMES = ("semantic", "mask", "masks", "label", "labels", "annotations", "Annotations")
_PANOPTIC_NAMES = ("panoptic", "panomasksRGB", "panoptic_masks")
_NAMES = frozenset({*_SEMANTIC_NAMES, *_PANOPTIC_NAMES})
_IMAGE_FOLDERS = frozenset({"images", "frames", "imgs", "origin", "rgb", "JPEGImages"})


class NoLabelsError(ConfigError):
    """A folder in which nothing looks like a label."""


def labels_in_folder(
    folder: Path, *, single_video: bool = False, beside_images: bool = False
) -> tuple[tuple[Labels, ...], tuple[Category, ...]]:
    """Returns where labels may lie in ``folder`` (patterns to be tried in order) and categories.

    Args:
        folder: The label folder.
        single_video: Whether there is one video only, whose masks may lie in the folder itself.
        beside_images: Whether the folder holds the images too, so that only folders named after
            labels count as such.

    Raises:
        NoLabelsError: nothing that looks like labels is there.
        ConfigError: values and categories cannot be told from what is there.
        LabelError: the categories or a label cannot be read.
    """
    json_paths = _panoptic_json(folder)
    listed = _categories_file(folder)
    categories = listed or ()
    if listed is None and json_paths:
        categories = read_segments(json_paths[0]).categories
        categories = tuple(sorted(categories, key=lambda row: (not row.isthing, row.id)))
    if not categories:
        categories = _categories_of_values(folder, beside_images=beside_images)
    named = [f"{{video}}/{name}/{{frame}}.png" for name in _SEMANTIC_NAMES]
    named += [f"{name}/{{video}}/{{frame}}.png" for name in _SEMANTIC_NAMES]
    bare = ["{video}/{frame}.png", "{video}.png", *(["{frame}.png"] if single_video else [])]
    # A list of categories need not name void values: CamVid's does not name its 11.
    unlisted: Literal["error", "void"] = "error" if listed is None else "void"
    void = () if any(category.id == VOID for category in categories) else (VOID,)
    labels = [
        Labels(format="semantic", path=path, void=void, unlisted=unlisted)
        for path in (named if beside_images else [*named, *bare])
    ]
    for json_path in json_paths:
        labels += _panoptic_places(folder, json_path, beside_images=beside_images)
    return tuple(dict.fromkeys(labels)), categories


def _panoptic_places(folder: Path, json_path: Path, *, beside_images: bool) -> Iterator[Labels]:
    relative = json_path.relative_to(folder)
    shared = relative.parent.name in {"", "annotations"}
    written = str(relative) if shared else f"{{video}}/{relative.name}"
    places = [f"{relative.stem}/{{frame}}.png"]
    places += [f"{relative.with_suffix('')}/{{frame}}.png"] if shared else []
    places += [f"{{video}}/{name}/{{frame}}.png" for name in _PANOPTIC_NAMES]
    places += [f"{name}/{{video}}/{{frame}}.png" for name in _PANOPTIC_NAMES]
    places += [] if beside_images else ["{video}/{frame}.png"]
    for path in places:
        yield Labels(format="panoptic", path=path, json_path=written)


def _panoptic_json(folder: Path) -> list[Path]:
    found = [
        path
        for pattern in ("*.json", "*/*.json", "*/*/*.json")
        for path in sorted(folder.glob(pattern))
        # A brace in a name would read as a field of the pattern.
        if "panoptic" in path.name.lower() and not {"{", "}"} & set(path.name)
    ]
    with_segments = [path for path in found if "categor" not in path.name.lower()]
    # Per-video files of one name are one pattern; the first stands for them.
    return list({_pattern_key(path, folder): path for path in reversed(with_segments)}.values())


def _pattern_key(path: Path, folder: Path) -> str:
    relative = path.relative_to(folder)
    return str(relative) if relative.parent.name in {"", "annotations"} else f"*/{relative.name}"


def _categories_file(folder: Path) -> tuple[Category, ...] | None:
    for place in (folder, *folder.parents[:2]):
        path = place / "categories.json"
        if not path.is_file():
            continue
        try:
            table = json.loads(path.read_bytes())
            return read_categories(table["categories"] if isinstance(table, dict) else table)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise LabelError(
                f"'{path}' is not a list of categories with 'id' and 'name': {error!r}."
            ) from error
    return None


def _categories_of_values(folder: Path, *, beside_images: bool) -> tuple[Category, ...]:
    pngs = _pngs(folder)
    named = [path for path in pngs if _NAMES & set(path.relative_to(folder).parts[:-1])]
    pngs = named if named or beside_images else pngs
    masks = [path for path in pngs if label_header(path)[1] in ONE_CHANNEL_MODES]
    if not masks:
        raise NoLabelsError(
            f"label folder '{folder}' holds no label: expected one-channel PNGs such as "
            "VIDEO/FRAME.png, or RGB PNGs with panoptic JSON; or give a manifest."
        )
    highest = -1
    for path in masks[:: -(-len(masks) // MAX_SCANNED)]:
        values = read_mask(path)
        inside = values[values != VOID]
        highest = max(highest, int(inside.max()) if inside.size else -1)
    if highest < 0:
        raise ConfigError(f"the masks in '{folder}' hold void ({VOID}) only.")
    if highest > VOID:
        raise ConfigError(
            f"masks in '{folder}' hold values up to {highest}; expected category values 0 to 254 "
            "and 255 for void, or a categories.json that names the values."
        )
    return tuple(
        Category(id=value, name=f"class {value}", isthing=False) for value in range(highest + 1)
    )


def _pngs(folder: Path) -> list[Path]:
    found: list[Path] = []
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(
            name for name in folders if name not in _IMAGE_FOLDERS and not name.startswith(".")
        )
        found += [Path(place, name) for name in sorted(files) if name.lower().endswith(".png")]
    return found
