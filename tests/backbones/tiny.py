"""Small networks for these tests, registered with timm so that they load like any other."""

from __future__ import annotations

from pathlib import Path

import torch
from timm.layers import Attention, SwiGLU, SwiGLUPacked
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from fcache.backbones import Backbone, load
from fcache.config import BackboneSettings

CPU = torch.device("cpu")


def _vit(**changes) -> VisionTransformer:
    # timm's factories pass these on; a model built by hand has no use for them.
    for unused in ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
        changes.pop(unused, None)
    model = VisionTransformer(num_classes=0, **changes)
    model.pretrained_cfg = {
        "tag": "",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
    }
    return model


@register_model
def vit_parity_swiglu(pretrained: bool = False, **kwargs) -> VisionTransformer:
    """The ViT of the vit_adapter_full vectors: 8 blocks, SwiGLU of 128, positions on 7x7."""
    return _vit(
        img_size=112, patch_size=16, embed_dim=48, depth=8, num_heads=6, init_values=1e-5,
        mlp_ratio=256 / 48, mlp_layer=SwiGLUPacked, act_layer=nn.SiLU,
    )  # fmt: skip


@register_model
def vit_small_swiglu_reg2(pretrained: bool = False, **kwargs) -> VisionTransformer:
    """Patch 14 with two registers and no class position, as DINOv2's register models."""
    return _vit(
        img_size=70, patch_size=14, embed_dim=32, depth=4, num_heads=4, init_values=1e-5,
        mlp_ratio=4, mlp_layer=SwiGLUPacked, act_layer=nn.SiLU, reg_tokens=2, no_embed_class=True,
    )  # fmt: skip


@register_model
def vit_no_class_token(pretrained: bool = False, **kwargs) -> VisionTransformer:
    """No class token, no LayerScale, a norm before the blocks."""
    return _vit(
        img_size=64, patch_size=16, embed_dim=32, depth=4, num_heads=2, class_token=False,
        global_pool="avg", pre_norm=True,
    )  # fmt: skip


@register_model
def vit_every_norm(pretrained: bool = False, **kwargs) -> VisionTransformer:
    """Norms on query and key, after attention and inside a SwiGLU of two layers."""
    return _vit(
        img_size=64, patch_size=16, embed_dim=32, depth=4, num_heads=2, init_values=0.1,
        mlp_layer=SwiGLU, act_layer=nn.SiLU, qk_norm=True, scale_attn_norm=True,
        scale_mlp_norm=True, reg_tokens=1,
    )  # fmt: skip


@register_model
def vit_gated(pretrained: bool = False, **kwargs) -> VisionTransformer:
    """A sigmoid gate on what attention returns."""
    model = _vit(img_size=64, patch_size=16, embed_dim=32, depth=4, num_heads=2)
    for block in model.blocks:
        block.attn = Attention(32, num_heads=2, qkv_bias=True, gated=True)
    return model


@register_model
def vit_differential(pretrained: bool = False, **kwargs) -> VisionTransformer:
    """Attention that is not timm's standard one."""
    return _vit(
        img_size=64, patch_size=16, embed_dim=32, depth=4, num_heads=2, attn_layer="diff",
    )  # fmt: skip


@register_model
def vit_six_blocks(pretrained: bool = False, **kwargs) -> VisionTransformer:
    """A depth that does not divide into quarters."""
    return _vit(img_size=64, patch_size=16, embed_dim=16, depth=6, num_heads=2)


def settings(model: str = "vit_parity_swiglu", weights: str | Path = "random:0", **changes):
    """Backbone settings with random weights."""
    return BackboneSettings(model=model, weights=str(weights), **changes)


def backbone(model: str = "vit_parity_swiglu", weights: str | Path = "random:0", **changes):
    """A loaded backbone on the CPU."""
    return load(settings(model, weights, **changes), device=CPU)


def canvas(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Random uint8 frames, [count, height, width, 3]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, height, width, 3), dtype=torch.uint8, generator=generator)


def float32_weights(loaded: Backbone) -> dict[str, Tensor]:
    """The tensors of a float32 backbone by the names inside its trunk."""
    return {name: tensor.clone() for name, tensor in loaded.trunk.state_dict().items()}
