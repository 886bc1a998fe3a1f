from __future__ import annotations

import pytest
import torch

from fcache.models import MaskedDecoder, PixelDecoder, PyramidAdapter, SeededDraw, Segmenter
from fcache.models.official_names import MASKED_DECODER, PIXEL_DECODER, below as prefixed
from tests.models.tiny import (
    criterion,
    pixels,
    pyramid_segmenter,
    segmenter,
    stage_outputs,
    two_targets,
)
from tests.models.vectors import below, close, load, load_weights
from tests.shared import needs_shared

HEAD = (
    *prefixed("pixel_decoder.", "pixel_decoder.", PIXEL_DECODER),
    *prefixed("predictor.", "masked_decoder.", MASKED_DECODER),
)


def official_head(name, *, reid):
    vectors = load(name)
    model = Segmenter(
        PyramidAdapter((48, 48, 48, 48)),
        PixelDecoder((48, 48, 48, 48), 64, num_layers=2, ffn_dim=128),
        MaskedDecoder(10, 64, num_queries=20, num_layers=4, ffn_dim=128, reid=reid),
    )
    load_weights(model, below(vectors, "sd/"), HEAD)
    maps = [vectors[f"in/res{level}"].permute(0, 2, 3, 1) for level in (2, 3, 4, 5)]
    with torch.no_grad():
        return vectors, model.eval()(maps, None)


@needs_shared
def test_image_head_equals_the_official_one() -> None:
    vectors, output = official_head("mask2former_head_image", reid=False)
    close(output.final.class_logits, vectors["out/pred_logits"])
    close(output.final.mask_logits, vectors["out/pred_masks"])
    for index, aux in enumerate(output.aux):
        close(aux.class_logits, vectors[f"out/aux_outputs/{index}/pred_logits"])
        close(aux.mask_logits, vectors[f"out/aux_outputs/{index}/pred_masks"])


@needs_shared
def test_video_head_equals_the_official_one() -> None:
    vectors, output = official_head("mask2former_head_dvisplus", reid=True)
    clip = output.per_clip(2)
    close(clip.final.class_logits, vectors["out/pred_logits"])
    close(clip.final.mask_logits, vectors["out/pred_masks"])
    close(clip.embeddings, vectors["out/pred_embds"])
    close(clip.raw_embeddings, vectors["out/pred_embds_without_norm"])
    close(clip.reid, vectors["out/pred_reid_embed"])
    close(clip.mask_features.flatten(0, 1), vectors["out/mask_features"])
    for index, aux in enumerate(output.aux):
        close(aux.per_clip(2).class_logits, vectors[f"out/aux_outputs/{index}/pred_logits"])
        close(aux.per_clip(2).mask_logits, vectors[f"out/aux_outputs/{index}/pred_masks"])


def test_every_parameter_learns_from_the_loss() -> None:
    model = segmenter(reid=True)
    output = model(stage_outputs(), pixels())
    losses = criterion()(output.layers, two_targets(), SeededDraw(0, 0, ["a", "b"]))
    (losses.total() + output.reid.square().mean()).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert not without


def test_autocast_gives_finite_values_close_to_float32() -> None:
    model = segmenter(reid=True)
    draw = SeededDraw(0, 0, ["a", "b"])
    exact = model(stage_outputs(), pixels())
    with torch.autocast("cpu", torch.bfloat16):
        output = model([stage.to(torch.float16) for stage in stage_outputs()], pixels())
        losses = criterion()(output.layers, two_targets(), draw)
    total = losses.total()
    total.backward()
    assert total.dtype == torch.float32
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert torch.isfinite(output.final.mask_logits).all()
    # The first prediction comes before attention masks, which flip where a logit is near zero.
    scale = exact.aux[0].mask_logits.std()
    error = (output.aux[0].mask_logits.float() - exact.aux[0].mask_logits).abs().max()
    assert error < 0.1 * scale
    expected = criterion()(exact.layers, two_targets(), draw).total()
    assert total.item() == pytest.approx(expected.item(), rel=0.02)


def test_a_step_fits_one_batch() -> None:
    model = segmenter()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    stages, image, targets = stage_outputs(), pixels(), two_targets()
    totals = []
    for step in range(40):
        output = model(stages, image)
        total = criterion()(output.layers, targets, SeededDraw(0, step, ["a", "b"])).total()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert totals[-1] < 0.3 * totals[0]


def test_pyramid_backbones_need_no_pixels() -> None:
    sides = ((16, 24, 8), (8, 12, 16), (4, 6, 24), (2, 3, 40))
    output = pyramid_segmenter()([torch.randn(1, *side) for side in sides], None)
    assert output.final.mask_logits.shape == (1, 12, 16, 24)
    assert len(output.layers) == 5


def test_without_auxiliary_predictions_the_final_one_is_the_same() -> None:
    model = segmenter().eval()
    with torch.no_grad():
        whole = model(stage_outputs(), pixels())
        bare = model(stage_outputs(), pixels(), keep_aux=False)
    assert bare.layers == (bare.final,)
    assert torch.equal(bare.final.mask_logits, whole.final.mask_logits)


def test_parts_of_different_widths_are_refused() -> None:
    adapter = PyramidAdapter((8, 8, 8, 8))
    with pytest.raises(ValueError, match="has 32 channels, the masked decoder 64"):
        Segmenter(adapter, PixelDecoder(adapter.channels, 32), MaskedDecoder(3, 64))
