"""What a run reads where there is no cache: videos, listed and looked at as an extraction would."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fcache.backbones import describe, weights_hash
from fcache.backbones.identity import values_identity
from fcache.config import LiveExtract, Selection, TrainConfig, ViewGeometry
from fcache.data.labels import LabelReader
from fcache.data.targets import ClipLabels
from fcache.data.videos import ClipVideo, LabelKind, labelled
from fcache.errors import ConfigError, SourceError
from fcache.manifest import Manifest, load_manifest, names_manifest
from fcache.sources.decode import list_selected
from fcache.sources.geometry import draw_crop, place
from fcache.sources.images import frame_files, image_size
from fcache.sources.listing import Source, scan, scan_manifest
from fcache.sources.probe import probe_source
from fcache.train.data import TrainData, check_alike, held_out, kind_of, validation_frames
from fcache.train.decoded import DecodedVideo, LiveView

READERS = 8  # threads that look at sources: a decoder uses one core


def open_videos(videos: str, config: TrainConfig) -> TrainData:
    """Lists and looks at videos that are trained on without a cache.

    What cannot be read is left out, as an extraction would. To tell, a video file is decoded to the
    last frame that is selected, before every run and every plan: as long as two clips of it take in
    the loop. Of a folder of frames the headers are read; pixels that are damaged below a sound
    header stop the run when a clip comes to them, and again until the folder is mended or left out.

    Args:
        videos: A folder, or a manifest's path or name.
        config: The run's; its ``extract`` says how frames are seen.

    Raises:
        ConfigError: there is no such folder or manifest, no labels, or no video to train or to
            validate on.
        WeightsError: the backbone's weights cannot be found.
    """
    if config.view is not None or config.val_view is not None:
        raise ConfigError("view= and val_view= choose among a cache's views; videos have none.")
    view = val_view = live_view(config.extract)
    if config.val_extract is not None:
        val_view = live_view(config.val_extract)
        check_alike(view, val_view)
    manifest = load_manifest(videos) if names_manifest(videos) else None
    listing = scan_manifest(manifest) if manifest else scan([videos])
    reader = _labels(videos, config, manifest, [one.video_id for one in listing.sources])
    found, lost = _looked(view.extract.selection, listing.sources)
    kind = kind_of(config, reader, (one.draws(view.extract)[0] for one in found))
    train = val = _clips(found, view.extract, reader, kind, config.seed)
    if val_view is not view:
        others = found
        if val_view.extract.selection != view.extract.selection:
            others, _ = _looked(val_view.extract.selection, listing.sources)
        val = _clips(others, val_view.extract, reader, kind, config.seed)
    if not train or not val:
        some = [f"; for example video '{o.source.video_id}', frame '{o.names[0]}'" for o in found]
        raise ConfigError(
            f"none of {len(found)} readable videos of '{videos}' has {kind} labels from "
            f"{reader.origin}. Labels join by video id and frame name{''.join(some[:1])}."
        )
    train, val, split_by = _split(videos, config, train, val)
    return TrainData(
        where=("--videos", str(Path(videos).absolute()) if Path(videos).exists() else videos),
        cache=None,
        view=view,
        val_view=val_view,
        labels=ClipLabels(reader, kind),
        videos=tuple(train),
        frames=validation_frames(val, config.val_frames),
        split_by=split_by,
        quarantined=tuple((one.source.video_id, one.reason) for one in lost),
    )


def live_view(extract: LiveExtract | None) -> LiveView:
    """Returns what a run makes of videos in the loop.

    Raises:
        ConfigError: the recipe does not say.
        WeightsError: the backbone's weights cannot be found.
    """
    if extract is None:
        raise ConfigError("nothing says how the videos are seen; expected extract.model= and more.")
    sha256, _ = weights_hash(extract.backbone)
    return LiveView(values_identity(extract, describe(extract.backbone), sha256), extract)


@dataclass(frozen=True, slots=True)
class _Lost:
    source: Source
    reason: str


@dataclass(frozen=True, slots=True)
class _Looked:
    """A readable source: its sides in pixels, and its selected frames."""

    source: Source
    height: int
    width: int
    names: tuple[str, ...]

    def draws(self, config: LiveExtract) -> list[DecodedVideo]:
        """The full view, or the crops that an extraction would cache; of fresh ones the first."""
        if config.crop is None:
            placed = place(self.height, self.width, config.geometry)
            return [DecodedVideo(self.source, self.names, placed)]
        return [self._crop(config.geometry, k) for k in range(max(1, config.crops))]

    def afresh(self, config: LiveExtract, seed: int) -> Callable[[int], DecodedVideo] | None:
        """Makes the crop of an epoch, where every epoch has another."""
        if config.crop is None or config.crops:
            return None
        return partial(self._crop, config.geometry.model_copy(update={"crop_seed": seed}))

    def _crop(self, geometry: ViewGeometry, k: int) -> DecodedVideo:
        placed = draw_crop(self.source.video_id, k, self.height, self.width, geometry)
        return DecodedVideo(self.source, self.names, placed, k)


def _looked(selection: Selection, sources: Sequence[Source]) -> tuple[list[_Looked], list[_Lost]]:
    """The readable sources, by id, and the others."""
    with ThreadPoolExecutor(READERS) as pool:
        found = list(pool.map(partial(_look, selection), sources))
    readable = [one for one in found if isinstance(one, _Looked)]
    readable.sort(key=lambda one: one.source.video_id)
    return readable, [one for one in found if isinstance(one, _Lost)]


def _clips(
    found: Sequence[_Looked], config: LiveExtract, reader: LabelReader, kind: LabelKind, seed: int
) -> list[ClipVideo]:
    """The videos with labels."""
    clips = (
        labelled(one.source.video_id, one.draws(config), reader, kind, one.afresh(config, seed))
        for one in found
    )
    return [video for video in clips if all(video.labelled)]


def _look(selection: Selection, source: Source) -> _Looked | _Lost:
    try:
        facts = probe_source(source.path, source.kind)
        selected = list_selected(source.path, source.kind, selection)
        if source.kind == "frames":
            selected = _with_headers(source.path, selected, (facts.height, facts.width), selection)
    except SourceError as error:
        return _Lost(source, error.message)
    return _Looked(source, facts.height, facts.width, tuple(name for _, name in selected))


def _with_headers(
    folder: Path, selected: list[tuple[int, str]], size: tuple[int, int], selection: Selection
) -> list[tuple[int, str]]:
    """The selected frames of a folder, or its first sound ones, as ``on_error`` says.

    Raises:
        SourceError: a header cannot be read, or tells of another size than that of the first.
    """
    files = frame_files(folder)
    for num_sound, (source_index, _) in enumerate(selected):
        try:
            found = image_size(files[source_index])
            if found != size:
                raise SourceError(
                    f"the size changes: '{files[source_index].name}' is {found[1]}x{found[0]}, "
                    f"the first was {size[1]}x{size[0]} (width x height)."
                )
        except SourceError:
            if num_sound == 0 or selection.on_error != "keep_prefix":
                raise
            return selected[:num_sound]
    return selected


def _labels(
    videos: str, config: TrainConfig, manifest: Manifest | None, video_ids: Sequence[str]
) -> LabelReader:
    if config.labels is not None:
        return LabelReader.open(str(config.labels), video_ids=video_ids)
    if manifest is None or not manifest.labels:
        raise ConfigError(f"nothing says where the labels of '{videos}' are; expected labels=DIR.")
    return LabelReader.from_manifest(manifest)


def _split(
    videos: str, config: TrainConfig, train: list[ClipVideo], val: list[ClipVideo]
) -> tuple[list[ClipVideo], list[ClipVideo], str]:
    """Returns the videos to train and to validate on, and how they were told apart."""
    known = sorted({video.draws[0].split or "" for video in train} - {""})
    if not known:
        return held_out(config, train, val, f"'{videos}'")
    parts = []
    for of, split in ((train, config.train_split), (val, config.val_split)):
        parts.append([video for video in of if video.draws[0].split == split])
        if not parts[-1]:
            raise ConfigError(
                f"'{videos}' has no labelled video of split '{split}'; expected one of: "
                f"{', '.join(known)}."
            )
    return parts[0], parts[1], f"splits '{config.train_split}' and '{config.val_split}'"
