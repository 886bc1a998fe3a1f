"""Where the published scripts differ from the definition of their metric, and by how much.

A quirk is a behaviour of a script that its metric's definition does not have. The official scores
follow the scripts; beside each score stands every quirk that moved it, with the score as it would
be without that one quirk.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Definition = Literal["official", "clean"]

TEXTS = {
    "gt_area_from_json": (
        "areas of true segments are taken from the JSON, where they differ from the PNG's pixels"
    ),
    "pred_category_first_frame_wins": (
        "an id that changes its category inside a window keeps the category of its first frame"
    ),
    "last_crowd_per_class_wins": (
        "of several crowd regions of one category only the last one listed excuses predictions"
    ),
    "gt_png_id_not_in_json": (
        "pixels of a true id that the JSON does not list count as labelled, not as void"
    ),
    "no_windows": "a video shorter than the window contributes nothing",
    "stq_first_thing_is_crowd": (
        "the first true segment that a video's JSON lists is a thing; its number 0 is read as "
        "crowd, and its track is not scored"
    ),
    "stq_ignores_iscrowd": "crowd regions are scored as tracks; iscrowd is not read",
    "stq_void_column_counts": (
        "labelled pixels predicted void add void to the mean IoU as one more category, with IoU 0"
    ),
    "pred_value_spills": (
        "a predicted value of no category on a labelled pixel is counted under another category"
    ),
    "vc_last_clip_left_out": "the last clip of every video is left out",
    "vc_void_counts": "pixels without a label count as part of a clip's constant area",
    "vc_ignores_correctness": "a constant prediction scores whether it is right or wrong",
    "vc_clip_spans_gap": "clips run across gaps in the frame numbers as if there were none",
}


@dataclass(frozen=True, slots=True)
class Quirk:
    """One behaviour of a published script that changed a score of this run.

    Attributes:
        metric: The score, for instance ``VPQ_2``.
        name: A key of ``TEXTS``.
        value: The score as reported.
        without: The score if only this quirk were left out; NaN where that is undefined.
        num_places: Windows, videos or frames in which it acted.
        first: The first of them.
    """

    metric: str
    name: str
    value: float
    without: float
    num_places: int
    first: str

    @property
    def text(self) -> str:
        """The quirk in words, with what it did."""
        places = "1 place" if self.num_places == 1 else f"{self.num_places:,} places"
        return (
            f"{self.metric} {self.value:.6f}, without this {self.without:.6f}: "
            f"{TEXTS[self.name]} ({places}, first {self.first})"
        )


@dataclass(slots=True)
class Places:
    """Where something happened: how often, and first."""

    count: int = 0
    first: str = ""

    def add(self, place: str, count: int = 1) -> None:
        """Notes one more place."""
        self.first = self.first or place
        self.count += count


def changed(metric: str, name: str, value: float, without: float, places: Places) -> list[Quirk]:
    """Returns the quirk, or nothing where the score is the same without it."""
    # The last digits of a mean hang on the order of its sum.
    same = math.isclose(value, without, rel_tol=0, abs_tol=1e-12)
    if same or (math.isnan(value) and math.isnan(without)) or not places.count:
        return []
    return [Quirk(metric, name, value, without, places.count, places.first)]
