from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F

from fcache.models.panoptic import (
    Canvas,
    claims,
    class_probabilities,
    kept_queries,
    numbered,
    panoptic_map,
    semantic_map,
)
from tests.models.vectors import load
from tests.shared import SHARED, needs_shared

IS_THING = [True] * 6 + [False] * 4
SIZES = {"padded": (64, 96), "valid": (60, 90), "output": (72, 108)}
BIG = 20.0


def as_official(segments):
    return [{"id": s.id, "isthing": s.is_thing, "category_id": s.category} for s in segments]


def recorded():
    text = (SHARED / "vectors" / "parity" / "postprocess.json").read_text()
    return json.loads(text), load("postprocess")


def logits_of(*queries: tuple[int, float], num_categories: int = 3) -> torch.Tensor:
    """Class logits whose softmax gives a category the probability asked for."""
    rows = torch.zeros(len(queries), num_categories + 1)
    for row, (category, probability) in zip(rows, queries, strict=True):
        row[category] = torch.tensor(probability / (1 - probability) * num_categories).log()
    return rows


def masks_of(*rows: str) -> torch.Tensor:
    """Mask logits [Q, 1, 1, w]: ``#`` is inside, ``.`` outside."""
    return torch.tensor([[[[BIG if c == "#" else -BIG for c in row]]] for row in rows])


def line(*, width: int) -> Canvas:
    return Canvas((1, width), (1, width))


@needs_shared
@pytest.mark.parametrize("kind", ["online", "offline"])
def test_clip_maps_equal_the_official_ones(kind) -> None:
    facts, vectors = recorded()
    classes = class_probabilities(
        vectors["in/logits"], vectors["in/aux"] if kind == "offline" else None
    )
    canvas = Canvas(**SIZES, resized="probabilities")
    found = panoptic_map(classes, vectors["in/masks"], canvas, IS_THING)
    assert found.ids.dtype == torch.int32
    assert as_official(found.segments) == facts["segments_infos"][kind]
    assert [s.query for s in found.segments] == vectors[f"out/{kind}/vps_ids"].tolist()
    assert (found.ids != vectors[f"out/{kind}/vps"]).sum() <= 2
    semantic = semantic_map(classes, vectors["in/masks"], canvas)
    assert (semantic != vectors[f"out/{kind}/vss"].long()).sum() <= 2


@needs_shared
def test_image_maps_equal_the_official_ones() -> None:
    facts, vectors = recorded()
    classes = class_probabilities(vectors["in/logits"])
    masks = vectors["in/masks"][:, :1]
    canvas = Canvas((72, 108), (72, 108))
    found = panoptic_map(classes, masks, canvas, IS_THING)
    assert as_official(found.segments) == facts["image_segments_info"]
    assert (found.ids[0] != vectors["out/image/panoptic"]).sum() <= 2
    official = vectors["out/image/sem"].argmax(0)
    assert (semantic_map(classes, masks, canvas)[0] != official).sum() <= 2


def test_stuff_of_one_category_is_one_segment_and_things_are_not() -> None:
    classes = class_probabilities(logits_of((0, 0.9), (2, 0.9), (0, 0.9), (2, 0.9)))
    masks = masks_of("##......", "..##....", "....##..", "......##")
    found = panoptic_map(classes, masks, line(width=8), [True, True, False])
    assert found.ids.flatten().tolist() == [1, 1, 2, 2, 3, 3, 2, 2]
    assert [(s.id, s.category, s.query) for s in found.segments] == [
        (1, 0, 0),
        (2, 2, 1),
        (3, 0, 2),
    ]


def test_a_query_that_loses_a_fifth_of_its_mask_stays_and_one_that_loses_more_does_not() -> None:
    classes = class_probabilities(logits_of((0, 0.95), (1, 0.9)))
    found = panoptic_map(classes, masks_of("##........", ".#####...."), line(width=10), [True] * 3)
    assert found.ids.flatten().tolist() == [1, 1, 2, 2, 2, 2, 0, 0, 0, 0]
    found = panoptic_map(classes, masks_of("##........", ".####....."), line(width=10), [True] * 3)
    assert found.ids.flatten().tolist() == [1, 1, 0, 0, 0, 0, 0, 0, 0, 0]


def test_unsure_queries_and_no_object_take_no_pixel() -> None:
    classes = class_probabilities(logits_of((0, 0.8), (3, 0.99), (1, 0.81)))
    found = panoptic_map(classes, masks_of("####", "####", "##.."), line(width=4), [True] * 3)
    assert found.ids.flatten().tolist() == [1, 1, 0, 0]
    assert [s.query for s in found.segments] == [2]


def test_without_a_sure_query_all_is_void_at_the_output_size() -> None:
    classes = class_probabilities(logits_of((0, 0.5)))
    found = panoptic_map(classes, masks_of("##"), Canvas((4, 8), (3, 5), (6, 10)), [True] * 3)
    assert found.segments == ()
    assert found.ids.shape == (1, 6, 10)
    assert not found.ids.any()


def test_overlap_is_counted_over_the_whole_clip() -> None:
    classes = class_probabilities(logits_of((0, 0.95), (1, 0.9)))
    first = masks_of("##......", "##......")  # the second loses all of this frame
    rest = masks_of("........", "########")
    masks = torch.cat([first, rest, rest], 1)
    found = panoptic_map(classes, masks, line(width=8), [True] * 3)
    assert [s.category for s in found.segments] == [0, 1]
    assert found.ids[:, 0].tolist() == [[1, 1, *[0] * 6], [2] * 8, [2] * 8]


def test_windows_whose_counts_are_added_up_give_the_map_of_the_whole_clip() -> None:
    generator = torch.Generator().manual_seed(0)
    classes = class_probabilities(6 * torch.randn(20, 4, generator=generator))
    masks = 3 * torch.randn(20, 7, 6, 8, generator=generator) - 1
    canvas = Canvas((24, 32), (20, 30), (40, 45), resized="probabilities")
    whole = panoptic_map(classes, masks, canvas, [True, False, True], min_overlap=0.3)
    kept = kept_queries(classes)
    parts = [claims(kept, part[kept.queries], canvas) for part in masks.split([3, 3, 1], dim=1)]
    ids, segments = numbered(
        kept, sum(part.counts for part in parts), [True, False, True], min_overlap=0.3
    )
    assert len(segments) > 2
    assert segments == whole.segments
    assert torch.equal(ids[torch.cat([part.owner for part in parts])], whole.ids)


def test_semantic_map_sums_over_many_queries_as_one_product_does() -> None:
    torch.manual_seed(0)
    classes = class_probabilities(torch.randn(37, 6))
    masks = torch.randn(37, 2, 5, 7)
    whole = torch.einsum("qc,qthw->cthw", classes[:, :-1], masks.sigmoid()).argmax(0)
    assert torch.equal(semantic_map(classes, masks, Canvas((5, 7), (5, 7))), whole)


def test_padding_is_cut_off_before_the_last_resize() -> None:
    masks = torch.randn(1, 1, 4, 4)
    found = Canvas((16, 16), (10, 12), (20, 24)).probabilities(masks)
    resized = F.interpolate(masks, (16, 16), mode="bilinear")[..., :10, :12]
    wanted = F.interpolate(resized, (20, 24), mode="bilinear").sigmoid()
    assert torch.equal(found, wanted)
