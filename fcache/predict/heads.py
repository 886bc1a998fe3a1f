"""Trained heads: a run's checkpoint, or imported weights, ready to predict on a view."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fcache.backbones.identity import load_same
from fcache.backbones.trained import TrainedPyramid
from fcache.config import PredictConfig, SegmenterConfig
from fcache.data.footage import AnyView
from fcache.errors import CacheError, ConfigError, WeightsError
from fcache.manifest import Category, Manifest, load_manifest
from fcache.models.outline import CLASS_WEIGHT, Outline, outline_of
from fcache.store.cache import View
from fcache.store.layout import ViewLayout
from fcache.train.build import build_segmenter
from fcache.train.checkpoint import Checkpoints, Saved, load_model, read_tensors
from fcache.train.head import HeadFacts, read_head
from fcache.train.live import TrainedSegmenter
from fcache.train.run_folder import RunFolder
from fcache.train.scores import BEST_BY
from fcache.train.source import live_settings, trains_backbone

SUFFIX = ".safetensors"


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """A segmenter that predicts.

    Attributes:
        name: What its predictions are called beside those of others.
        path: The run's folder, or the file.
        module: On its device, in evaluation mode.
        categories: In model order.
        labels: Which labels it was trained on; None where that is not known.
        sha256: Of its weights.
        step: Of its checkpoint; None for imported weights.
        reads_pixels: Whether it holds a backbone of its own, and reads pixels alone.
        notes: What is to be said about it.
    """

    name: str
    path: Path
    module: nn.Module
    categories: tuple[Category, ...]
    labels: str | None
    sha256: str
    step: int | None
    reads_pixels: bool
    notes: tuple[str, ...]

    @property
    def num_queries(self) -> int:
        """Q."""
        decoder: Any = self.module.masked_decoder
        return int(decoder.query_features.num_embeddings)


def open_heads(
    paths: Sequence[Path], view: AnyView, config: PredictConfig, device: torch.device
) -> list[Head]:
    """Loads heads and checks that they read what the view holds.

    Args:
        paths: Runs' folders, or ``.safetensors`` files that ``fcache weights import`` wrote.
        view: What they predict on.
        config: Which checkpoint of a run, and which categories.
        device: Where they compute.

    Raises:
        CacheError: a head was trained on another backbone than the view's; both are shown.
        ConfigError: no head, two of one name, no checkpoint, or no categories.
        WeightsError: weights are damaged, or of another architecture.
    """
    if not paths:
        raise ConfigError("nothing says what predicts; expected a run's folder.")
    heads = [
        _of_run(path, view, config, device) if path.is_dir() else _of_file(path, view, config)
        for path in paths
    ]
    names = [head.name for head in heads]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(
                f"{names.count(name)} heads are called '{name}', which is where their predictions "
                "go; expected different names of folders."
            )
    for head in heads:
        head.module.to(device).eval().requires_grad_(False)
    return heads


def is_head(path: Path) -> bool:
    """Says whether a path is a run's folder or a file of weights."""
    return RunFolder(path).exists or (path.suffix == SUFFIX and path.is_file())


def _of_run(path: Path, view: AnyView, config: PredictConfig, device: torch.device) -> Head:
    folder = RunFolder(path)
    if not folder.exists:
        raise ConfigError(f"'{path}' is no run; expected a folder that 'fcache train' wrote.")
    trained, facts, told = folder.config(SegmenterConfig), folder.facts(), read_head(path)
    reads_pixels = trains_backbone(trained)
    _check_view(path, told, view, has_backbone=reads_pixels)
    labels = str(facts["labels"])
    saved, notes = _checkpoint(folder, labels, config)
    module = build_segmenter(trained, view.layout, len(told.categories))
    if reads_pixels:
        # For its structure: the weights that were trained are in the checkpoint.
        settings = live_settings(trained, view, is_trained=True)
        backbone = load_same(view.identity, settings, device=device)
        module = TrainedSegmenter(module, TrainedPyramid.of(backbone))
    load_model(saved.model, module)
    return Head(
        name=path.resolve().name,
        path=path,
        module=module,
        categories=_named(config, len(told.categories)) or told.categories,
        labels=labels,
        sha256=_sha256(saved.model),
        step=saved.step,
        reads_pixels=reads_pixels,
        notes=tuple(notes),
    )


def _of_file(path: Path, view: AnyView, config: PredictConfig) -> Head:
    if path.suffix != SUFFIX or not path.is_file():
        raise ConfigError(
            f"'{path}' is no run and no {SUFFIX} file; expected a folder that 'fcache train' "
            "wrote, or what 'fcache weights import' did.",
            run=f"fcache weights import '{path}' -o '{path.stem}{SUFFIX}'"
            if path.is_file()
            else None,
        )
    shapes = {name: tuple(tensor.shape) for name, tensor in read_tensors(path).items()}
    try:
        outline = outline_of(shapes)
    except WeightsError as error:
        raise WeightsError(
            f"'{path}': {error.message}", run=f"fcache weights import '{path}' -o FILE{SUFFIX}"
        ) from None
    _check_layout(path, outline, view.layout, view.key)
    module = outline.build().to_empty(device="cpu")
    load_model(path, module, without=(CLASS_WEIGHT,))
    categories = _named(config, outline.num_categories) or _of_view(view, outline.num_categories)
    note = (
        f"'{path}' does not say which backbone it was trained on; its channels fit those of view "
        f"{view.key}"
    )
    return Head(
        name=path.stem,
        path=path,
        module=module,
        categories=categories,
        labels=None,
        sha256=_sha256(path),
        step=None,
        reads_pixels=False,
        notes=(note,),
    )


def _checkpoint(folder: RunFolder, labels: str, config: PredictConfig) -> tuple[Saved, list[str]]:
    checkpoints = Checkpoints(folder.checkpoints, BEST_BY[labels])
    last = checkpoints.last
    if last is None:
        raise ConfigError(f"run '{folder.path}' has no checkpoint yet; expected it to train first.")
    if config.checkpoint == "last":
        return last, []
    best = checkpoints.best
    told = f"run '{folder.path}' was not validated yet: its last checkpoint serves as its best"
    return (best, []) if best is not None else (last, [told])


def _check_view(path: Path, told: HeadFacts, view: AnyView, *, has_backbone: bool) -> None:
    misfits = [
        field
        for field in told.misfits(view.identity)
        if not (has_backbone and field.field == "backbone.weights_sha256")
    ]
    if misfits:
        ours, theirs = told.backbone["model"], view.identity["backbone"]["model"]
        more = f", and {len(misfits) - 3} more" if len(misfits) > 3 else ""
        raise CacheError(
            f"run '{path}' reads stage outputs of '{ours}', view {view.key} is of '{theirs}': "
            f"{'; '.join(map(str, misfits[:3]))}{more}. Expected a view of the same network."
        )


def _check_layout(path: Path, outline: Outline, layout: ViewLayout, key: str) -> None:
    wanted = "a plain ViT" if outline.adapter == "vit" else "a pyramid"
    channels = outline.channels[:1] if outline.adapter == "vit" else outline.channels
    found = layout.channels[:1] if layout.plain else layout.channels
    if layout.plain != (outline.adapter == "vit") or found != channels:
        held = "a plain ViT" if layout.plain else "a pyramid"
        raise CacheError(
            f"'{path}' reads {wanted} of {_told(channels)} channels, view {key} holds {held} of "
            f"{_told(found)}. Expected a view of the backbone that it was trained on."
        )


def _named(config: PredictConfig, count: int) -> tuple[Category, ...]:
    """The categories that are given by name; none where they are not."""
    if config.categories is None:
        return ()
    return _counted(load_manifest(config.categories), f"categories={config.categories}", count)


def _of_view(view: AnyView, count: int) -> tuple[Category, ...]:
    """The categories of the newest manifest that has some."""
    contents = view.index.manifests() if isinstance(view, View) else []
    manifests = [Manifest.model_validate(content) for content in contents]
    named = [manifest for manifest in manifests if manifest.categories]
    if not named:
        raise ConfigError(
            f"nothing names the {count} categories; expected categories=MANIFEST, such as "
            "categories=vipseg."
        )
    return _counted(named[-1], f"the manifest of view {view.key}", count)


def _counted(manifest: Manifest, what: str, count: int) -> tuple[Category, ...]:
    if len(manifest.categories) != count:
        raise ConfigError(
            f"{what} names {len(manifest.categories)} categories, and the head tells {count} "
            "apart; expected categories= to name a manifest with as many."
        )
    return manifest.categories


def _told(channels: Sequence[int]) -> str:
    return ", ".join(map(str, channels))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
