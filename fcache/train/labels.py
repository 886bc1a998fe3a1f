"""The labels a command works with where none are named: those the cache was built from."""

from __future__ import annotations

from fcache.data.labels import LabelReader
from fcache.errors import ConfigError
from fcache.manifest import Manifest
from fcache.store.cache import View


def embedded_labels(view: View, command: str) -> LabelReader:
    """Returns the labels of the newest manifest with labels that the view was built from.

    Args:
        view: Where features lie.
        command: What asks, such as ``probe``; named in the error.

    Raises:
        ConfigError: there is none.
    """
    manifests = [Manifest.model_validate(content) for content in view.index.manifests()]
    labelled = [manifest for manifest in manifests if manifest.labels]
    if not labelled:
        raise ConfigError(
            f"view {view.key} was built from a manifest without labels; give labels=DIR.",
            run=f"fcache {command} '{view.folder.parent}' labels=DIR",
        )
    return LabelReader.from_manifest(labelled[-1])
