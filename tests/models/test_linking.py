"""Tracks of queries, as MinVIS links them."""

from __future__ import annotations

import pytest
import torch

from fcache.models.linking import QueryLinker, in_track_order
from tests.models.vectors import close, load
from tests.shared import needs_shared


def frames(num_frames: int, num_queries: int = 7, channels: int = 5) -> torch.Tensor:
    """Embeddings [C, T, Q] of frames that change a little, their queries shuffled."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(num_queries, channels, generator=generator)
    made = []
    for _ in range(num_frames):
        base = base + 0.05 * torch.randn(num_queries, channels, generator=generator)
        made.append(base[torch.randperm(num_queries, generator=generator)])
    return torch.stack(made).permute(2, 0, 1)


@needs_shared
def test_tracks_have_the_mean_logits_and_the_masks_of_the_official_linker() -> None:
    vectors = load("minvis_linking")
    order = QueryLinker().link(vectors["in/pred_embds"][0])
    logits = in_track_order(vectors["in/pred_logits"][0], order).mean(0)
    close(logits, vectors["out/minvis_logits"][0])
    masks = in_track_order(vectors["in/pred_masks"][0].transpose(0, 1), order)
    close(masks.transpose(0, 1), vectors["out/minvis_masks"][0])


def test_windows_one_after_another_link_as_the_whole_video_does() -> None:
    embeddings = frames(8)
    whole = QueryLinker().link(embeddings)
    linker = QueryLinker()
    parts = [linker.link(part) for part in embeddings.split([3, 1, 4], dim=1)]
    assert torch.equal(torch.cat(parts), whole)
    assert whole[0].tolist() == list(range(7))
    assert len({tuple(row) for row in whole.tolist()}) > 1


def test_a_track_follows_its_query_through_every_shuffle() -> None:
    generator = torch.Generator().manual_seed(1)
    base = torch.randn(6, 16, generator=generator)
    shuffles = torch.stack([torch.randperm(6, generator=generator) for _ in range(5)])
    embeddings = torch.stack([base[shuffle] for shuffle in shuffles]).permute(2, 0, 1)
    order = QueryLinker().link(embeddings * torch.tensor([1.0, 9.0, 0.1, 3.0, 2.0])[:, None])
    followed = in_track_order(shuffles, order)
    assert (followed == shuffles[0]).all()


def test_embeddings_that_are_not_numbers_are_refused() -> None:
    embeddings = frames(3)
    embeddings[0, 1, 2] = float("nan")
    with pytest.raises(ValueError, match="invalid numeric"):
        QueryLinker().link(embeddings)
