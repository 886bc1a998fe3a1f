"""From the words of a command line to a plan: recipe, manifest, sources, identity."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fcache.backbones.build import describe, weights_hash
from fcache.config import ExtractConfig, load_recipe, resolve, split_overrides
from fcache.errors import CacheError, ConfigError
from fcache.extract.identity import view_identity
from fcache.extract.plan import ExtractPlan, KnownSource, make_plan
from fcache.manifest import Manifest, Video, load_manifest
from fcache.sources.listing import Source, from_manifest, list_sources
from fcache.store.index import ViewIndex

# Settings that only change what the weights' hash is, not what else the identity says.
WEIGHTS_KEYS = {"model", "weights", "blocks"}


@dataclass(frozen=True, slots=True)
class ExtractRequest:
    """What is to be extracted, how, and out of which manifest."""

    config: ExtractConfig
    manifest: Manifest
    sources: tuple[KnownSource, ...]
    identity: Mapping[str, Any]


def read_request(words: Sequence[str]) -> ExtractRequest:
    """Reads sources and ``key=value`` settings.

    Besides the settings of ``ExtractConfig``: ``recipe=NAME|PATH``, ``manifest=NAME|PATH`` and
    ``root=DIR``. A word that ends in ``.toml`` is a manifest. Where several say the same, the
    command line stands over the manifest's sampling, and that over the recipe.

    Raises:
        ConfigError: something named does not exist, or settings are wrong.
        WeightsError: the weights cannot be found, or do not fit the model.
    """
    plain, overrides = split_overrides(words)
    recipe = load_recipe(overrides.pop("recipe", "") or "extract")
    name, root = overrides.pop("manifest", ""), overrides.pop("root", "")
    if not name and len(plain) == 1 and plain[0].endswith(".toml"):
        name = plain.pop()
    if name and plain:
        raise ConfigError(f"manifest={name} says what goes in; '{plain[0]}' cannot be added to it.")
    manifest = load_manifest(name, Path(root) if root else None) if name else None
    sampling = {key: str(value) for key, value in manifest.sampling.items()} if manifest else {}
    config = resolve(ExtractConfig, recipe, {**sampling, **overrides})
    sources = _from_manifest(manifest) if manifest else [*map(KnownSource, list_sources(plain))]
    if config.split is not None:
        sources = [known for known in sources if known.source.split == config.split]
    if not sources:
        what = f"split={config.split} of {name or plain}"
        raise ConfigError(f"{what} holds no video; nothing would be extracted.")
    description = describe(config.backbone)
    sha256, _ = weights_hash(config.backbone)
    return ExtractRequest(
        config=config,
        manifest=manifest or Manifest(name=Path(plain[0]).name or "videos"),
        sources=tuple(sources),
        identity=view_identity(config, description, sha256),
    )


def plan_request(
    request: ExtractRequest,
    cache: Path,
    *,
    retry_failed: bool = False,
    first: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[ExtractPlan, Manifest]:
    """Returns the plan, and the manifest as the cache will keep it: with sizes and hashes.

    Args:
        first: Only the first so many readable videos.
    """
    sources = request.sources
    plan = make_plan(
        cache,
        request.identity,
        sources,
        request.config,
        retry_failed=retry_failed,
        progress=progress,
    )
    if first is not None:
        plan = replace(plan, sources=plan.sources[:first], rejected=())
    return plan, _completed(request.manifest, plan)


def changed_identity(index: ViewIndex, words: Sequence[str]) -> dict[str, Any]:
    """Returns the identity that a view's own recipe would have with some settings changed.

    Raises:
        CacheError: the view does not know its recipe.
        ConfigError, WeightsError: the settings are wrong, or the weights cannot be had.
    """
    recorded = index.attributes["provenance"].get("recipe")
    if recorded is None:
        raise CacheError(f"view {index.folder.name} does not record the recipe it was made with.")
    plain, overrides = split_overrides(words)
    if plain:
        raise ConfigError(f"'{plain[0]}' is no setting; expected key=value.")
    config = resolve(ExtractConfig, recorded, overrides)
    sha256 = index.identity["backbone"]["weights_sha256"]
    if WEIGHTS_KEYS & set(overrides):
        sha256, _ = weights_hash(config.backbone)
    return view_identity(config, describe(config.backbone), sha256)


def _from_manifest(manifest: Manifest) -> list[KnownSource]:
    sources = from_manifest(manifest)
    known = {video.id: video for video in manifest.videos}
    return [_known(source, known.get(source.video_id)) for source in sources]


def _known(source: Source, video: Video | None) -> KnownSource:
    if video is None:
        return KnownSource(source)
    return KnownSource(source, video.sha256, video.num_frames, video.height, video.width)


def _completed(manifest: Manifest, plan: ExtractPlan) -> Manifest:
    """The manifest with every planned video in it."""
    videos = [
        Video(
            id=planned.source.video_id,
            path=str(planned.source.path),
            kind=planned.source.kind,
            sha256=planned.sha256,
            split=planned.source.split,
            num_frames=planned.request.expected_frames,
            height=int(planned.request.placement["source_h"]),
            width=int(planned.request.placement["source_w"]),
        )
        for planned in plan.sources
    ]
    return manifest.model_copy(update={"videos": tuple(videos)})
