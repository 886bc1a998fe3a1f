"""Labels of a frame as class indices, joined by (video id, frame name).

The class index is a category's position in the manifest; ``IGNORE`` marks what belongs to none.
Labels keep their own size: readers bring them to a view's geometry in one step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fcache.data.label_folder import labels_in_folder
from fcache.data.label_images import label_header, read_mask, read_segment_ids
from fcache.data.panoptic_json import FrameSegments, SegmentIndex, read_segments
from fcache.errors import ConfigError, LabelError
from fcache.manifest import MANIFEST_SUFFIXES, Category, Labels, Manifest, load_manifest

IGNORE = 255
MAX_CATEGORIES = 254
_USUAL_SPLITS = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class Segment:
    """One segment of a frame; in a video an ``id`` is one track."""

    id: int
    category: int  # class index
    is_thing: bool
    is_crowd: bool


@dataclass(frozen=True, slots=True)
class Panoptic:
    """Segment ids of a frame. An id that no segment has, such as 0, belongs to no category."""

    ids: np.ndarray  # [height, width] int32
    segments: tuple[Segment, ...]


@dataclass(frozen=True, slots=True)
class _Place:
    labels: Labels
    path: Path
    json_path: Path | None


class LabelReader:
    """Reads the labels of a manifest, or of a bare folder of masks.

    Args:
        labels: Where labels lie, in the order they are tried.
        categories: In model order, at most 254.
        root: What relative patterns count from.
        origin: Names the labels in errors.
        splits: The split of each video id, where known.
        split_names: The splits to try for other videos.
        guessed: Whether the places are guesses, of which a misfit is passed over.

    Attributes:
        manifest: What ``from_manifest`` was given.

    Raises:
        ConfigError: there are no labels, no categories, or too many for one byte.
    """

    def __init__(
        self,
        labels: Sequence[Labels],
        categories: Sequence[Category],
        root: Path,
        *,
        origin: str,
        splits: Mapping[str, str] | None = None,
        split_names: Sequence[str] = (),
        guessed: bool = False,
    ) -> None:
        if not labels or not categories:
            raise ConfigError(f"{origin} names no {'categories' if labels else 'labels'}.")
        if len(categories) > MAX_CATEGORIES:
            raise ConfigError(
                f"{origin} has {len(categories)} categories; at most {MAX_CATEGORIES} fit beside "
                f"the ignore value {IGNORE}."
            )
        self.labels = tuple(sorted(labels, key=lambda entry: entry.format == "panoptic"))
        self.categories = tuple(categories)
        self.root = root
        self.origin = origin
        self._splits = dict(splits or {})
        self._split_names = tuple(split_names) or _USUAL_SPLITS
        self._guessed = guessed
        self.manifest: Manifest | None = None
        self._index_of = {category.id: i for i, category in enumerate(self.categories)}
        self._tables = {entry: self._table(entry) for entry in labels if entry.format == "semantic"}
        self._json: dict[Path, SegmentIndex] = {}

    @classmethod
    def from_manifest(cls, manifest: Manifest) -> LabelReader:
        """Returns a reader of a manifest's labels.

        Raises:
            ConfigError: the manifest has no labels, categories or root.
        """
        reader = cls(
            manifest.labels,
            manifest.categories,
            manifest.locate("", "the labels"),
            origin=f"manifest '{manifest.name}'",
            splits={video.id: video.split for video in manifest.videos if video.split},
            split_names=tuple(manifest.layout.splits) if manifest.layout else (),
        )
        reader.manifest = manifest
        return reader

    @classmethod
    def open(
        cls, where: str | Path, *, root: Path | None = None, video_ids: Sequence[str] = ()
    ) -> LabelReader:
        """Returns a reader for a label folder, a manifest file, or a shipped manifest's name.

        Args:
            where: ``fcache.data.label_folder`` says how a bare folder is read.
            root: Overrides a manifest's root.
            video_ids: The videos to be labelled; of a single one, a folder may hold bare masks.

        Raises:
            ConfigError: there is no such folder or manifest, or it holds no labels.
        """
        folder = Path(where)
        if not folder.is_dir():
            if folder.suffix not in MANIFEST_SUFFIXES and len(folder.parts) > 1:
                raise ConfigError(
                    f"labels='{where}' does not exist; expected a folder of masks or a manifest."
                )
            return cls.from_manifest(load_manifest(str(where), root))
        folder = folder.absolute()
        labels, categories = labels_in_folder(folder, single_video=len(video_ids) == 1)
        return cls(labels, categories, folder, origin=f"label folder '{where}'", guessed=True)

    @property
    def num_categories(self) -> int:
        """The number of classes; ``IGNORE`` is none of them."""
        return len(self.categories)

    @property
    def names(self) -> list[str]:
        """The category names, in model order."""
        return [category.name for category in self.categories]

    def has(self, video_id: str, frame_name: str, split: str | None = None) -> bool:
        """True if ``semantic`` finds a label for the frame."""
        return self.label_path(video_id, frame_name, split) is not None

    def has_panoptic(self, video_id: str, frame_name: str, split: str | None = None) -> bool:
        """True if ``panoptic`` finds a label for the frame."""
        return any(
            place.json_path is not None and self._find(place, video_id, frame_name) is not None
            for place in self._existing(video_id, frame_name, split)
        )

    def label_path(self, video_id: str, frame_name: str, split: str | None = None) -> Path | None:
        """Returns the image that ``semantic`` would read, or None."""
        for place in self._existing(video_id, frame_name, split):
            if place.json_path is None or self._find(place, video_id, frame_name) is not None:
                return place.path
        return None

    def entries(self, video_id: str, frame_name: str, split: str | None = None) -> list[Labels]:
        """Returns the label entries, semantic ones first, that hold a label for the frame."""
        return [
            place.labels
            for place in self._existing(video_id, frame_name, split)
            if place.json_path is None or self._find(place, video_id, frame_name) is not None
        ]

    def semantic(
        self, video_id: str, frame_name: str, split: str | None = None
    ) -> np.ndarray:  # [height, width] uint8
        """Returns the class index of each pixel, ``IGNORE`` where there is none.

        Semantic labels come before panoptic ones. Of panoptic labels crowds count, and pixels of an
        id that the JSON does not list are ignored.

        Raises:
            LabelError: no label is there, it is damaged, or it holds a value nothing names.
        """
        for place in self._existing(video_id, frame_name, split):
            if place.json_path is None:
                return self._classes(read_mask(place.path), place)
            segments = self._find(place, video_id, frame_name)
            if segments is not None:
                return self._classes_of_ids(read_segment_ids(place.path), segments, place)
        raise self._missing(video_id, frame_name, split, "label")

    def panoptic(self, video_id: str, frame_name: str, split: str | None = None) -> Panoptic:
        """Returns the segments of a frame, ids being tracks over the video.

        Raises:
            LabelError: no panoptic label is there, or it is damaged.
        """
        for place in self._existing(video_id, frame_name, split):
            listed = self._find(place, video_id, frame_name) if place.json_path else None
            if listed is None:
                continue
            classes = self._category_indices(listed, place)
            rows = zip(listed.ids.tolist(), classes.tolist(), listed.is_crowd.tolist(), strict=True)
            segments = tuple(
                Segment(number, index, self.categories[index].isthing, crowd)
                for number, index, crowd in rows
            )
            return Panoptic(read_segment_ids(place.path), segments)
        raise self._missing(video_id, frame_name, split, "panoptic label")

    def _places(self, video_id: str, frame_name: str, split: str | None) -> Iterator[_Place]:
        known = split or self._splits.get(video_id)
        for entry in self.labels:
            if "{frame}" not in entry.path and video_id.rpartition("/")[2] != frame_name:
                continue  # one image for a whole video id labels a single image only
            uses_split = "{split}" in entry.path + (entry.json_path or "")
            names = (known,) if known else self._split_names
            for name in names if uses_split else names[:1]:
                fields = {"video": video_id, "frame": frame_name, "split": name}
                json_path = entry.json_path and self.root / entry.json_path.format(**fields)
                yield _Place(entry, self.root / entry.path.format(**fields), json_path or None)

    def _existing(self, video_id: str, frame_name: str, split: str | None) -> Iterator[_Place]:
        for place in self._places(video_id, frame_name, split):
            if not place.path.is_file() or (place.json_path and not place.json_path.is_file()):
                continue
            if not (self._guessed and place.json_path is None and _is_rgb(place.path)):
                yield place

    def _find(self, place: _Place, video_id: str, frame_name: str) -> FrameSegments | None:
        assert place.json_path is not None
        if place.json_path not in self._json:
            self._json[place.json_path] = read_segments(place.json_path)
        index = self._json[place.json_path]
        return index.find(place.labels, place.path, video_id, frame_name)

    def _table(self, entry: Labels) -> np.ndarray:  # [65536] int16, -1 where nothing is named
        table = np.full(65536, -1 if entry.unlisted == "error" else IGNORE, dtype=np.int16)
        for category_id, index in self._index_of.items():
            value = category_id + entry.offset
            if not 0 <= value < len(table):
                raise ConfigError(
                    f"category {category_id} of {self.origin} would be stored as {value}, offset "
                    f"{entry.offset} included; expected 0 to {len(table) - 1}."
                )
            table[value] = index
        table[list(entry.void)] = IGNORE
        return table

    def _classes(self, mask: np.ndarray, place: _Place) -> np.ndarray:
        values = mask if mask.dtype.itemsize < 4 else np.clip(mask, 0, 65535)
        classes: np.ndarray = self._tables[place.labels][values]
        if classes.min(initial=0) < 0:
            value = int(mask[classes < 0].min())
            raise LabelError(
                f"label '{place.path}' holds the value {value}, which is neither void nor one of "
                f"the {self.num_categories} categories of {self.origin}; name it in a "
                "categories.json or in a manifest's categories or void."
            )
        return classes.astype(np.uint8)

    def _classes_of_ids(
        self, ids: np.ndarray, segments: FrameSegments, place: _Place
    ) -> np.ndarray:
        classes = np.full(ids.shape, IGNORE, dtype=np.uint8)
        if segments.ids.size:
            order = np.argsort(segments.ids, kind="stable")
            known = segments.ids[order]
            at = np.searchsorted(known, ids).clip(max=len(known) - 1)
            values = self._category_indices(segments, place)[order].astype(np.uint8)
            classes = np.where(known[at] == ids, values[at], classes)
        return classes

    def _category_indices(self, segments: FrameSegments, place: _Place) -> np.ndarray:  # [segments]
        try:
            rows = [self._index_of[number] for number in segments.category_ids.tolist()]
        except KeyError as error:
            raise LabelError(
                f"'{place.json_path}' uses category id {error}, which {self.origin} does not list."
            ) from None
        return np.array(rows, dtype=np.int64)

    def _missing(self, video_id: str, frame_name: str, split: str | None, what: str) -> LabelError:
        tried = [str(place.path) for place in self._places(video_id, frame_name, split)]
        wanted = ", ".join(f"'{path}'" for path in tried[:3])
        more = f" and {len(tried) - 3} more places" if len(tried) > 3 else ""
        return LabelError(
            f"{self.origin} has no {what} for frame '{frame_name}' of video '{video_id}'; "
            f"looked at {wanted}{more}."
        )


def _is_rgb(path: Path) -> bool:
    return label_header(path)[1] in {"RGB", "RGBA"}
