"""What a view is, in words and numbers for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fcache.store.cache import View
    from fcache.store.identity import Difference

Lines = list[tuple[str, str]]


def identity_lines(view: View, num_crops: int) -> Lines:
    """What decides the values of a view, a line for each part of it."""
    identity = view.identity
    backbone, layout = identity["backbone"], view.index.layout
    recipe = view.index.attributes["provenance"].get("recipe", {})
    weights = recipe.get("weights", "unknown")
    untrained = "  UNTRAINED" if str(weights).startswith("random:") else ""
    kind = "plain ViT" if layout.plain else "pyramid"
    normalised = identity["normalisation"]
    return [
        ("key", view.key),
        *_copied(view),
        ("backbone", f"{backbone['model']} ({kind})"),
        ("weights", f"{weights}{untrained}  sha256 {backbone['weights_sha256'][:16]}"),
        ("stages", _stages(view)),
        ("values", f"{identity['dtype']}, computed in {identity['compute_dtype']}"),
        *_scales(view),
        ("view", geometry_words(identity["view"], num_crops)),
        ("normalised", f"mean {normalised['mean']}, std {normalised['std']}"),
        ("decoded by", ", ".join(f"{kind}: {name}" for kind, name in identity["decoder"].items())),
    ]


def geometry_words(geometry: Mapping[str, Any], num_crops: int) -> str:
    """How frames lie on their canvas; of crops, where they come from."""
    rest = {key: value for key, value in geometry.items() if value not in (None, False)}
    said = []
    if "crop" in rest:
        height, width = rest.pop("crop")
        drawn = f"{num_crops} draw{'s' * (num_crops != 1)} of seed {rest.pop('crop_seed', 0)}"
        said.append(f"crop {height}x{width} of short side {rest.pop('short_side')}, {drawn}")
    if "size" in rest:
        height, width = rest.pop("size")
        said.append(f"size={height}x{width}")
    return ", ".join([*said, *(f"{key}={value}" for key, value in rest.items())])


def difference_words(difference: Difference) -> str:
    """A field in which two identities differ; that one is a copy's is said in words."""
    if difference.field != "derived_from":
        return str(difference)
    ours, theirs = (
        f"a copy of view {parent}" if parent else "computed from the sources"
        for parent in (difference.ours, difference.theirs)
    )
    return f"derived_from: {ours} -> {theirs}"


def error_table(errors: Sequence[Mapping[str, float]]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of what a stored type costs, a row a stage; see ``stored_errors``."""
    columns = {
        "REL L2": "relative_l2",
        "BULK REL L2": "bulk_relative_l2",
        "COSINE": "cosine",
        "WORST TOKEN": "worst_token",
    }
    shown = {head: name for head, name in columns.items() if all(name in one for one in errors)}
    rows = [
        [str(stage), *(_shown(name, one[name]) for name in shown.values())]
        for stage, one in enumerate(errors)
    ]
    return ["STAGE", *shown], rows


def time_words(seconds: Mapping[str, float]) -> str:
    """Where the time of those who wrote a view went, the largest part first; empty if unknown."""
    total = sum(seconds.values())
    doing = _COPYING if "read" in seconds else _EXTRACTING
    parts = sorted(seconds.items(), key=lambda part: -part[1])
    shares = [(round(100 * spent / total), doing[name]) for name, spent in parts if total]
    shares = [(percent, what) for percent, what in shares if percent]
    if not shares:
        return ""
    (percent, what), *others = shares
    return f"{percent} % of the workers' time {what}" + "".join(
        f", {percent} % {what}" for percent, what in others
    )


_EXTRACTING = {
    "decode": "waiting for decoded frames",
    "compute": "in the network",
    "write": "waiting for the disk",
}
_COPYING = {"read": "reading", "compute": "converting", "write": "waiting for the disk"}


def _copied(view: View) -> Lines:
    parent = view.identity.get("derived_from")
    if parent is None:
        return []
    dtype = view.index.attributes["provenance"]["copied_from"]["dtype"]
    return [("copied", f"from view {parent} ({dtype}); an extraction makes another view")]


def _stages(view: View) -> str:
    layout = view.index.layout
    if layout.plain:
        blocks = ", ".join(str(block) for block in view.identity["backbone"]["blocks"])
        return f"after blocks {blocks}: {layout.channels[0]} ch, {layout.strides[0]} px a token"
    return "  ".join(
        f"{channels} ch at stride {stride}"
        for channels, stride in zip(layout.channels, layout.strides, strict=True)
    )


def _scales(view: View) -> Lines:
    found = view.index.attributes.get("calibration")
    if found is None:
        return []
    of = f"the largest values in {found['num_frames']:,} frames"
    return [("scales", f"{of}  sha256 {found['sha256'][:16]}")]


def _shown(name: str, value: float) -> str:
    return f"{value:.6f}" if name == "cosine" else f"{100 * value:.3g} %"
