"""The official modules as recorded, with every path and both forms of the op in their place."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from fcache.models import deformable
from fcache.models.extractor import Extractor
from fcache.models.official_names import EXTRACTOR, PIXEL_DECODER
from fcache.models.pixel_decoder import PixelDecoder
from fcache.ops import ms_deform_attn, ms_deform_attn_sampled, reference
from tests.models.vectors import below, close, load, load_weights
from tests.ops.cases import PATHS, on_path
from tests.shared import needs_shared

Shapes = Sequence[tuple[int, int]]


def plain(value: Tensor, shapes: Shapes, *rest: Tensor) -> Tensor:
    return reference.ms_deform_attn(value, [side for shape in shapes for side in shape], *rest)


def sampled(
    value: Tensor, shapes: Shapes, points: Tensor, offsets: Tensor, logits: Tensor
) -> Tensor:
    sizes = torch.tensor([(w, h) for h, w in shapes])
    locations = points[:, :, None, :, None] + offsets / sizes[:, None]
    weights = logits.softmax(-1).view(offsets.shape[:-1])
    return ms_deform_attn_sampled(value, shapes, locations, weights)


@pytest.fixture(params=[*PATHS, "sampled"])
def calls(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[object, ...]]:
    """Puts a path in the modules' place; returns the calls they make of it."""
    on_path("reference" if request.param == "sampled" else request.param, monkeypatch)
    op = {"reference": plain, "sampled": sampled}.get(request.param, ms_deform_attn)
    made: list[tuple[object, ...]] = []

    def counted(*args: Tensor) -> Tensor:
        made.append(args)
        return op(*args)

    monkeypatch.setattr(deformable, "ms_deform_attn", counted)
    return made


@needs_shared
def test_the_extractor_and_its_gradients_are_the_official_ones(calls: list[object]) -> None:
    vectors = load("vit_adapter_extractor")
    extractor = Extractor(96, 6)
    load_weights(extractor, below(vectors, "sd/"), EXTRACTOR)
    query, feat = (vectors[f"in/{name}"].requires_grad_() for name in ("query", "feat"))
    out = extractor(query, vectors["in/reference_points"], feat, (4, 6))
    close(out, vectors["out"])
    grads = torch.autograd.grad((out * vectors["in/cotangent"]).sum(), (query, feat))
    close(grads[0], vectors["grad/query"])
    close(grads[1], vectors["grad/feat"])
    assert len(calls) == 1


@needs_shared
def test_the_pixel_decoder_is_the_official_one(calls: list[object]) -> None:
    vectors = load("pixel_decoder")
    decoder = PixelDecoder((48, 48, 48, 48), 64, num_layers=2, ffn_dim=128)
    load_weights(decoder, below(vectors, "sd/"), PIXEL_DECODER)
    with torch.no_grad():
        mask_features, levels = decoder.eval()([vectors[f"in/res{i}"] for i in (2, 3, 4, 5)])
    close(mask_features, vectors["out/mask_features"])
    for index, level in enumerate(levels):
        close(level, vectors[f"out/multi_scale/{index}"])
    assert len(calls) == 2
