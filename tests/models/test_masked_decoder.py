from __future__ import annotations

import pytest
import torch

from fcache.models.layers import Attention
from fcache.models.masked_decoder import MaskedDecoder, attention_mask
from fcache.models.official_names import MASKED_DECODER
from tests.models.vectors import below, close, load, load_weights
from tests.shared import needs_shared


def official(name, *, reid):
    vectors = load(name)
    decoder = MaskedDecoder(10, 64, num_queries=20, num_layers=4, ffn_dim=128, reid=reid)
    load_weights(decoder, below(vectors, "sd/"), MASKED_DECODER)
    with torch.no_grad():
        output = decoder([vectors[f"in/x/{i}"] for i in range(3)], vectors["in/mask_features"])
    return vectors, output


@needs_shared
@pytest.mark.parametrize(("name", "reid"), [("decoder_dvis", False), ("decoder_dvisplus", True)])
@pytest.mark.parametrize(("mode", "num_frames"), [("eval", 4), ("train", 2)])
def test_clips_equal_the_official_ones(name, reid, mode, num_frames) -> None:
    vectors, output = official(name, reid=reid)
    clip = output.per_clip(num_frames)
    expected = below(vectors, f"out/{mode}/")
    close(clip.final.class_logits, expected["pred_logits"])
    close(clip.final.mask_logits, expected["pred_masks"])
    close(clip.embeddings, expected["pred_embds"])
    close(clip.raw_embeddings, expected["pred_embds_without_norm"])
    assert (clip.reid is not None) == reid
    if reid:
        close(clip.embeddings[:, 64:], clip.reid)
    assert len(output.aux) == 4
    for index, aux in enumerate(output.aux):
        found = aux.per_clip(num_frames)
        close(found.class_logits, expected[f"aux_outputs/{index}/pred_logits"])
        close(found.mask_logits, expected[f"aux_outputs/{index}/pred_masks"])


@needs_shared
@pytest.mark.parametrize(("name", "reid"), [("decoder_dvis", False), ("decoder_dvisplus", True)])
def test_attention_masks_are_the_official_ones_with_blocked_rows_opened(name, reid) -> None:
    vectors, output = official(name, reid=reid)
    for key, layer, shape in (("attn_mask_layer0", 0, (1, 2)), ("attn_mask_last", -1, (2, 4))):
        recorded = vectors[f"dbg/{key}"].bool().unflatten(0, (4, 8))
        assert torch.equal(recorded, recorded[:, :1].expand_as(recorded))
        blocked = recorded[:, 0]
        rows = blocked.all(-1)
        assert rows.any()
        mask_logits = (output.final if layer < 0 else output.aux[0]).mask_logits
        found = attention_mask(mask_logits, shape)
        assert torch.equal(found[~rows], ~blocked[~rows])
        assert found[rows].all()


def test_attention_equals_torch_multi_head_attention() -> None:
    torch.manual_seed(0)
    ours, theirs = Attention(16, 4), torch.nn.MultiheadAttention(16, 4, batch_first=True)
    names = {"in_proj_weight": "in_proj.weight", "in_proj_bias": "in_proj.bias"}
    state = theirs.state_dict()
    ours.load_state_dict({names.get(name, name): tensor for name, tensor in state.items()})
    query, key, value = (torch.randn(2, n, 16) for n in (5, 7, 7))
    open_mask = torch.rand(2, 5, 7) > 0.4
    open_mask[..., 0] = True
    expected = theirs(query, key, value, attn_mask=(~open_mask).repeat_interleave(4, 0))[0]
    torch.testing.assert_close(ours(query, key, value, open_mask), expected)


def test_masks_of_nan_open_every_place() -> None:
    assert attention_mask(torch.full((1, 2, 4, 4), float("nan")), (2, 2)).all()


def test_a_batch_that_is_no_whole_number_of_clips_is_refused() -> None:
    decoder = MaskedDecoder(3, 32, num_queries=4, num_layers=1, ffn_dim=32)
    levels = [torch.randn(4, 32, side, side) for side in (1, 2, 4)]
    output = decoder(levels, torch.randn(4, 32, 8, 8))
    with pytest.raises(ValueError, match="4 frames are not clips of 3"):
        output.per_clip(3)


def test_frames_do_not_see_each_other() -> None:
    torch.manual_seed(0)
    decoder = MaskedDecoder(3, 32, num_queries=4, num_layers=3, ffn_dim=32, reid=True).eval()
    levels = [torch.randn(3, 32, side, side) for side in (1, 2, 4)]
    features = torch.randn(3, 32, 8, 8)
    with torch.no_grad():
        together = decoder(levels, features)
        alone = decoder([level[1:2] for level in levels], features[1:2])
    torch.testing.assert_close(together.final.mask_logits[1:2], alone.final.mask_logits)
    torch.testing.assert_close(together.reid[1:2], alone.reid)
