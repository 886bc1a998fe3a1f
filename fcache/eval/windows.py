"""Match counts summed over windows or images, and what each quirk of the scripts did to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fcache.eval.matching import CLEAN, OFFICIAL, active, match
from fcache.eval.quality import MatchCounts, PanopticQuality, panoptic_quality
from fcache.eval.quirks import TEXTS, Definition, Places, Quirk, changed
from fcache.eval.tables import FrameTable


@dataclass(slots=True)
class WindowSums:
    """Sums over windows of one length.

    Attributes:
        definition: Which definition the windows are matched by.
        counts: The matches.
        num_windows: Windows added.
        differences: By quirk, what leaving it out adds to the counts.
        places: By quirk, the windows it acted in.
    """

    definition: Definition
    counts: MatchCounts
    num_windows: int = 0
    differences: dict[str, MatchCounts] = field(default_factory=dict)
    places: dict[str, Places] = field(default_factory=dict)

    @classmethod
    def of(cls, num_categories: int, definition: Definition) -> WindowSums:
        """Sums of no window."""
        return cls(definition, MatchCounts.zeros(num_categories))

    @property
    def num_categories(self) -> int:
        """K."""
        return len(self.counts.tp)

    def add(self, window: Sequence[FrameTable]) -> None:
        """Adds a window.

        Raises:
            LabelError: the official counts need an area that the JSON does not state.
        """
        self.num_windows += 1
        if self.definition == "clean":
            self.counts += match(window, CLEAN, self.num_categories)
            return
        counts = match(window, OFFICIAL, self.num_categories)
        self.counts += counts
        for name in active(window):
            otherwise = match(window, OFFICIAL.without(name), self.num_categories)
            self._differs(name, otherwise - counts, window[0].place)

    def add_short(self, window: Sequence[FrameTable]) -> None:
        """Adds a video that is shorter than the window: one window, or nothing officially."""
        if self.definition == "clean":
            self.add(window)
        else:
            counts = match(window, OFFICIAL, self.num_categories)
            self._differs("no_windows", counts, window[0].place)

    def merge(self, other: WindowSums) -> None:
        """Adds the sums of another worker."""
        self.counts += other.counts
        self.num_windows += other.num_windows
        for name, difference in other.differences.items():
            place = other.places[name]
            self._differs(name, difference, place.first, place.count)

    def quality(self, is_thing: NDArray[np.bool_]) -> PanopticQuality:
        """Returns PQ, SQ and RQ."""
        return panoptic_quality(self.counts, is_thing)

    def quirks(self, metric: str, is_thing: NDArray[np.bool_]) -> list[Quirk]:
        """Returns the quirks that changed the mean PQ over all categories."""
        value = self.quality(is_thing).all.pq
        found = []
        for name in (name for name in TEXTS if name in self.differences):
            without = panoptic_quality(self.counts + self.differences[name], is_thing).all.pq
            found += changed(metric, name, value, without, self.places[name])
        return found

    def _differs(self, name: str, difference: MatchCounts, place: str, count: int = 1) -> None:
        if not difference.any():
            return
        total = self.differences.setdefault(name, MatchCounts.zeros(self.num_categories))
        total += difference
        self.places.setdefault(name, Places()).add(place, count)
