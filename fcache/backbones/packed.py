"""Frames of different sizes in one sequence: a plain ViT's blocks, with attention kept per frame.

Everything in a block but attention looks at one token at a time, so the tokens of all frames can
stand in one sequence. On CUDA one call of xformers attends within each frame (a block-diagonal
mask over fused kernels); elsewhere PyTorch's attention is called frame by frame.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Any, TypeAlias, cast

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor

# Query, key and value [1, N, M, D] (tokens, heads, channels a head) -> [1, N, M, D].
Attend: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
Prepare: TypeAlias = Callable[[Sequence[int], torch.device], Attend]

# By name: timm moves classes between its modules. A user's class of the same name is not theirs.
CONTAINERS = {"Block", "Attention", "Mlp", "GluMlp", "SwiGLU"}
LAYERS = {"Linear", "Identity", "Dropout", "DropPath", "LayerScale"}
NORMS = {"LayerNorm", "LayerNormFp32", "RmsNorm", "RMSNorm"}
ACTIVATIONS = {"GELU", "GELUTanh", "QuickGELU", "SiLU", "ReLU"}
OWNERS = {"torch", "timm"}
PER_TOKEN = CONTAINERS | LAYERS | NORMS | ACTIVATIONS


@dataclass(frozen=True, slots=True)
class PackedAttention:
    """How frames of different sizes attend: the name for provenance, and what runs.

    ``prepare`` takes the tokens of each frame and the device, and returns the attention.
    """

    name: str
    prepare: Prepare


def choose_attention(
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    ops: ModuleType | None = None,
) -> PackedAttention:
    """Returns the attention that runs here: xformers on CUDA where it is installed and can.

    Args:
        device: Where it runs.
        dtype: Of query, key and value.
        head_dim: Channels a head.
        ops: ``xformers.ops``, where a caller brings its own; on CUDA it is imported.
    """
    if device.type != "cuda" and ops is None:
        return PackedAttention("sdpa per frame", per_frame)
    version = ""
    if ops is None:
        try:
            ops = import_module("xformers.ops")
            version = f" {import_module('xformers').__version__}"
        except ImportError:
            return PackedAttention("sdpa per frame (xformers is not installed)", per_frame)
    # xformers picks a kernel by device, type and head size, and has none for some.
    probe = torch.zeros(1, 24, 1, head_dim, device=device, dtype=dtype)
    try:
        block_diagonal((8, 16), device, ops=ops)(probe, probe, probe)
    except NotImplementedError:
        kind = str(dtype).removeprefix("torch.")
        lacking = f"xformers{version} has no kernel for {kind} and heads of {head_dim} here"
        return PackedAttention(f"sdpa per frame ({lacking})", per_frame)
    return PackedAttention(f"xformers{version} block-diagonal", partial(block_diagonal, ops=ops))


def per_frame(num_tokens: Sequence[int], device: torch.device) -> Attend:
    """Returns PyTorch's attention, called once for each frame."""
    lengths = list(num_tokens)

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        heads_first = [t.transpose(1, 2) for t in (query, key, value)]  # [1, M, N, D]
        frames = zip(*(torch.split(t, lengths, 2) for t in heads_first), strict=True)
        attended = [F.scaled_dot_product_attention(q, k, v) for q, k, v in frames]
        return torch.cat(attended, 2).transpose(1, 2)

    return attend


def block_diagonal(num_tokens: Sequence[int], device: torch.device, *, ops: ModuleType) -> Attend:
    """Returns xformers' attention, called once for all frames.

    Args:
        num_tokens: Tokens of each frame, in order.
        device: Where the tokens are.
        ops: ``xformers.ops``.
    """
    mask = ops.fmha.attn_bias.BlockDiagonalMask.from_seqlens(list(num_tokens), device=device)

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        # Unlike PyTorch's, this call is not autocast: a norm leaves query and key in float32.
        query, key = query.to(value.dtype), key.to(value.dtype)
        return cast("Tensor", ops.memory_efficient_attention(query, key, value, attn_bias=mask))

    return attend


def refusal(vit: VisionTransformer) -> str:
    """Says why a ViT's frames cannot share a sequence; empty if they can.

    Only modules that are known to look at one token at a time are taken.
    """
    for index, block in enumerate(vit.blocks):
        if type(block) is not Block:
            return f"block {index} is a {type(block).__name__}"
        for module in block.modules():
            kind = type(module)
            if kind.__name__ not in PER_TOKEN or kind.__module__.split(".")[0] not in OWNERS:
                return f"block {index} holds a {kind.__name__}"
    return ""


def head_dim(vit: VisionTransformer) -> int:
    """Returns the channels of one attention head."""
    return int(_attention_of(cast("Block", vit.blocks[0])).head_dim)


def packed_block(
    block: Block,
    tokens: Tensor,  # [1, N, C]
    attend: Attend,
) -> Tensor:  # [1, N, C]
    """Returns what timm's block does, with another attention in its place."""
    attended = _attended(_attention_of(block), block.norm1(tokens), attend)
    tokens = tokens + block.drop_path1(block.ls1(attended))
    through = block.mlp(block.norm2(tokens))
    return cast("Tensor", tokens + block.drop_path2(block.ls2(through)))


def _attention_of(block: Block) -> Any:  # noqa: ANN401 - timm's Attention, untyped
    return block.attn


def _attended(module: Any, tokens: Tensor, attend: Attend) -> Tensor:  # noqa: ANN401
    qkv = module.qkv(tokens).unflatten(2, (3, module.num_heads, module.head_dim))
    query, key, value = qkv.unbind(2)
    attended = attend(module.q_norm(query), module.k_norm(key), value).flatten(2)
    attended = module.norm(attended)
    gate = getattr(module, "gate", None)  # none in older versions of timm's module
    if gate is not None:
        attended = attended * gate(tokens).sigmoid()
    return cast("Tensor", module.proj_drop(module.proj(attended)))
