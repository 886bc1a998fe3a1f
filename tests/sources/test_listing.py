"""Listing: what folders, files, patterns and layouts name, and how videos are called."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from fcache.errors import ConfigError
from fcache.manifest import Layout, Manifest, Video, load_manifest
from fcache.sources.listing import from_manifest, list_sources, scan, scan_manifest
from tests.shared import SHARED, needs_shared


def touch(path: Path, content: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 2)).save(path)
    return path


def ids(*words: str | Path) -> list[str]:
    return [source.video_id for source in list_sources(words)]


@contextmanager
def unprivileged() -> Iterator[None]:
    """Root reads every folder; file modes mean something to others only."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_ids_are_paths_below_the_root_without_suffix(tmp_path: Path) -> None:
    touch(tmp_path / "b.mp4")
    touch(tmp_path / "deep/er/a.clip.MKV")
    touch(tmp_path / "notes.txt")
    assert ids(tmp_path) == ["b", "deep/er/a.clip"]
    assert [s.path for s in list_sources([tmp_path])] == [
        tmp_path / "b.mp4",
        tmp_path / "deep/er/a.clip.MKV",
    ]


def test_order_does_not_depend_on_the_order_of_creation(tmp_path: Path) -> None:
    for name in ("z", "a", "m"):
        touch(tmp_path / f"{name}.mp4")
    assert ids(tmp_path) == ["a", "m", "z"]
    assert ids(tmp_path / "z.mp4", tmp_path / "a.mp4") == ["a", "z"]


def test_names_with_spaces_equals_signs_and_other_scripts_are_kept(tmp_path: Path) -> None:
    names = ["a=b", "mit Leerzeichen", "видео 視頻", "x[1]*?"]
    for name in names:
        touch(tmp_path / f"{name}.mp4")
    assert ids(tmp_path) == sorted(names)
    assert ids(tmp_path / "x[1]*?.mp4") == ["x[1]*?"]


def test_zero_byte_video_is_listed(tmp_path: Path) -> None:
    touch(tmp_path / "empty.webm", b"")
    assert ids(tmp_path) == ["empty"]


def test_file_named_outright_is_taken_whatever_its_suffix(tmp_path: Path) -> None:
    touch(tmp_path / "clip.dat")
    touch(tmp_path / "clip.mp4")
    assert ids(tmp_path) == ["clip"]
    assert [(s.video_id, s.kind) for s in list_sources([tmp_path / "clip.dat"])] == [
        ("clip", "video")
    ]


def test_folder_of_images_is_one_video(tmp_path: Path) -> None:
    for i in range(3):
        image(tmp_path / f"one/{i}.jpg")
    image(tmp_path / "lone/only.png")
    found = [(s.video_id, s.kind) for s in list_sources([tmp_path])]
    assert found == [("lone/only", "image"), ("one", "frames")]


@pytest.mark.parametrize("name", ["images", "frames", "rgb", "origin", "JPEGImages"])
def test_last_frame_folder_name_is_dropped(tmp_path: Path, name: str) -> None:
    image(tmp_path / "set/clip" / name / "0.jpg")
    assert [(s.video_id, s.kind) for s in list_sources([tmp_path / "set"])] == [("clip", "frames")]
    assert ids(tmp_path / "set/clip") == ["clip"]
    assert ids(tmp_path / "set/clip" / name) == ["clip"]


def test_colliding_ids_keep_what_was_dropped(tmp_path: Path) -> None:
    touch(tmp_path / "clip.mp4")
    touch(tmp_path / "clip.webm")
    touch(tmp_path / "other.mp4")
    assert ids(tmp_path) == ["clip.mp4", "clip.webm", "other"]


def test_one_name_in_two_roots_takes_the_folders_above(tmp_path: Path) -> None:
    touch(tmp_path / "day/cam/clip.mp4")
    touch(tmp_path / "night/cam/clip.mp4")
    assert ids(tmp_path / "day/cam", tmp_path / "night/cam") == [
        "day/cam/clip.mp4",
        "night/cam/clip.mp4",
    ]
    touch(tmp_path / "night/rear/clip.mp4")
    assert ids(tmp_path / "night/cam/clip.mp4", tmp_path / "night/rear/clip.mp4") == [
        "cam/clip.mp4",
        "rear/clip.mp4",
    ]


def test_same_file_named_twice_is_listed_once(tmp_path: Path) -> None:
    path = touch(tmp_path / "clip.mp4")
    assert ids(tmp_path, path, str(tmp_path) + "/./clip.mp4") == ["clip"]


def test_ids_are_never_absolute_and_never_climb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path / "clip.mp4")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert ids("..") == ["clip"]
    assert ids("../clip.mp4") == ["clip"]


def test_pattern_counts_ids_from_its_fixed_part(tmp_path: Path) -> None:
    touch(tmp_path / "v/a/1.mp4")
    touch(tmp_path / "v/b/2.mp4")
    touch(tmp_path / "v/b/readme.md")
    image(tmp_path / "v/b/2.jpg")
    assert ids(tmp_path / "v/**/*.mp4") == ["a/1", "b/2"]
    assert [(s.video_id, s.kind) for s in list_sources([tmp_path / "v/b/*.jpg"])] == [
        ("2", "image")
    ]
    touch(tmp_path / "v/b/raw.dat")
    assert ids(tmp_path / "v/b/*.dat") == ["raw"]
    assert ids(tmp_path / "v/b/*") == ["2.jpg", "2.mp4"]


def test_label_folders_and_hidden_names_are_left_out(tmp_path: Path) -> None:
    for i in range(2):
        image(tmp_path / f"clip/images/{i}.jpg")
        image(tmp_path / f"clip/semantic/{i}.png")
        image(tmp_path / f"clip/.thumbs/{i}.png")
    touch(tmp_path / "._clip.mp4")
    listing = scan([tmp_path])
    assert [s.video_id for s in listing.sources] == ["clip"]
    assert [path for path, _ in listing.notes] == [str(tmp_path / "clip/semantic")]
    assert ids(tmp_path / "clip/semantic") == ["semantic"]


def test_images_beside_videos_are_left_out_and_noted(tmp_path: Path) -> None:
    touch(tmp_path / "clip.mp4")
    image(tmp_path / "clip.jpg")
    image(tmp_path / "poster.jpg")
    listing = scan([tmp_path])
    assert [s.video_id for s in listing.sources] == ["clip"]
    assert "2 images beside videos" in listing.notes[0][1]


def test_a_store_is_not_searched(tmp_path: Path) -> None:
    touch(tmp_path / "cache/zarr.json", b"{}")
    touch(tmp_path / "cache/inner/clip.mp4")
    touch(tmp_path / "real.mp4")
    assert ids(tmp_path) == ["real"]


@pytest.mark.timeout(20)
def test_loops_of_links_end_and_real_folders_name_the_video(tmp_path: Path) -> None:
    touch(tmp_path / "real/clip.mp4")
    (tmp_path / "a_link").symlink_to(tmp_path / "real")
    (tmp_path / "real/up").symlink_to(tmp_path)
    (tmp_path / "self").symlink_to(tmp_path / "self")
    assert ids(tmp_path) == ["real/clip"]
    (tmp_path / "a_folder").mkdir()
    (tmp_path / "a_folder/link").symlink_to(tmp_path / "real")
    assert ids(tmp_path) == ["real/clip"]


def test_linked_folder_outside_the_root_is_read(tmp_path: Path) -> None:
    touch(tmp_path / "disk/clip.mp4")
    (tmp_path / "set").mkdir()
    (tmp_path / "set/train").symlink_to(tmp_path / "disk")
    (source,) = list_sources([tmp_path / "set"])
    assert (source.video_id, source.split) == ("train/clip", "train")


def test_link_to_nothing_is_noted(tmp_path: Path) -> None:
    touch(tmp_path / "clip.mp4")
    (tmp_path / "gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
    listing = scan([tmp_path])
    assert listing.notes == [(str(tmp_path / "gone.mp4"), "was left out: it is a link to nothing")]
    with pytest.raises(ConfigError, match=r"is a link to '.*nowhere\.mp4', which does not exist"):
        list_sources([tmp_path / "gone.mp4"])


def test_unreadable_subfolder_is_noted_and_the_rest_is_listed(tmp_path: Path) -> None:
    touch(tmp_path / "clip.mp4")
    touch(tmp_path / "locked/inner.mp4")
    for folder in (tmp_path, *tmp_path.parents[:3]):
        if folder.stat().st_uid == os.geteuid() and folder != Path("/tmp"):
            folder.chmod(0o755)
    (tmp_path / "locked").chmod(0)
    try:
        with unprivileged():
            listing = scan([tmp_path])
            with pytest.raises(ConfigError, match="cannot be read: Permission denied"):
                scan([tmp_path / "locked"])
    finally:
        (tmp_path / "locked").chmod(0o755)
    assert [s.video_id for s in listing.sources] == ["clip"]
    assert listing.notes == [(str(tmp_path / "locked"), "was left out: Permission denied")]


def test_name_that_is_not_utf8_is_noted(tmp_path: Path) -> None:
    touch(tmp_path / "good.mp4")
    with open(os.fsencode(tmp_path) + b"/bad\xff.mp4", "wb") as file:
        file.write(b"x")
    listing = scan([tmp_path])
    assert [s.video_id for s in listing.sources] == ["good"]
    assert "not valid UTF-8" in listing.notes[0][1]
    assert "bad\\xff" in listing.notes[0][0]


def test_missing_path_offers_the_nearest_name(tmp_path: Path) -> None:
    touch(tmp_path / "holiday.mp4")
    with pytest.raises(ConfigError, match=r"holds no 'holidya\.mp4'; nearest: holiday\.mp4"):
        list_sources([tmp_path / "holidya.mp4"])
    with pytest.raises(ConfigError, match=r"holds no 'holidey'"):
        list_sources([tmp_path / "holidey/deeper/x.mp4"])


def test_nothing_found_says_what_was_looked_for(tmp_path: Path) -> None:
    touch(tmp_path / "readme.txt")
    with pytest.raises(ConfigError, match=r"no video was found in '.*'; expected video files"):
        list_sources([tmp_path])
    with pytest.raises(ConfigError, match="matches nothing below"):
        list_sources([tmp_path / "*.mp4"])
    with pytest.raises(ConfigError, match="no source is given"):
        list_sources([])


@pytest.mark.parametrize("name", ["mine.toml", "mine.json"])
def test_manifest_given_as_a_video_is_explained(tmp_path: Path, name: str) -> None:
    path = touch(tmp_path / name)
    with pytest.raises(ConfigError, match="a manifest is given as manifest="):
        list_sources([path])


def test_split_folder_in_the_path_is_the_split(tmp_path: Path) -> None:
    touch(tmp_path / "train/a.mp4")
    touch(tmp_path / "Validation/b.mp4")
    touch(tmp_path / "c.mp4")
    splits = {s.video_id: s.split for s in list_sources([tmp_path])}
    assert splits == {"train/a": "train", "Validation/b": "val", "c": None}


def test_manifest_list_is_resolved_against_the_root(tmp_path: Path) -> None:
    videos = (
        Video(id="a", path="x/a.mp4", kind="video", split="train"),
        Video(id="b", path=str(tmp_path / "b"), kind="frames"),
    )
    manifest = Manifest(name="m", root=str(tmp_path / "data"), videos=videos)
    found = [(s.video_id, s.path, s.kind, s.split) for s in from_manifest(manifest)]
    assert found == [
        ("a", tmp_path / "data/x/a.mp4", "video", "train"),
        ("b", tmp_path / "b", "frames", None),
    ]
    with pytest.raises(ConfigError, match=r"video 'a' .* has no root; give root=FOLDER"):
        from_manifest(Manifest(name="m", videos=videos))
    with pytest.raises(ConfigError, match="neither a list of videos nor a layout"):
        from_manifest(Manifest(name="m", root=str(tmp_path)))


def test_vspw_layout_reads_split_lists_to_the_last_letter(tmp_path: Path) -> None:
    for video in ("1_abc", "2_def", "3_ghi"):
        image(tmp_path / "data" / video / "origin/00000001.jpg")
        image(tmp_path / "data" / video / "mask/00000001.png")
    touch(tmp_path / "train.txt", b"1_abc\n9_gone\n")
    touch(tmp_path / "val.txt", b"2_def")  # no final newline
    listing = scan_manifest(load_manifest("vspw", tmp_path))
    assert [(s.video_id, s.split, s.path.name) for s in listing.sources] == [
        ("1_abc", "train", "origin"),
        ("2_def", "val", "origin"),
        ("3_ghi", None, "origin"),
    ]
    reasons = [reason for _, reason in listing.notes]
    assert any("no video is known to be of split 'test'" in reason for reason in reasons)
    assert any("lacks 1 videos" in reason and "'9_gone'" in reason for reason in reasons)
    assert any("1 videos that no split list names" in reason for reason in reasons)


def test_vipseg_layout_takes_splits_from_its_json(tmp_path: Path) -> None:
    image(tmp_path / "images/12_x/00000010.jpg")
    table = {"videos": [{"video_id": "12_x", "images": []}], "annotations": []}
    touch(tmp_path / "panoptic_gt_VIPSeg_val.json", json.dumps(table).encode())
    (source,) = scan_manifest(load_manifest("vipseg", tmp_path)).sources
    assert (source.video_id, source.kind, source.split) == ("12_x", "frames", "val")


def test_coco_layout_lists_images_with_their_split(tmp_path: Path) -> None:
    image(tmp_path / "val2017/000000000009.jpg")
    image(tmp_path / "panoptic_val2017/000000000009.png")
    (source,) = scan_manifest(load_manifest("coco_panoptic", tmp_path)).sources
    assert (source.video_id, source.kind, source.split) == ("val2017/000000000009", "image", "val")


def test_layout_that_fits_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing below .* fits the layout"):
        from_manifest(load_manifest("vspw", tmp_path))
    with pytest.raises(ConfigError, match="is not a folder"):
        from_manifest(load_manifest("vspw", tmp_path / "absent"))


def test_layout_field_used_twice_means_the_same_name(tmp_path: Path) -> None:
    touch(tmp_path / "a[1]/a[1].mp4")
    touch(tmp_path / "b/c.mp4")
    manifest = Manifest(name="m", root=str(tmp_path), layout=Layout(videos="{video}/{video}.mp4"))
    assert [s.video_id for s in from_manifest(manifest)] == ["a[1]"]
    layout = Layout(videos="a[1]/{video}.mp4")
    manifest = Manifest(name="m", root=str(tmp_path), layout=layout)
    assert [s.video_id for s in from_manifest(manifest)] == ["a[1]"]


def test_unreadable_split_list_is_named(tmp_path: Path) -> None:
    image(tmp_path / "images/v/0.jpg")
    touch(tmp_path / "panoptic_gt_VIPSeg_train.json", b"[1, 2")
    with pytest.raises(ConfigError, match=r"panoptic_gt_VIPSeg_train\.json' is neither"):
        from_manifest(load_manifest("vipseg", tmp_path))


@needs_shared
def test_camvid_is_the_same_by_folder_and_by_manifest() -> None:
    root = SHARED / "data/annotated/camvid"
    by_folder = list_sources([root])
    assert by_folder == from_manifest(load_manifest("camvid", root))
    assert [(s.video_id, s.split) for s in by_folder] == [
        ("train/0001TP", "train"),
        ("train/0006R0", "train"),
        ("train/0016E5", "train"),
        ("val/0016E5", "val"),
    ]


@needs_shared
def test_every_awkward_video_is_listed() -> None:
    folder = SHARED / "data/videos"
    expected = [p for p in folder.rglob("*") if p.is_file() and p.suffix != ".md"]
    assert sorted(s.path for s in list_sources([folder])) == sorted(expected)
