"""Finding out what a source is, and what is cached of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from fcache.config import ExtractConfig, Selection, ViewGeometry
from fcache.errors import SourceError
from fcache.extract.identity import item_name, selection_identity
from fcache.extract.plan import KnownSource, PlannedSource, Rejected, SourceState
from fcache.extract.reuse import Held
from fcache.manifest import SourceKind
from fcache.sources.content import HashMemo, content_hash
from fcache.sources.geometry import Placement, draw_crop, place
from fcache.sources.listing import Source
from fcache.sources.probe import SourceFacts, estimate_frames, probe_source
from fcache.store.identity import item_id
from fcache.store.index import ViewIndex, ViewState
from fcache.store.layout import SHARD_ROWS, Bucket
from fcache.store.records import PLACEMENT_FIELDS, Item, ItemRequest, Outcome

Looked = PlannedSource | Rejected
_Placed = tuple[Bucket, Mapping[str, int | bool]]


@dataclass(slots=True)
class Look:
    """Looks at one source at a time, from any thread.

    What sources share is made once: there may be hundreds of thousands of them.

    Attributes:
        config: The settings.
        index: The view; None if there is none yet.
        state: Its bookkeeping.
        held: Its frames.
        memo: Remembers the hashes of sources.
        retry_failed: Whether what is in quarantine counts as to be done.
        trust_manifest: Whether sizes and lengths are taken from the manifest unseen.
    """

    config: ExtractConfig
    index: ViewIndex | None
    state: ViewState | None
    held: Held | None
    memo: HashMemo
    retry_failed: bool
    trust_manifest: bool
    _geometry: ViewGeometry = field(init=False)
    _wanted: Selection = field(init=False)
    _selections: dict[SourceKind, dict[str, Any]] = field(init=False, default_factory=dict)
    _placements: dict[tuple[int, int], _Placed] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._geometry, self._wanted = self.config.geometry, self.config.selection

    def __call__(self, known: KnownSource) -> list[Looked]:
        """Returns the source's items: one, or in a view of crops one for each draw."""
        source = known.source
        try:
            sha256 = known.sha256 or content_hash(source.path, source.kind, self.memo)
        except SourceError as error:
            return [self._unreadable(source, error)]
        sized = _Sized(known, sha256)
        if self._geometry.crop is None:
            return [self._look(sized, None)]
        found: list[Looked] = []
        for draw in range(self.config.crops):
            found.append(self._look(sized, draw))
            if isinstance(found[-1], Rejected):  # the source is broken, not this crop of it
                return found[-1:]
        return found

    def _look(self, sized: _Sized, draw: int | None) -> Looked:
        known, source, sha256 = sized.known, sized.known.source, sized.sha256
        selection = self._selection(source, sha256, draw)
        name = self._name(source, sha256, selection, draw)
        quarantined = self._quarantined(name)
        if quarantined and not self.retry_failed:
            return Rejected(source, sha256, name, quarantined.reason, known=True)
        held = self.state.items.get(name) if self.state else None
        try:
            request = held or self._request(sized, name, selection, draw)
        except SourceError as error:
            if known.sha256 is not None and not self._is_there(known):
                return self._unreadable(source, error)
            return Rejected(source, sha256, name, error.message)
        return self._planned(source, sha256, request, held)

    def _name(
        self, source: Source, sha256: str, selection: dict[str, Any], draw: int | None
    ) -> str:
        """The item's name.

        One that lacks frames it had borrowed has a successor. That borrows what there is, also
        from it, and computes the rest: the source of those who lent may be no more.
        """
        for again in count():
            name = item_name(self.config, sha256, selection, source.video_id, draw, again)
            item = self.state.items.get(name) if self.state else None
            if item is None or self.held is None or not self.held.has_lost(item):
                break
        return name

    def _unreadable(self, source: Source, error: SourceError) -> Rejected:
        """A source whose content is not known: it is looked at again by every job."""
        selection = self._selected(source.kind)
        name = item_id(f"unreadable:{source.video_id}", selection)
        return Rejected(source, None, name, error.message, self._quarantined(name) is not None)

    def _is_there(self, known: KnownSource) -> bool:
        """Whether a source holds what its manifest says: only then its damage is the content's."""
        try:
            found = content_hash(known.source.path, known.source.kind, self.memo)
        except SourceError:
            return False
        return found == known.sha256

    def _selection(self, source: Source, sha256: str, draw: int | None) -> dict[str, Any]:
        """The selection in the item's name.

        A source that is known to be sound to its end needs no ``on_error``: it is not made twice.
        """
        selection = self._selected(source.kind)
        strict = {key: value for key, value in selection.items() if key != "on_error"}
        if strict == selection or self.state is None:
            return selection
        name = item_name(self.config, sha256, strict, source.video_id, draw)
        outcome = self.state.outcomes.get(name)
        return strict if outcome and outcome.status == "done" else selection

    def _selected(self, kind: SourceKind) -> dict[str, Any]:
        if kind not in self._selections:
            self._selections[kind] = selection_identity(self.config, kind)
        return self._selections[kind]

    def _quarantined(self, name: str) -> Outcome | None:
        outcome = self.state.outcomes.get(name) if self.state else None
        return outcome if outcome and outcome.status == "quarantined" else None

    def _request(
        self, sized: _Sized, name: str, selection: dict[str, Any], draw: int | None
    ) -> ItemRequest:
        source = sized.known.source
        height, width, num_frames = sized.sides(
            self._wanted, trusted=self.trust_manifest and not selection
        )
        bucket, placement = self._place(source, draw, height, width)
        request = ItemRequest(
            item=name,
            content=sized.sha256,
            selection=selection,
            bucket=bucket,
            placement=placement,
            expected_frames=max(1, num_frames),
            draw=draw,
            packed=source.kind == "image",
        )
        return self.held.lend(request, source, self.config, self.memo) if self.held else request

    def _place(self, source: Source, draw: int | None, height: int, width: int) -> _Placed:
        """The canvas, and how a frame of a source's size lies on it."""
        if draw is not None:
            return _split(draw_crop(source.video_id, draw, height, width, self._geometry))
        size = height, width
        if size not in self._placements:
            self._placements[size] = _split(place(height, width, self._geometry))
        return self._placements[size]

    def _planned(
        self, source: Source, sha256: str, request: ItemRequest, held: Item | None
    ) -> PlannedSource:
        own, borrowed = request.expected_frames, len(request.borrowed)
        if held is None or self.state is None or self.index is None:
            return PlannedSource(source, sha256, request, "new", own + borrowed, own)
        array = self.index.feature_array
        missing = self.state.missing(held, array)
        if self.state.is_done(held):
            own = self.state.outcomes[held.item].num_frames
            left = sum(min(SHARD_ROWS, own - first) for first, _ in missing)
            state: SourceState = "done" if self.state.is_complete(held, array) else "partial"
            return PlannedSource(source, sha256, held, state, own + borrowed, left)
        if held.packed or not held.num_rows:
            return PlannedSource(source, sha256, held, "partial", own + borrowed, own)
        # A guess: the container said how many frames there are, and may be wrong.
        left = max(1, own - (held.num_rows - len(missing) * SHARD_ROWS))
        return PlannedSource(source, sha256, held, "partial", own + borrowed, left)


@dataclass(slots=True)
class _Sized:
    """A source of known content; it is opened at most once, when its sizes are asked for."""

    known: KnownSource
    sha256: str
    _facts: SourceFacts | None = None

    def sides(self, selection: Selection, *, trusted: bool) -> tuple[int, int, int]:
        """Returns height, width and number of selected frames, the last about.

        Args:
            selection: Which frames.
            trusted: Whether the manifest knows them.

        Raises:
            SourceError: it cannot be opened.
        """
        height, width, num_frames = self.known.height, self.known.width, self.known.num_frames
        if not trusted or height is None or width is None or num_frames is None:
            facts = self._facts
            if facts is None:
                source = self.known.source
                facts = self._facts = probe_source(source.path, source.kind)
            height, width = facts.height, facts.width
            if num_frames is None or selection != Selection():
                num_frames = estimate_frames(facts, selection)
        return height, width, num_frames


def _split(placed: Placement) -> _Placed:
    """A placement as items have it, with the canvas apart."""
    fields = {name: getattr(placed, name) for name in (*PLACEMENT_FIELDS, "canvas_h", "canvas_w")}
    return Bucket(fields.pop("canvas_h"), fields.pop("canvas_w")), fields
