"""A pyramid backbone that trains with what it feeds, as the official recipes train theirs."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fcache.backbones.backbone import Backbone
from fcache.backbones.build import describe
from fcache.backbones.description import Description
from fcache.backbones.pyramid import PyramidTrunk, build_net
from fcache.config import BackboneSettings
from fcache.errors import ConfigError


class TrainedPyramid(PyramidTrunk):
    """Normalised frames to four stage outputs, with gradient, in the arithmetic around it.

    Batch norms stay as they were trained before, statistics and factors: the official ResNet
    recipes freeze them (detectron2's FrozenBN, the default that theirs leaves in place).
    """

    def __init__(self, net: nn.Module, *, regrid: bool) -> None:
        super().__init__(net, regrid=regrid)
        self.requires_grad_(True)
        for norm in self._frozen():
            norm.requires_grad_(False)
        self.train()

    @classmethod
    def of(cls, backbone: Backbone) -> TrainedPyramid:
        """Returns a frozen backbone's network, to be trained.

        Raises:
            ConfigError: it is a plain ViT, or its weights are not float32.
        """
        check_trainable(backbone.description)
        trunk = backbone.trunk
        assert isinstance(trunk, PyramidTrunk)
        if backbone.compute != torch.float32:
            raise ConfigError(
                f"backbone.trainable=true needs weights in float32, not {backbone.compute}; "
                "amp=bfloat16 computes in less."
            )
        return cls(trunk.net, regrid=trunk.regrid)

    @classmethod
    def outline(cls, settings: BackboneSettings) -> TrainedPyramid:
        """Returns it without memory for its weights, to be counted.

        Raises:
            ConfigError: the model is a plain ViT.
        """
        description = describe(settings)
        check_trainable(description)
        with torch.device("meta"):
            net = build_net(settings, pretrained=False)
        return cls(net, regrid=bool(description.architecture["regrid"]))

    def train(self, mode: bool = True) -> TrainedPyramid:
        """Sets the mode of all but batch norms."""
        super().train(mode)
        for norm in self._frozen():
            norm.eval()
        return self

    def _frozen(self) -> Iterator[nn.Module]:
        return (module for module in self.modules() if isinstance(module, _BatchNorm))


def check_trainable(description: Description) -> None:
    """Refuses what stays frozen.

    Raises:
        ConfigError: it is a plain ViT.
    """
    if description.kind == "vit":
        raise ConfigError(
            f"backbone.trainable=true: '{description.model}' is a plain ViT, which stays frozen "
            "here; expected a pyramid such as resnet50."
        )
