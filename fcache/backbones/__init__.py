"""Frozen backbones: frames to four stage outputs (timm's plain ViTs and pyramids)."""

from fcache.backbones.build import (
    Backbone,
    Description,
    StageSpec,
    describe,
    load,
    versions,
    weights_hash,
)

__all__ = ["Backbone", "Description", "StageSpec", "describe", "load", "versions", "weights_hash"]
