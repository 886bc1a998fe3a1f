"""The optimizer as the official training sets it up: groups of parameters, and the schedule.

AdamW. Norms and embeddings have no weight decay, nor have a backbone's tables of positions; every
bias and every other plain parameter has. Parts of the model, such as the adapter, learn at a rate
of their own.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

UNDECAYED = (_BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.Embedding)
# Plain parameters of Swin and Hiera, as timm calls them.
POSITIONS = frozenset({"relative_position_bias_table", "pos_embed", "pos_embed_window"})


@dataclass(frozen=True, slots=True)
class ParameterGroup:
    """Parameters that share a rate and a weight decay."""

    lr: float
    weight_decay: float
    names: tuple[str, ...]
    parameters: tuple[nn.Parameter, ...]


def parameter_groups(
    module: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    factors: Mapping[str, float] | None = None,
) -> list[ParameterGroup]:
    """Returns every trained parameter once, in groups sorted by rate and decay, largest first.

    Args:
        module: What is trained; parameters that need no gradient are left out.
        lr: The rate.
        weight_decay: Of all but norms, embeddings and tables of positions.
        factors: What the rate is multiplied by below a prefix such as ``adapter.``.
    """
    found: dict[tuple[float, float], dict[str, nn.Parameter]] = {}
    for path, owner in module.named_modules():
        for leaf, parameter in owner.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            name = f"{path}.{leaf}" if path else leaf
            factor = next((f for start, f in (factors or {}).items() if name.startswith(start)), 1)
            undecayed = isinstance(owner, UNDECAYED) or leaf in POSITIONS
            decay = 0.0 if undecayed else weight_decay
            found.setdefault((lr * factor, decay), {})[name] = parameter
    return [
        ParameterGroup(*key, tuple(members), tuple(members.values()))
        for key, members in sorted(found.items(), reverse=True)
    ]


def make_optimizer(groups: Sequence[ParameterGroup]) -> torch.optim.AdamW:
    """Returns AdamW over groups; ``names`` and ``base_lr`` of each are in its ``param_groups``."""
    return torch.optim.AdamW(
        [
            {
                "params": list(group.parameters),
                "lr": group.lr,
                "base_lr": group.lr,
                "weight_decay": group.weight_decay,
                "names": group.names,
            }
            for group in groups
        ]
    )


@dataclass(frozen=True, slots=True)
class MultiStep:
    """The rate's factor as a function of the step: ``gamma`` for every milestone passed."""

    milestones: tuple[int, ...]
    gamma: float

    def factor(self, step: int) -> float:
        """Returns what the rates are multiplied by in a step, counted from 0."""
        return float(self.gamma ** bisect_right(self.milestones, step))

    def apply(self, optimizer: torch.optim.Optimizer, step: int) -> float:
        """Sets the rates for a step; returns the largest."""
        factor = self.factor(step)
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        return max(float(group["lr"]) for group in optimizer.param_groups)
