"""The texts of a run: what a methods paragraph says of the backbone, and the script."""

from __future__ import annotations

from typing import Any

import pytest

from fcache.train.methods import Told, methods_text, reproduce_text
from tests.train.making import tiny

IDENTITY = {
    "backbone": {"model": "resnet50"},
    "view": {"short_side": "480..1080", "crop": [604, 604]},
    "dtype": "float16",
}
SEEN = {"model": "resnet50", "short_side": "480..1080", "crop": "604"}


def told(ranks: int = 1) -> Told:
    return Told(IDENTITY, "manifest 'x'", 3, 5, 7, "panoptic", {"fcache": "1"}, ranks)


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, "resnet50 is frozen. Its four stage outputs are computed once per frame"),
        ({"source": "live"}, "resnet50 is frozen and runs in the training loop on frames resized"),
        ({"source": "live", "live_rounded": True}, "at most 604x604, rounded to float16."),
        ({"source": "live", "extract": SEEN}, "604x604 (a crop of its own for every clip)."),
        ({"source": "live", "extract": {**SEEN, "crops": 4}}, "cropped to at most 604x604."),
        (
            {"source": "live", "backbone": {"trainable": True}},
            "resnet50 trains with the rest; its batch norms, if it has any, stay frozen.",
        ),
        (
            {"source": "live", "backbone": {"trainable": True, "lr_factor": 0.5}},
            "learning rate of 0.001 (0.0005 in the backbone)",
        ),
    ],
)
def test_methods_say_where_the_backbone_runs(changes: dict[str, Any], wanted: str) -> None:
    assert wanted in methods_text(tiny(adapter="none", **changes), told())


def test_script_names_what_was_trained_on_and_starts_as_many_processes() -> None:
    alone = reproduce_text(tiny(), told(), ("--videos", "/data/my videos"))
    assert "from=${1:-'/data/my videos'}" in alone
    assert '--videos "$from" --run "$run"' in alone
    several = reproduce_text(tiny(), told(2), ("--cache", "c@k"))
    # Without the dashes torchrun takes --run for one of its own options.
    assert "exec torchrun --nproc-per-node 2 --no-python -- fcache train recipe=" in several
