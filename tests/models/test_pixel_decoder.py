from __future__ import annotations

import torch

from fcache.models.official_names import PIXEL_DECODER
from fcache.models.pixel_decoder import PixelDecoder
from tests.models.vectors import below, close, load, load_weights
from tests.shared import needs_shared

CHANNELS = (8, 16, 24, 40)


def pyramid(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = zip(CHANNELS, ((16, 24), (8, 12), (4, 6), (2, 3)), strict=True)
    return [torch.randn(2, dim, *shape, generator=generator).to(dtype) for dim, shape in shapes]


@needs_shared
def test_outputs_equal_the_official_ones() -> None:
    vectors = load("pixel_decoder")
    decoder = PixelDecoder((48, 48, 48, 48), 64, num_layers=2, ffn_dim=128)
    load_weights(decoder, below(vectors, "sd/"), PIXEL_DECODER)
    with torch.no_grad():
        mask_features, levels = decoder.eval()([vectors[f"in/res{i}"] for i in (2, 3, 4, 5)])
    close(mask_features, vectors["out/mask_features"])
    for index, level in enumerate(levels):
        close(level, vectors[f"out/multi_scale/{index}"])
    close(levels[0], vectors["out/transformer_encoder_features"])


def test_autocast_does_not_reach_inside_unless_asked() -> None:
    torch.manual_seed(0)
    decoder = PixelDecoder(CHANNELS, 32, num_layers=1, ffn_dim=64)
    halves = pyramid(torch.bfloat16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        inside = decoder(halves)[0]
        decoder.full_precision = False
        lowered = decoder(halves)[0]
    with torch.no_grad():
        outside = decoder([level.float() for level in halves])[0]
    assert inside.dtype == torch.float32
    assert torch.equal(inside, outside)
    assert lowered.dtype == torch.bfloat16
    torch.testing.assert_close(lowered.float(), outside, atol=0.05, rtol=0.05)


def test_initial_values_are_those_of_the_official_decoder() -> None:
    torch.manual_seed(0)
    decoder = PixelDecoder((64, 64, 64, 64), 64, num_layers=1, ffn_dim=128)
    bound = (3 / (64 * 9)) ** 0.5
    assert decoder.smooth.conv.weight.abs().max() <= bound
    assert decoder.smooth.conv.weight.abs().max() > 0.95 * bound
    assert abs(decoder.level_embed.std().item() - 1) < 0.2
    assert not decoder.layers[0].attention.offsets.weight.any()
    assert not decoder.projections[0].conv.bias.any()
