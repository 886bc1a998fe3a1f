"""Images of different sizes in one call: batches of several shards, gathered until one is full.

A set with many sizes has shards of few images, which leave a fast device idle. Mixed, a frame's
last bits depend on the frames computed beside it, so the job asks for it only with ``mix=true``.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from fcache.errors import FeatureError
from fcache.extract.drawn import Drawn, Event
from fcache.extract.produced import Produced, joined
from fcache.extract.producer import Producer
from fcache.report import Report


class Mixer:
    """Computes the images of several events together, and hands the events on in their order.

    Args:
        producer: The network.
        batch: Images computed together, at most.
        report: Told when the device's memory does not hold them.
    """

    def __init__(self, producer: Producer, batch: int, report: Report) -> None:
        self._producer = producer
        self._batch = batch
        self._report = report
        self._spent_s = 0.0

    def events(self, events: Iterator[Event]) -> Iterator[tuple[Event, Produced | None]]:
        """Yields each event, with what was computed of it; None where the caller is to compute."""
        held: list[Event] = []
        for event in events:
            if held and _num_images(held) + _num_images([event]) > self._batch:
                yield from self._computed(held)
                held = []
            held.append(event)
            if isinstance(event, list) and not _images(event):  # a video's: computed alone
                yield from self._computed(held)
                held = []
        yield from self._computed(held)

    def take_spent_s(self) -> float:
        """How long was computed since this was last asked, seconds."""
        spent_s, self._spent_s = self._spent_s, 0.0
        return spent_s

    def _computed(self, held: Sequence[Event]) -> Iterator[tuple[Event, Produced | None]]:
        produced = iter(self._together([images for event in held if (images := _images(event))]))
        for event in held:
            yield event, next(produced, None) if _images(event) else None

    def _together(self, batches: Sequence[list[Drawn]]) -> list[Produced]:
        """One result a batch; none at all where there is nothing to mix."""
        if len(batches) < 2:
            return []
        frames = [drawn for batch in batches for drawn in batch]
        began_s = time.monotonic()
        try:
            alone = iter(
                self._producer.produce_mixed(
                    [drawn.canvas for drawn in frames],
                    [drawn.valid for drawn in frames],
                    self._report,
                )
            )
        except FeatureError:  # computed again one by one, which says whose features they are
            return []
        finally:
            self._spent_s += time.monotonic() - began_s
        return [joined([next(alone) for _ in batch]) for batch in batches]


def _images(event: Event) -> list[Drawn]:
    """The batch, if that is what an event is, and of images."""
    return event if isinstance(event, list) and event[0].item.packed else []


def _num_images(events: Sequence[Event]) -> int:
    return sum(len(_images(event)) for event in events)
