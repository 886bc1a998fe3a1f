"""The texts of a run: a methods paragraph with citations, and a script that trains it again."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fcache.config import SegmenterConfig, TrainConfig

Cite = Callable[[str], str]
"""Gives the mark of a work, ``[2]`` for example, and puts it on the list."""

REFERENCES = {
    "Adapter": "Chen et al. Vision Transformer Adapter for Dense Predictions. ICLR 2023.",
    "AdamW": "Loshchilov, Hutter. Decoupled Weight Decay Regularization. ICLR 2019.",
    "CoMer": "Xia et al. ViT-CoMer: Vision Transformer with Convolutional Multi-scale Feature "
    "Interaction for Dense Predictions. CVPR 2024.",
    "DVIS++": "Zhang et al. DVIS++: Improved Decoupled Framework for Universal Video "
    "Segmentation. arXiv:2312.13305, 2023.",
    "DINOv2": "Oquab et al. DINOv2: Learning Robust Visual Features without Supervision. TMLR "
    "2024.",
    "Mask2Former": "Cheng et al. Masked-attention Mask Transformer for Universal Image "
    "Segmentation. CVPR 2022.",
    "MinVIS": "Huang et al. MinVIS: A Minimal Video Instance Segmentation Framework without "
    "Video-based Training. NeurIPS 2022.",
    "PointRend": "Kirillov et al. PointRend: Image Segmentation as Rendering. CVPR 2020.",
    "PQ": "Kirillov et al. Panoptic Segmentation. CVPR 2019.",
}


@dataclass(frozen=True, slots=True)
class Told:
    """What the texts say beside the recipe.

    Attributes:
        identity: Of the view that is trained on.
        data: What the labels are called.
        num_categories: K.
        num_videos: Videos trained on.
        num_trained: Trained parameters.
        kind: Which labels.
        versions: Of fcache, torch and the like.
        ranks: Processes that trained together.
    """

    identity: Mapping[str, Any]
    data: str
    num_categories: int
    num_videos: int
    num_trained: int
    kind: str
    versions: Mapping[str, str]
    ranks: int


def methods_text(config: SegmenterConfig, told: Told) -> str:
    """Returns a paragraph for a paper's methods section, and the works it cites, in Markdown."""
    cited: list[str] = []

    def cite(key: str) -> str:
        if key not in cited:
            cited.append(key)
        return f"[{cited.index(key) + 1}]"

    parts = [
        _features(config, told, cite),
        _model(config, told, cite),
        _data(config, told, cite),
        _optimisation(config, told, cite),
        f"Image PQ {cite('PQ')} and mIoU during training are computed on the canvas that the "
        "network sees."
        if told.kind == "panoptic"
        else "mIoU during training is computed on the canvas that the network sees.",
    ]
    listed = "\n".join(f"{i}. {REFERENCES[key]}" for i, key in enumerate(cited, 1))
    return f"# Methods\n\n{' '.join(parts)}\n\n## References\n\n{listed}\n"


def _features(config: SegmenterConfig, told: Told, cite: Cite) -> str:
    backbone, view = told.identity["backbone"], told.identity["view"]
    source = cite("DINOv2") if "dinov2" in backbone["model"] else ""
    size = (
        f"resized to {view['size'][0]}x{view['size'][1]} pixels"
        if view.get("size")
        else f"resized to a short side of {_side(view['short_side'])} pixels"
    )
    crop = view.get("crop")
    if crop:
        size += f" and cropped to at most {crop[0]}x{crop[1]}"
        if config.extract is not None and not config.extract.crops:
            size += " (a crop of its own for every clip)"
    name = f"The backbone {backbone['model']} {source}".rstrip()
    if config.backbone.trainable:
        return (
            f"{name} trains with the rest; its batch norms, if it has any, stay frozen. It sees "
            f"frames {size}."
        )
    if config.source == "live":
        kept = f", rounded to {told.identity['dtype']}" if config.live_rounded else ""
        return f"{name} is frozen and runs in the training loop on frames {size}{kept}."
    return (
        f"{name} is frozen. Its four stage outputs are computed once per frame, {size}, and stored "
        f"as {told.identity['dtype']}."
    )


def _model(config: SegmenterConfig, told: Told, cite: Cite) -> str:
    if config.adapter == "none":
        adapter = "The backbone's pyramid"
    else:
        adapter = (
            f"A ViT-Adapter {cite('Adapter')} without injectors, as in DVIS++ {cite('DVIS++')},"
        )
        if config.adapter == "comer":
            adapter += (
                f" with the mixing of ViT-CoMer {cite('CoMer')} before each stage's extractor,"
            )
    return (
        f"{adapter} feeds a Mask2Former {cite('Mask2Former')} with {config.num_queries} queries, "
        f"{_counted(config.num_encoder_layers, 'layer')} of deformable attention in the pixel "
        f"decoder and {_counted(config.num_layers, 'layer')} of masked attention, {config.dim} "
        "channels wide; "
        f"{told.num_trained:,} parameters are trained."
    )


def _data(config: SegmenterConfig, told: Told, cite: Cite) -> str:
    clip = (
        "single frames"
        if config.num_frames == 1
        else f"clips of {config.num_frames} frames, each frame an image of its own "
        f"as in MinVIS {cite('MinVIS')}"
    )
    window = f", cut to windows of {config.crop[0]}x{config.crop[1]} pixels" if config.crop else ""
    return (
        f"It is trained on the {told.kind} labels of {told.data} ({told.num_videos:,} videos of "
        f"split '{config.train_split}', {told.num_categories} categories) from {clip}{window}. "
        f"Classification, mask and dice losses are those of Mask2Former, at {config.num_points} "
        f"points per mask {cite('PointRend')}."
    )


def _optimisation(config: SegmenterConfig, told: Told, cite: Cite) -> str:
    steps = " and ".join(f"{step:,}" for step in config.milestones)
    decay = f", multiplied by {config.gamma} at step {steps}" if steps else ""
    slower = _slower(config)
    clipped = (
        f" The gradient of the whole model is clipped to a norm of {config.clip_norm:g}."
        if config.clip_norm
        else ""
    )
    amp = "" if config.amp == "none" else f" Autocast runs in {config.amp}."
    return (
        f"AdamW {cite('AdamW')} takes {config.steps:,} steps of {config.batch} clips with a "
        f"learning rate of {config.lr:g}{slower}{decay} and a weight decay of "
        f"{config.weight_decay:g}, none for norms and embeddings.{clipped}{amp} The seed is "
        f"{config.seed}."
    )


def _slower(config: SegmenterConfig) -> str:
    rates = {}
    if config.backbone.trainable:
        rates["backbone"] = config.backbone.lr_factor
    if config.adapter != "none" and config.adapter_lr_factor != 1:
        rates["adapter"] = config.adapter_lr_factor
    told = [f"{config.lr * factor:g} in the {part}" for part, factor in rates.items()]
    return f" ({' and '.join(told)})" if told else ""


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _side(side: object) -> str:
    return str(side).replace("..", " to ")


def reproduce_text(config: TrainConfig, told: Told, where: tuple[str, str]) -> str:
    """Returns a shell script that trains the run again, into another folder.

    Args:
        config: The run's.
        told: What else decides it.
        where: The option that names what was trained on, and what it said.
    """
    start = (
        "fcache"
        if told.ranks == 1
        else f"torchrun --nproc-per-node {told.ranks} --no-python -- fcache"
    )
    versions = ", ".join(f"{name} {version}" for name, version in told.versions.items())
    view = told.identity["backbone"]["model"]
    return f"""#!/bin/sh
# Trains stage {getattr(config, "stage", "")} again, from the same recipe and seed.
# It was trained with {versions}, on stage outputs of {view}.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
from=${{1:-{shlex.quote(where[1])}}}
run=${{2:-"$here-again"}}
exec {start} train recipe="$here/recipe.toml" {where[0]} "$from" --run "$run"
"""
