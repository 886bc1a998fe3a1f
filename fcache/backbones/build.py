"""From settings to a frozen backbone: ``describe`` without weights, ``load`` with them."""

from __future__ import annotations

import platform
from functools import lru_cache
from typing import cast

import timm
import torch
import torch.nn.functional as F
from timm.layers.config import use_fused_attn
from torch import Tensor, nn

from fcache.backbones.backbone import Backbone
from fcache.backbones.description import Blueprint, Description, StageSpec
from fcache.backbones.pyramid import PyramidTrunk, build_net, pyramid_blueprint, wrapped_names
from fcache.backbones.resample import resize_kernel
from fcache.backbones.vit import VitTrunk, is_plain, outline, trim, vit_blueprint
from fcache.backbones.weights import open_weights, place, stream
from fcache.config import BackboneSettings
from fcache.errors import ConfigError

__all__ = ["Backbone", "Description", "StageSpec", "describe", "load", "versions", "weights_hash"]

PATCH_KERNEL = "patch_embed.proj.weight"


def describe(settings: BackboneSettings) -> Description:
    """Returns what the settings name, without weights and without memory for them.

    Raises:
        ConfigError: an unknown model (the nearest names are offered), a model that is neither a
            plain ViT nor a pyramid at strides 4, 8, 16 and 32, or settings that do not fit it.
    """
    return _blueprint(settings).description


def weights_hash(settings: BackboneSettings) -> tuple[str, str]:
    """Returns the sha256 of the weights' values and where they came from, keeping no tensor.

    Raises:
        ConfigError: as ``describe``.
        WeightsError: the weights cannot be found, or belong to another architecture.
    """
    tensors = open_weights(settings, _blueprint(settings))
    return stream(tensors, lambda _name, _tensor: None), tensors.source


def load(
    settings: BackboneSettings,
    *,
    device: torch.device,
    compile: bool = False,  # noqa: A002 - the recipe's key
    keep_hash: bool = True,
) -> Backbone:
    """Returns the backbone on a device, frozen, in evaluation mode.

    One float32 tensor at a time is read, hashed, converted and placed, so that the peak is the
    weights in the compute dtype and little more (weights from the hub excepted, which timm builds
    whole).

    Args:
        settings: Which network, on which weights, in which arithmetic.
        device: Where it runs.
        compile: Compile with torch.compile, once per canvas size; CUDA only.
        keep_hash: False skips the hash of the weights, for callers that store nothing.

    Raises:
        ConfigError: as ``describe``; or the device cannot compute in ``compute_dtype``.
        WeightsError: the weights cannot be found, or belong to another architecture.
    """
    blueprint = _blueprint(settings)
    compute = cast("torch.dtype", getattr(torch, settings.compute_dtype))
    if compile and device.type != "cuda":
        raise ConfigError(f"compile=true needs a CUDA device; this one is '{device}'.")
    _check_arithmetic(device, compute)
    tensors = open_weights(settings, blueprint)
    trunk, names = _empty_trunk(settings, blueprint.description)
    low_precision = _autocast_inputs(trunk)

    def put(name: str, tensor: Tensor) -> None:
        path = names[name]
        if name == PATCH_KERNEL and blueprint.description.kind == "vit":
            tensor = resize_kernel(tensor, blueprint.description.patch)
        dtype = compute if path in low_precision else torch.float32
        # The copy lets go of the file: a tensor may be a view of a mapped checkpoint.
        place(trunk, path, tensor.to(device=device, dtype=dtype, copy=True))

    sha256 = stream(tensors, put, keep_hash=keep_hash)
    if compile:
        trunk.compile_for_cuda()
    return Backbone(trunk, blueprint.description, compute, sha256, tensors.source).to(device)


def versions(device: torch.device | None = None, *, attention: str = "") -> dict[str, str]:
    """Returns what may change a feature's last bits without changing its identity.

    ``device`` defaults to CUDA where there is one, ``attention`` to that of ``Backbone.forward``:
    PyTorch's ``sdpa``, or timm's own sums where its ``TIMM_FUSED_ATTN=0`` asks for them.
    """
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_cuda = device.type == "cuda"
    cpu = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return {
        "torch": str(torch.__version__),
        "timm": str(timm.__version__),
        "device": torch.cuda.get_device_name(device) if on_cuda else f"cpu {cpu}",
        "attention": attention or ("sdpa" if use_fused_attn() else "timm unfused"),
    }


@lru_cache(maxsize=32)
def _blueprint(settings: BackboneSettings) -> Blueprint:
    if is_plain(outline(settings.model)):
        return vit_blueprint(settings)
    return pyramid_blueprint(settings)


def _empty_trunk(
    settings: BackboneSettings, description: Description
) -> tuple[VitTrunk | PyramidTrunk, dict[str, str]]:
    """The trunk without values, and timm's names -> names in it."""
    if description.kind == "pyramid":
        # Built in memory, not on the meta device: index tables are computed while building.
        net = build_net(settings, pretrained=False)
        regrid = bool(description.architecture["regrid"])
        wrapped = wrapped_names(net, settings.model)
        return PyramidTrunk(net, regrid=regrid), {k: f"net.{v}" for k, v in wrapped.items()}
    vit = outline(settings.model)
    if next(vit.buffers(), None) is not None:
        vit = timm.create_model(settings.model, pretrained=False)
    assert is_plain(vit)
    assert description.blocks is not None
    trim(vit, description.blocks)
    return VitTrunk(vit, description), {name: f"vit.{name}" for name in vit.state_dict()}


def _autocast_inputs(trunk: nn.Module) -> frozenset[str]:
    """Names of the weights that autocast would cast to the compute dtype at every call.

    Held in that dtype they are the same numbers in half the memory. Subclasses of the two layers
    are left in float32: some compute with their weights before the call that casts them.
    """
    return frozenset(
        f"{path}.{name}"
        for path, module in trunk.named_modules()
        if type(module) in (nn.Linear, nn.Conv2d)
        for name, _ in module.named_parameters(recurse=False)
    )


def _check_arithmetic(device: torch.device, compute: torch.dtype) -> None:
    if compute == torch.float32:
        return
    name = str(compute).removeprefix("torch.")
    image = torch.zeros(1, 3, 4, 4, device=device)
    tokens = torch.zeros(1, 1, 4, 8, device=device)
    try:
        with torch.autocast(device.type, dtype=compute):
            convolved = F.conv2d(image, image[:, :, :2, :2])
            attended = F.scaled_dot_product_attention(tokens, tokens, tokens)
    except RuntimeError as error:
        raise ConfigError(f"compute_dtype={name} does not run on '{device}': {error}.") from None
    if convolved.dtype != compute or attended.dtype != compute:
        raise ConfigError(
            f"compute_dtype={name} is not supported by torch {torch.__version__} on '{device}'; "
            f"expected float32 or bfloat16 there."
        )
