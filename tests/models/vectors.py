"""Recorded inputs, weights and outputs of the official modules."""

from __future__ import annotations

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fcache.models.official import KeyMap
from fcache.models.predictions import Prediction
from tests.shared import SHARED

TOLERANCE = {"atol": 1e-5, "rtol": 1e-4}


def load(name: str) -> dict[str, Tensor]:
    return load_file(SHARED / "vectors" / "parity" / f"{name}.safetensors")


def below(vectors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): t for k, t in vectors.items() if k.startswith(prefix)}


def load_weights(module: nn.Module, state: dict[str, Tensor], pairs, skip: str = "\0") -> None:
    """Loads official weights, every one of them, into a module of ours."""
    keys = KeyMap(pairs)
    module.load_state_dict({keys.ours(k): t for k, t in state.items() if not k.startswith(skip)})


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, **TOLERANCE)


def prediction(tensors: dict[str, Tensor], prefix: str) -> Prediction:
    """A recorded prediction; per-frame masks lose the frame dimension they have there."""
    masks = tensors[f"{prefix}pred_masks"]
    return Prediction(
        tensors[f"{prefix}pred_logits"], masks.squeeze(2) if masks.ndim == 5 else masks
    )
