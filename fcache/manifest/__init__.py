"""Manifests: what goes into a job. Facts only; choices live in recipes.

A manifest names the videos (or images) of a data set with their content hashes, the splits, the
categories and where the labels lie. ``fcache data init`` writes one; ``manifests/`` ships the
categories and layouts of the data sets of the paper. Every cache embeds the manifest it was built
from.

A manifest is a TOML file, or JSON with the same keys for many videos: Python's TOML reader takes
seconds for 100,000 of them. The manifest's hash does not depend on the form.
"""

from fcache.manifest.published import Board, PublishedRow, load_board, load_boards
from fcache.manifest.reading import (
    MANIFEST_SUFFIXES,
    load_manifest,
    manifest_names,
    names_manifest,
    parse_manifest,
)
from fcache.manifest.schema import (
    Category,
    Labels,
    Layout,
    Manifest,
    SourceKind,
    Video,
)

__all__ = [
    "MANIFEST_SUFFIXES",
    "Board",
    "Category",
    "Labels",
    "Layout",
    "Manifest",
    "PublishedRow",
    "SourceKind",
    "Video",
    "load_board",
    "load_boards",
    "load_manifest",
    "manifest_names",
    "names_manifest",
    "parse_manifest",
]
