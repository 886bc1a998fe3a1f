"""The segmenter: adapter, pixel decoder and masked decoder over a frozen backbone's outputs."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from fcache.models.adapter import ViTAdapter
from fcache.models.masked_decoder import MaskedDecoder
from fcache.models.pixel_decoder import PixelDecoder
from fcache.models.predictions import FrameOutput
from fcache.models.pyramid import PyramidAdapter


class Segmenter(nn.Module):
    """Mask2Former over stage outputs; it holds no backbone.

    Args:
        adapter: Makes the pyramid: ``ViTAdapter``, ``ComerAdapter`` or ``PyramidAdapter``.
        pixel_decoder: Takes the adapter's channels.
        masked_decoder: As wide as the pixel decoder.
    """

    def __init__(
        self,
        adapter: ViTAdapter | PyramidAdapter,
        pixel_decoder: PixelDecoder,
        masked_decoder: MaskedDecoder,
    ) -> None:
        super().__init__()
        if pixel_decoder.dim != masked_decoder.dim:
            raise ValueError(
                f"the pixel decoder has {pixel_decoder.dim} channels, the masked decoder "
                f"{masked_decoder.dim}; expected the same."
            )
        self.adapter = adapter
        self.pixel_decoder = pixel_decoder
        self.masked_decoder = masked_decoder

    def forward(
        self,
        stage_outputs: Sequence[Tensor],  # 4 x [B, H, W, C], or a pyramid's four
        pixels: Tensor | None,  # [B, 3, 16 H, 16 W] normalised, zero outside the valid area
        *,
        keep_aux: bool = True,
    ) -> FrameOutput:
        """Returns the predictions of every layer for a batch of frames.

        Frames of clips lie one after another; ``FrameOutput.per_clip`` separates them. Only a loss
        needs ``keep_aux``.
        """
        mask_features, levels = self.pixel_decoder(self.adapter(stage_outputs, pixels))
        output: FrameOutput = self.masked_decoder(levels, mask_features, keep_aux=keep_aux)
        return output
