from __future__ import annotations

import torch

from fcache.models.official import KeyMap
from fcache.models.official_names import SPATIAL_PRIOR
from fcache.models.spatial_prior import SpatialPrior
from tests.models.vectors import below, close, load, load_weights
from tests.shared import needs_shared


def tokens(levels):
    """The official layout: the finest level as a map, the others as tokens."""
    return [levels[0], *(level.flatten(2).transpose(1, 2) for level in levels[1:])]


@needs_shared
def test_maps_equal_the_official_ones_with_running_and_with_batch_statistics() -> None:
    vectors = load("vit_adapter_spm")
    prior = SpatialPrior(48, 8)
    load_weights(prior, below(vectors, "sd/"), SPATIAL_PRIOR)
    with torch.no_grad():
        running = tokens(prior.eval()(vectors["in"]))
        batch = tokens(prior.train()(vectors["in"]))
    for index in range(4):
        close(running[index], vectors[f"out_eval/{index}"])
        close(batch[index], vectors[f"out_train/{index}"])


@needs_shared
def test_running_statistics_after_a_training_step_equal_the_official_ones() -> None:
    vectors = load("vit_adapter_spm")
    prior = SpatialPrior(48, 8)
    load_weights(prior, below(vectors, "sd/"), SPATIAL_PRIOR)
    prior(vectors["in"])
    keys, state = KeyMap(SPATIAL_PRIOR), prior.state_dict()
    after = below(vectors, "sd_after_train/")
    assert len(after) == 18
    for name, expected in after.items():
        close(state[keys.ours(name)], expected)


def test_the_norm_is_the_callers() -> None:
    made = []

    def norm(width):
        made.append(width)
        return torch.nn.GroupNorm(1, width)

    prior = SpatialPrior(16, 4, norm)
    assert made == [4, 4, 4, 8, 16, 16]
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in prior.modules())
