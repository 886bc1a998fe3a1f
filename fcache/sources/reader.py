"""Decoding a video stream up to the first sign of damage.

Decoding stops, and says why, at: a packet the demuxer marks corrupt or cannot read; an error of the
decoder, which is told to fail instead of concealing; a picture the decoder marks corrupt; an H.264
or HEVC packet that gives no picture; the end of data before the container's index or structure
ends. Pictures presented before are sound as far as the codec can tell, and are yielded; one that
was decoded after a damaged one never is.

**What cannot be seen.** Most codecs carry no checksum over their pixels: a flipped bit that leaves
a decodable stream changes pixels without a trace. Of 100 single flips in 48 frames of 176x144 each,
these left wrong pixels unseen: AV1 2, H.264 with CABAC 7 (in another clip 17 of 60), MPEG-4 25,
H.264 with CAVLC 34, Motion JPEG 39, HEVC without picture hashes 74, VP9 88, FFV1 100 (FFmpeg
conceals where its checksum fails, and marks nothing). A flip in AV1 may show itself only some
frames later, so that a kept prefix may end in wrong pixels. A flip in a container's own tables or
block headers may give a shorter or differently timed video that is valid (VP9 2, AV1 4 of the 100).
Nor can a file be told from a shorter whole one if it was cut between packets in a format that
states no sizes (MPEG transport stream, raw streams, live WebM) or between MP4 fragments. Files that
must be what they were need a hash from their publisher, which the manifest keeps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from pathlib import Path

import av
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from fcache.sources.container import has_index, read_outline

# One packet is one picture; other codecs have packets that show nothing (VP8, packed MPEG-4).
PICTURE_PER_PACKET = frozenset({"h264", "hevc"})
# Recordings of a broadcast start anywhere; what precedes the first key frame cannot be decoded.
STREAMED_FORMATS = frozenset({"h264", "hevc", "mpeg", "mpegts"})

UNKNOWN_ORDER = -1


class PictureReader:
    """Demuxes and decodes one stream, and remembers what ended it.

    Attributes:
        broken: What ended the stream before its time; empty for a sound one. Valid once
            ``pictures`` is exhausted.
    """

    def __init__(self, path: Path, container: InputContainer, stream: VideoStream) -> None:
        self.broken = ""
        self._container = container
        self._stream = stream
        self._cut = _fatal_cut(path)
        self._indexed = has_index(container)
        self._strict = stream.codec_context.name in PICTURE_PER_PACKET
        self._order = _Order(self._strict)
        self._last_dts: int | None = None
        self._num_packets = 0
        self._data_end = False

    def pictures(self) -> Iterator[VideoFrame]:
        """Yields sound pictures in presentation order."""
        for packet in self._packets():
            try:
                decoded = self._stream.codec_context.decode(packet)
            except av.error.FFmpegError as error:
                self.broken = f"the decoder fails: {error.strerror}"
                break
            for picture in decoded:
                self.broken = self._order.show(picture)
                if self.broken:
                    yield from self._order.all_sound()
                    return
                yield from self._order.released()
            self._last_dts = self._last_dts if packet.dts is None else packet.dts
        if not self.broken and self._ends_early():
            self.broken = "the data end early"
        for picture in self._flushed():
            problem = self._order.show(picture, keep=not self.broken or self._is_due(picture))
            if problem:
                self.broken = self.broken or problem
                break
        yield from self._order.all_sound()
        self.broken = self.broken or self._order.lost()

    def explain(self, num_sound: int) -> str:
        """Returns the reason the user reads."""
        if not (self._data_end and self._ends_early()):
            return f"damaged: {num_sound} frames are sound, then {self.broken}."
        if self._promised() > num_sound:
            return (
                f"truncated: the container promises {self._promised()} frames, "
                f"the data ends after {num_sound}."
            )
        return f"truncated: {self._cut}; {num_sound} frames are whole."

    def _packets(self) -> Iterator[Packet[VideoStream]]:
        """Yields packets up to the first that is not whole."""
        skipping = bool(STREAMED_FORMATS & set(self._container.format.name.split(",")))
        try:
            for packet in self._container.demux(self._stream):
                skipping = skipping and not packet.is_keyframe
                if packet.size == 0 or skipping:
                    continue
                if packet.is_corrupt:
                    self._data_end = True
                    self.broken = "a packet is cut off or marked corrupt"
                    return
                self._num_packets += 1
                self._order.send(packet)
                yield packet
        except av.error.FFmpegError as error:
            self.broken = f"reading fails: {error.strerror}"
        self._data_end = True

    def _flushed(self) -> list[VideoFrame]:
        """Returns the pictures the decoder still holds."""
        try:
            return self._stream.codec_context.decode(None)
        except av.error.FFmpegError as error:
            self.broken = self.broken or f"the decoder fails: {error.strerror}"
            return []

    def _promised(self) -> int:
        return len(self._stream.index_entries) if self._indexed else 0

    def _ends_early(self) -> bool:
        return bool(self._cut) or self._num_packets < self._promised()

    def _is_due(self, picture: VideoFrame) -> bool:
        """Tells whether a picture precedes everything lost.

        What is lost has a dts after the last good packet's, and nothing is shown before its dts.
        """
        if picture.pts is None or self._last_dts is None:
            return False
        return picture.pts <= self._last_dts


class _Order:
    """Which packets have become pictures, and which pictures may be handed on.

    A picture is held until every picture decoded before it has been shown sound: one of them may
    be its reference, and the decoder marks damage only when it presents the damaged picture.
    """

    def __init__(self, strict: bool) -> None:
        self._strict = strict
        self._waiting: dict[int, int] = {}  # pts of a sent packet -> its place in decoding order
        self._held: deque[tuple[int, VideoFrame]] = deque()
        self._num_sent = 0
        self._started = False
        self._bad: int | None = None

    def send(self, packet: Packet[VideoStream]) -> None:
        if packet.pts is not None and not packet.is_discard:
            self._waiting[packet.pts] = self._num_sent
        self._num_sent += 1

    def show(self, picture: VideoFrame, *, keep: bool = True) -> str:
        """Takes the next presented picture; returns what is wrong with it, or an empty string."""
        place = UNKNOWN_ORDER
        if picture.pts is not None:
            place = self._waiting.pop(picture.pts, UNKNOWN_ORDER)
            passed = [pts for pts in self._waiting if pts < picture.pts]
            # An open start holds pictures that cannot be shown, and a field pair is one picture.
            if passed and self._strict and self._started and not picture.interlaced_frame:
                self._bad = min(self._waiting[pts] for pts in passed)
                return f"{len(passed)} packets give no picture"
            for pts in passed:
                del self._waiting[pts]
        if picture.is_corrupt:
            self._bad = place
            return "the decoder marks a picture corrupt"
        self._started = True
        if keep:
            self._held.append((place, picture))
        return ""

    def released(self) -> Iterator[VideoFrame]:
        """Yields held pictures that depend on nothing still to be shown."""
        first_waiting = min(self._waiting.values(), default=self._num_sent)
        while self._held and self._held[0][0] < first_waiting:
            yield self._held.popleft()[1]

    def all_sound(self) -> Iterator[VideoFrame]:
        """Yields the held pictures that were decoded before the damaged one."""
        while self._held:
            place, picture = self._held.popleft()
            if self._bad is not None and place > self._bad:
                return
            yield picture

    def lost(self) -> str:
        """Returns how many packets never became a picture, or an empty string."""
        if not (self._strict and self._waiting):
            return ""
        return f"{len(self._waiting)} packets give no picture"


def _fatal_cut(path: Path) -> str:
    """Returns what the file's end cuts off, where that can cost frames the index does not list.

    An MP4 index lists what the media data must hold, so that only a cut fragment header hides
    frames; a cut comment or a cut sound track costs none.
    """
    outline = read_outline(path)
    if outline.family == "mp4" and outline.names[-1:] != ("moof",):
        return ""
    return outline.cut
