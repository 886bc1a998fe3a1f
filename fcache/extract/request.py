"""From the words of a command line to a plan: recipe, manifest, sources, identity."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fcache.backbones.build import describe, weights_hash
from fcache.config import (
    ExtractConfig,
    layered,
    load_recipe,
    read_overrides,
    resolve,
    split_overrides,
)
from fcache.errors import CacheError, ConfigError
from fcache.extract.calibrate import Calibration
from fcache.extract.identity import inherited, view_identity
from fcache.extract.plan import ExtractPlan, KnownSource
from fcache.extract.survey import make_plan
from fcache.manifest import Manifest, Video, load_manifest, names_manifest
from fcache.sources.listing import Source, scan, scan_manifest
from fcache.store.index import ViewIndex

# Settings that only change what the weights' hash is, not what else the identity says.
WEIGHTS_KEYS = {"model", "weights", "blocks"}


@dataclass(frozen=True, slots=True)
class ExtractRequest:
    """What is to be extracted, how, and out of which manifest.

    Attributes:
        notes: Path and reason of what was passed over in the folders given.
        calibration: The channel scales of int8, once they are known.
    """

    config: ExtractConfig
    manifest: Manifest
    sources: tuple[KnownSource, ...]
    identity: Mapping[str, Any]
    notes: tuple[tuple[str, str], ...] = ()
    calibration: Calibration | None = None

    def calibrated(self, calibration: Calibration) -> ExtractRequest:
        """Returns the request of int8 with the channel scales that its identity needs."""
        identity = {**self.identity, "calibration": calibration.sha256}
        return replace(self, identity=identity, calibration=calibration)


def read_request(words: Sequence[str]) -> ExtractRequest:
    """Reads sources and ``key=value`` settings.

    Besides the settings of ``ExtractConfig``: ``recipe=NAME|PATH``, ``manifest=NAME|PATH`` and
    ``root=DIR``. A single word that ends in ``.toml`` or ``.json``, or that only a shipped manifest
    is called, is a manifest. Where several say the same, the command line stands over the
    manifest's sampling, and that over the recipe.

    Raises:
        ConfigError: something named does not exist, or settings are wrong.
        WeightsError: the weights cannot be found, or do not fit the model.
    """
    plain, overrides = split_overrides(words)
    recipe = load_recipe(overrides.pop("recipe", "") or "extract")
    name, root = overrides.pop("manifest", ""), overrides.pop("root", "")
    if not name and len(plain) == 1 and names_manifest(plain[0]):
        name = plain.pop()
    if name and plain:
        raise ConfigError(f"manifest={name} says what goes in; '{plain[0]}' cannot join it.")
    if root and not name:
        raise ConfigError(
            f"root={root} is where a manifest's paths count from; give manifest= too."
        )
    manifest = load_manifest(name, Path(root) if root else None) if name else None
    if manifest:
        recipe = layered(ExtractConfig, recipe, manifest.sampling)
    config = _with_absolute_weights(resolve(ExtractConfig, recipe, overrides))
    listing = scan_manifest(manifest) if manifest else scan(plain)
    manifest = manifest or Manifest(name=Path(plain[0]).name or "videos")
    known = {video.id: video for video in manifest.videos}
    sources = [
        _known(source, known.get(source.video_id))
        for source in listing.sources
        if config.split in (None, source.split)
    ]
    if not sources:
        splits = sorted({source.split for source in listing.sources if source.split})
        raise ConfigError(
            f"split={config.split} of {name or plain} holds no video; expected one of: "
            f"{', '.join(splits) or 'none, since no split is known'}."
        )
    description = describe(config.backbone)
    if config.mix and description.kind != "vit":
        raise ConfigError(
            f"mix=true: model='{config.model}' is a pyramid, whose layers look at neighbouring "
            "tokens, so that it computes images of one size at a time; expected a plain ViT."
        )
    sha256, _ = weights_hash(config.backbone)
    identity = view_identity(config, description, sha256)
    return ExtractRequest(config, manifest, tuple(sources), identity, tuple(listing.notes))


def _with_absolute_weights(config: ExtractConfig) -> ExtractConfig:
    """Workers may run in another folder, and the view remembers its recipe."""
    path = Path(config.weights)
    if path.suffix and path.is_file():
        return config.model_copy(update={"weights": str(path.absolute())})
    return config


def plan_request(
    request: ExtractRequest,
    cache: Path,
    *,
    retry_failed: bool = False,
    trust_manifest: bool = False,
    first: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[ExtractPlan, Manifest]:
    """Returns the plan, and the manifest as the cache will keep it: with sizes and hashes.

    Args:
        first: Only the first so many readable videos.
    """
    plan = make_plan(
        cache,
        request.identity,
        request.sources,
        request.config,
        retry_failed=retry_failed,
        trust_manifest=trust_manifest,
        first=first,
        progress=progress,
    )
    return replace(plan, calibration=request.calibration), _completed(request, plan)


def changed_identity(index: ViewIndex, words: Sequence[str]) -> dict[str, Any]:
    """Returns the identity that a view's own recipe would have with some settings changed.

    Raises:
        CacheError: the view does not know its recipe.
        ConfigError, WeightsError: the settings are wrong, or the weights cannot be had.
    """
    recorded = index.attributes["provenance"].get("recipe")
    if recorded is None:
        raise CacheError(f"view {index.folder.name} does not record the recipe it was made with.")
    overrides = read_overrides(words)
    config = resolve(ExtractConfig, recorded, overrides)
    sha256 = index.identity["backbone"]["weights_sha256"]
    if WEIGHTS_KEYS & set(overrides):
        sha256, _ = weights_hash(config.backbone)
    identity = view_identity(config, describe(config.backbone), sha256)
    if config.dtype == "int8":
        calibration = inherited(index.folder.parent, identity)
        identity["calibration"] = calibration.sha256 if calibration else "none yet"
    return identity


def _known(source: Source, video: Video | None) -> KnownSource:
    if video is None:
        return KnownSource(source)
    return KnownSource(source, video.sha256, video.num_frames, video.height, video.width)


def _completed(request: ExtractRequest, plan: ExtractPlan) -> Manifest:
    """The request's manifest with every video that was looked at, those in quarantine too."""
    known = {one.source.video_id: one for one in request.sources}
    found = {
        one.source.video_id: _video(one.sha256, known[one.source.video_id]) for one in plan.rejected
    }
    for planned in {one.source.video_id: one for one in plan.sources}.values():
        at, video_id = planned.request, planned.source.video_id
        sized = replace(
            known[video_id],
            height=int(at.placement["source_h"]),
            width=int(at.placement["source_w"]),
        )
        if not at.selection:  # else it counts the selected frames, not what the container says
            sized = replace(sized, num_frames=at.expected_frames + len(at.borrowed))
        found[video_id] = _video(planned.sha256, sized)
    videos = tuple(found[video_id] for video_id in known if video_id in found)
    return request.manifest.model_copy(update={"videos": videos})


def _video(sha256: str | None, known: KnownSource) -> Video:
    source = known.source
    return Video(
        id=source.video_id,
        path=str(source.path),
        kind=source.kind,
        sha256=sha256,
        split=source.split,
        num_frames=known.num_frames,
        height=known.height,
        width=known.width,
    )
