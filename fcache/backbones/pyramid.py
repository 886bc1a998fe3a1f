"""Pyramid backbones: four outputs at strides 4, 8, 16 and 32 through timm's ``features_only``.

Whatever comes after the last output (norms, heads) is neither run nor part of the weights. Some
models refuse canvases other than their training size by default; they are built so that they
accept any, and a model that cannot is refused with its own reason.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, cast

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fcache.backbones.description import (
    JSON,
    Blueprint,
    Description,
    StageSpec,
    float_shapes,
    normalisation,
    split_name,
)
from fcache.backbones.vit import is_plain, outline
from fcache.config import BackboneSettings
from fcache.errors import ConfigError

STRIDES = (4, 8, 16, 32)
PROBED_CANVASES = ((384, 480), (480, 864))
# always_partition keeps windows and shifts as trained where a stage is no larger than a window,
# which is what segmentation code bases run; timm's default follows the training size instead.
ANY_CANVAS: dict[str, JSON] = {"strict_img_size": False, "always_partition": True}


def pyramid_blueprint(settings: BackboneSettings) -> Blueprint:
    """Returns what a pyramid is under these settings, tried on two canvases without memory.

    Raises:
        ConfigError: the model has other outputs, refuses canvases of other sizes, or the
            settings are those of a plain ViT.
    """
    whole = outline(settings.model)
    name = split_name(settings.model)
    _refuse_vit_settings(settings)
    indexes = _output_indexes(settings.model, whole)
    with torch.device("meta"):
        net = build_net(settings, pretrained=False)
    regrid = _probe(name, net, _channels(whole, indexes))
    everything = float_shapes(whole.state_dict())
    shapes = float_shapes(in_timm_names(net.state_dict(), whole.state_dict()))
    mean, std = normalisation(whole)
    info = cast("list[dict[str, Any]]", whole.feature_info)
    facts: dict[str, JSON] = {
        "family": "pyramid",
        "name": name,
        "class": type(whole).__name__,
        "options": cast("dict[str, JSON]", _options(whole)),
        "regrid": regrid,
    }
    description = Description(
        kind="pyramid",
        model=name,
        stages=tuple(
            StageSpec(int(info[index]["num_chs"]), stride)
            for index, stride in zip(indexes, STRIDES, strict=True)
        ),
        blocks=None,
        patch=settings.patch,
        pos=None,
        mean=mean,
        std=std,
        architecture=facts,
    )
    return Blueprint(description, shapes, frozenset(everything) - frozenset(shapes))


def build_net(settings: BackboneSettings, *, pretrained: bool) -> nn.Module:
    """Returns timm's ``features_only`` model for the four outputs."""
    whole = outline(settings.model)
    return timm.create_model(
        settings.model,
        pretrained=pretrained,
        features_only=True,
        out_indices=_output_indexes(settings.model, whole),
        **_options(whole),
    )


def in_timm_names(tensors: Mapping[str, Tensor], whole: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames the tensors of a ``features_only`` model to those of the model it was cut from.

    The wrappers flatten the first level (``layers.0`` to ``layers_0``) or put it below ``model``.
    """
    names: dict[str, str] = {}
    for name in whole:
        for wrapped in (f"model.{name}", f"body.{name}", name.replace(".", "_", 1), name):
            names.setdefault(wrapped, name)
    return {names[wrapped]: tensor for wrapped, tensor in tensors.items()}


def wrapped_names(net: nn.Module, model: str) -> dict[str, str]:
    """Returns timm's plain name -> the name in its ``features_only`` model."""
    state = net.state_dict()
    renamed = in_timm_names(state, outline(model).state_dict())
    return dict(zip(renamed, state, strict=True))


def _refuse_vit_settings(settings: BackboneSettings) -> None:
    given = {
        "blocks": settings.blocks is not None,
        "pos": settings.pos is not None,
        "patch": settings.patch != 16,
    }
    wrong = [f"{key}=" for key, is_given in given.items() if is_given]
    if wrong:
        raise ConfigError(
            f"model='{settings.model}' is a pyramid; {', '.join(wrong)} belong to plain ViTs "
            f"(a pyramid's canvas is that of patch=16)."
        )


def _options(whole: nn.Module) -> dict[str, Any]:
    accepted = inspect.signature(type(whole).__init__).parameters
    return {key: value for key, value in ANY_CANVAS.items() if key in accepted}


def _output_indexes(model: str, whole: nn.Module) -> tuple[int, ...]:
    """The deepest output at each of the four strides."""
    info = cast("Sequence[Mapping[str, Any]]", getattr(whole, "feature_info", ()))
    deepest = {int(entry["reduction"]): index for index, entry in enumerate(info)}
    if is_plain(whole) or any(stride not in deepest for stride in STRIDES):
        has = ", ".join(f"{stride}" for stride in sorted(deepest)) or "no listed outputs"
        raise ConfigError(
            f"model='{model}' ({type(whole).__name__}) has {len(info)} outputs at strides {has}; "
            f"expected a plain ViT (timm's VisionTransformer) or a pyramid with outputs at strides "
            f"4, 8, 16 and 32."
        )
    return tuple(deepest[stride] for stride in STRIDES)


def _channels(whole: nn.Module, indexes: Sequence[int]) -> list[int]:
    info = cast("Sequence[Mapping[str, Any]]", whole.feature_info)
    return [int(info[index]["num_chs"]) for index in indexes]


def _probe(model: str, net: nn.Module, channels: Sequence[int]) -> bool:
    """Says whether outputs need resizing to their stride's grid; refuses what cannot run."""
    trunk = PyramidTrunk(net, regrid=False).eval()
    regrid = False
    for height, width in PROBED_CANVASES:
        try:
            outputs = trunk(torch.empty(1, 3, height, width, device="meta"))
        except (AssertionError, RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ConfigError(
                f"model='{model}' cannot run on a {height}x{width} canvas (timm says: {reason}); "
                f"expected a model that accepts any multiple of 32."
            ) from None
        for output, stride, num_channels in zip(outputs, STRIDES, channels, strict=True):
            found = tuple(output.shape[1:])
            grid = (height // stride, width // stride)
            close = max(abs(found[0] - grid[0]), abs(found[1] - grid[1])) <= 1
            if not close or found[2] != num_channels:
                raise ConfigError(
                    f"model='{model}' returns {found} at stride {stride} of a {height}x{width} "
                    f"canvas; expected {(*grid, num_channels)} (rows, columns, channels)."
                )
            regrid = regrid or found[:2] != grid
    return regrid


class PyramidTrunk(nn.Module):
    """A ``features_only`` model whose outputs are channels last, on the grid of their stride.

    MobileViT v2 rounds odd grids up to even ones and leaves them so; with ``regrid`` such outputs
    are resized back bilinearly, as version 1 of that model does itself.
    """

    multiple = 32

    def __init__(self, net: nn.Module, *, regrid: bool) -> None:
        super().__init__()
        self.net = net
        self.regrid = regrid
        self.channels_last = str(getattr(net, "output_fmt", "NCHW")).endswith("NHWC")

    def forward(
        self,
        pixels: Tensor,  # [B, 3, height, width] normalised, zero outside the valid area
    ) -> list[Tensor]:  # 4 x [B, H, W, C]
        """Returns the four outputs, finest first."""
        outputs = []
        for output, stride in zip(self.net(pixels), STRIDES, strict=True):
            planes = output.permute(0, 3, 1, 2) if self.channels_last else output
            grid = (pixels.shape[-2] // stride, pixels.shape[-1] // stride)
            if self.regrid and tuple(planes.shape[-2:]) != grid:
                planes = F.interpolate(planes.float(), grid, mode="bilinear", align_corners=False)
            outputs.append(planes.permute(0, 2, 3, 1))
        return outputs

    def compile_for_cuda(self) -> None:
        """Compiles the whole network, once per canvas size."""
        self.net.compile(dynamic=False)
