"""Versions of the libraries that decide pixels: provenance, a difference of which warns."""

from __future__ import annotations

from collections.abc import Collection

import av
import PIL

from fcache.manifest import SourceKind


def decoder_versions(kinds: Collection[SourceKind]) -> dict[str, str]:
    """Returns the libraries that read sources of some kinds and draw canvases, with versions.

    Every canvas is resized by Pillow; only videos are decoded by PyAV, whose FFmpeg counts.
    """
    found = {"pillow": PIL.__version__}
    if "video" in kinds:
        codec = ".".join(map(str, av.library_versions["libavcodec"]))
        found["pyav"] = f"{av.__version__}, libavcodec {codec}"
    return found
