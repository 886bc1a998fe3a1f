"""Layers that several models share: attention, feed-forward, MLP and their initial values."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

Norm2d = Callable[[int], nn.Module]
"""Makes the norm of a map with that many channels: ``nn.BatchNorm2d`` or a synced form of it."""


class Attention(nn.Module):
    """Multi-head attention with one joint projection of queries, keys and values."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"num_heads={num_heads} does not divide dim={dim}.")
        self.num_heads = num_heads
        self.in_proj = nn.Linear(dim, 3 * dim)
        self.out_proj = nn.Linear(dim, dim)
        for linear in (self.in_proj, self.out_proj):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(
        self,
        query: Tensor,  # [B, Q, C]
        key: Tensor,  # [B, N, C]
        value: Tensor,  # [B, N, C]
        open_mask: Tensor | None = None,  # [B, Q, N] bool, true where a query may attend
    ) -> Tensor:  # [B, Q, C]
        """Returns the projected attention output; all heads share the mask."""
        weights, biases = self.in_proj.weight.chunk(3), self.in_proj.bias.chunk(3)
        queries, keys, values = (
            F.linear(tokens, weight, bias).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for tokens, weight, bias in zip((query, key, value), weights, biases, strict=True)
        )
        mask = None if open_mask is None else open_mask[:, None]
        mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        out: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return out


class FeedForward(nn.Module):
    """Two linear layers with a ReLU between them."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(dim, hidden_dim)
        self.linear2 = nn.Linear(hidden_dim, dim)
        for linear in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(linear.weight)

    def forward(
        self,
        tokens: Tensor,  # [..., C]
    ) -> Tensor:  # [..., C]
        """Returns ``linear2(relu(linear1(tokens)))``; the caller adds the residual."""
        out: Tensor = self.linear2(F.relu(self.linear1(tokens)))
        return out


class Mlp(nn.Module):
    """Linear layers with a ReLU after each but the last."""

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, num_layers: int = 3) -> None:
        super().__init__()
        dims = [in_dim, *[hidden_dim] * (num_layers - 1), out_dim]
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(dims))

    def forward(
        self,
        tokens: Tensor,  # [..., in_dim]
    ) -> Tensor:  # [..., out_dim]
        """Returns the last layer's output, without activation."""
        for layer in self.layers[:-1]:
            tokens = F.relu(layer(tokens))
        out: Tensor = self.layers[-1](tokens)
        return out


def fill_c2_xavier(module: nn.Module) -> None:
    """Gives a linear or convolution uniform values over fan-in and a bias of zero (Caffe2)."""
    assert isinstance(module, nn.Linear | nn.Conv2d)
    nn.init.kaiming_uniform_(module.weight, a=1)
    if module.bias is not None:
        nn.init.zeros_(module.bias)
