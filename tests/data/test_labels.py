"""Labels as class indices: every encoding, every place, and what misfits say."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fcache.data.label_check import check_labels
from fcache.data.label_folder import NoLabelsError
from fcache.data.label_images import check_size
from fcache.data.labels import IGNORE, LabelReader, Panoptic
from fcache.errors import ConfigError, LabelError
from fcache.manifest import Category, Labels, Manifest, Video, load_manifest
from tests.shared import SHARED, needs_shared

CATEGORIES = (
    Category(id=5, name="cat", isthing=True),
    Category(id=9, name="dog", isthing=True),
    Category(id=0, name="sky", isthing=False),
)


def save(path: Path, values: Any, dtype: Any = np.uint8) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array(values, dtype=dtype)).save(path)
    return path


def save_ids(path: Path, ids: list[list[int]]) -> Path:
    numbers = np.array(ids, dtype=np.int64)
    return save(path, np.stack([numbers % 256, numbers // 256 % 256, numbers // 65536], axis=-1))


def save_json(path: Path, table: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(table))
    return path


def segment(number: int, category: int, crowd: int = 0) -> dict[str, int]:
    return {"id": number, "category_id": category, "iscrowd": crowd, "area": 1}


def vipseg(videos: dict[str, dict[str, list[dict[str, int]]]]) -> dict[str, Any]:
    return {
        "videos": [{"video_id": video, "images": []} for video in videos],
        "annotations": [
            {
                "video_id": video,
                "annotations": [
                    {"file_name": f"{frame}.png", "image_id": frame, "segments_info": rows}
                    for frame, rows in frames.items()
                ],
            }
            for video, frames in videos.items()
        ],
        "categories": [c.model_dump(mode="json") for c in CATEGORIES],
    }


def semantic_reader(root: Path, **how: Any) -> LabelReader:
    labels = Labels(format="semantic", path="{video}/{frame}.png", **how)
    return LabelReader([labels], CATEGORIES, root, origin="the test")


def test_class_index_is_the_position_of_the_category(tmp_path: Path) -> None:
    save(tmp_path / "a/v/0.png", [[5, 9], [0, 7]])
    found = semantic_reader(tmp_path, void=(7,)).semantic("a/v", "0")
    assert found.dtype == np.uint8
    assert found.tolist() == [[0, 1], [2, IGNORE]]


def test_offset_is_added_to_the_category_id_in_the_file(tmp_path: Path) -> None:
    save(tmp_path / "v/0.png", [[6, 10, 1, 0, 255]])
    found = semantic_reader(tmp_path, offset=1, void=(0, 255)).semantic("v", "0")
    assert found.tolist() == [[0, 1, 2, IGNORE, IGNORE]]


def test_value_nothing_names_is_an_error_or_void_as_the_manifest_says(tmp_path: Path) -> None:
    path = save(tmp_path / "v/0.png", [[5, 77, 99]])
    with pytest.raises(LabelError, match=rf"'{path}' holds the value 77, which is neither void"):
        semantic_reader(tmp_path).semantic("v", "0")
    found = semantic_reader(tmp_path, unlisted="void").semantic("v", "0")
    assert found.tolist() == [[0, IGNORE, IGNORE]]


def test_palette_masks_are_read_by_index(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[5, 9, 0]], dtype=np.uint8))
    image.putpalette([i * 7 % 256 for i in range(768)])
    assert image.mode == "P"
    (tmp_path / "v").mkdir()
    image.save(tmp_path / "v/0.png")
    assert semantic_reader(tmp_path).semantic("v", "0").tolist() == [[0, 1, 2]]


def test_sixteen_bit_masks_keep_their_values(tmp_path: Path) -> None:
    save(tmp_path / "v/0.png", [[1005, 1009, 65535]], np.uint16)
    found = semantic_reader(tmp_path, offset=1000, void=(65535,)).semantic("v", "0")
    assert found.tolist() == [[0, 1, IGNORE]]


def test_colour_mask_is_refused_as_semantic_label(tmp_path: Path) -> None:
    save(tmp_path / "v/0.png", [[[1, 2, 3]]])
    with pytest.raises(LabelError, match="has mode RGB; expected one channel"):
        semantic_reader(tmp_path).semantic("v", "0")


@pytest.mark.parametrize("cut", [0, 20, -200])
def test_damaged_label_is_named(tmp_path: Path, cut: int) -> None:
    rng = np.random.default_rng(0)
    path = save(tmp_path / "v/0.png", rng.choice([0, 5, 9], (64, 64)))
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(LabelError, match=str(path)):
        semantic_reader(tmp_path).semantic("v", "0")


def test_missing_label_says_where_it_was_looked_for(tmp_path: Path) -> None:
    reader = semantic_reader(tmp_path)
    assert not reader.has("v", "0")
    with pytest.raises(LabelError) as caught:
        reader.semantic("v", "0")
    assert f"no label for frame '0' of video 'v'; looked at '{tmp_path}/v/0.png'" in str(
        caught.value
    )


def test_panoptic_ids_are_red_green_blue_little_endian_and_tracks(tmp_path: Path) -> None:
    ids = [[1, 256, 65536], [65536 * 200 + 256 * 3 + 4, 0, 12]]
    save_ids(tmp_path / "p/v/0.png", ids)
    rows = [segment(65536, 0), segment(1, 9), segment(256, 5, crowd=1), segment(ids[1][0], 5)]
    save_json(tmp_path / "train.json", vipseg({"v": {"0": rows}, "w": {"0": []}}))
    labels = Labels(format="panoptic", path="p/{video}/{frame}.png", json_path="{split}.json")
    reader = LabelReader([labels], CATEGORIES, tmp_path, origin="the test")
    found = reader.panoptic("v", "0")
    assert isinstance(found, Panoptic)
    assert found.ids.tolist() == ids
    assert [(s.id, s.category, s.is_thing, s.is_crowd) for s in found.segments] == [
        (65536, 2, False, False),
        (1, 1, True, False),
        (256, 0, True, True),
        (ids[1][0], 0, True, False),
    ]
    # id 12 is in the image and in no list: the official STQ ignores such pixels
    assert reader.semantic("v", "0").tolist() == [[1, 0, 2], [0, IGNORE, IGNORE]]


def test_frame_the_json_does_not_list_has_no_label(tmp_path: Path) -> None:
    save_ids(tmp_path / "p/v/0.png", [[1]])
    save_ids(tmp_path / "p/v/1.png", [[1]])
    save_json(
        tmp_path / "val.json", vipseg({"v": {"0": [segment(1, 9)]}, "w": {"1": [segment(1, 9)]}})
    )
    labels = Labels(format="panoptic", path="p/{video}/{frame}.png", json_path="{split}.json")
    reader = LabelReader([labels], CATEGORIES, tmp_path, origin="the test")
    assert (reader.has("v", "0"), reader.has("v", "1")) == (True, False)
    assert not reader.has("v", "0", split="train")
    for read in (reader.semantic, reader.panoptic):
        with pytest.raises(LabelError, match="for frame '1' of video 'v'"):
            read("v", "1")


def panoptic_reader(root: Path, path: str, json_path: str) -> LabelReader:
    labels = Labels(format="panoptic", path=path, json_path=json_path)
    return LabelReader([labels], CATEGORIES, root, origin="the test")


def coco(frames: dict[str, int]) -> dict[str, Any]:
    return {
        "annotations": [
            {"file_name": name, "segments_info": [segment(1, category)]}
            for name, category in frames.items()
        ]
    }


def test_shared_json_of_one_video_does_not_answer_for_another(tmp_path: Path) -> None:
    for video in ("a", "b"):
        save_ids(tmp_path / f"panoptic/{video}/0.png", [[1]])
    save_json(tmp_path / "panoptic_gt.json", vipseg({"a": {"0": [segment(1, 9)]}}))
    place = "panoptic/{video}/{frame}.png"
    for reader in (
        panoptic_reader(tmp_path, place, "panoptic_gt.json"),
        LabelReader.open(tmp_path),
    ):
        assert reader.panoptic("a", "0").segments[0].id == 1
        assert not reader.has("b", "0")
        with pytest.raises(LabelError, match="for frame '0' of video 'b'"):
            reader.semantic("b", "0")


def test_json_kept_beside_its_video_may_call_it_otherwise(tmp_path: Path) -> None:
    for video, category in (("train/a", 5), ("train/b", 9)):
        save_ids(tmp_path / f"{video}/panoptic/0.png", [[1]])
        name = video.replace("/", "_")
        save_json(tmp_path / video / "gt.json", vipseg({name: {"0": [segment(1, category)]}}))
    reader = panoptic_reader(tmp_path, "{video}/panoptic/{frame}.png", "{video}/gt.json")
    assert reader.semantic("train/a", "0").tolist() == [[0]]
    assert reader.semantic("train/b", "0").tolist() == [[1]]


@pytest.mark.parametrize(
    ("place", "listed"),
    [
        ("p/{video}/{frame}.png", "{video}/{frame}.png"),
        ("p/{video}/{frame}.png", "p/{video}/{frame}.png"),
        ("{video}/panoptic/{frame}.png", "{video}/{frame}.jpg"),
        ("{video}/panoptic/{frame}.png", "{video}/panoptic/{frame}.png"),
        ("p/{video}/{frame}_ids.png", "{video}/{frame}.jpg"),
    ],
)
def test_coco_frames_of_one_stem_are_told_apart_by_folder(
    tmp_path: Path, place: str, listed: str
) -> None:
    names = {listed.format(video=v, frame="0001"): c for v, c in (("a", 5), ("b", 9))}
    save_json(tmp_path / "all.json", coco(names))
    for video in ("a", "b", "c"):
        save_ids(tmp_path / place.format(video=video, frame="0001"), [[1]])
    reader = panoptic_reader(tmp_path, place, "all.json")
    assert reader.semantic("a", "0001").tolist() == [[0]]
    assert reader.semantic("b", "0001").tolist() == [[1]]
    assert not reader.has("c", "0001")


def test_coco_single_images_of_one_stem_are_told_apart_by_id(tmp_path: Path) -> None:
    save_json(tmp_path / "all.json", coco({"a/0001.png": 5, "b/0001.png": 9}))
    for video in ("a", "b"):
        save_ids(tmp_path / f"p/{video}/0001.png", [[1]])
    reader = panoptic_reader(tmp_path, "p/{video}.png", "all.json")
    assert reader.semantic("a/0001", "0001").tolist() == [[0]]
    assert reader.semantic("b/0001", "0001").tolist() == [[1]]


def test_only_coco_frame_of_a_stem_is_found_whatever_its_folder(tmp_path: Path) -> None:
    save_json(tmp_path / "all.json", coco({"x/1.jpg": 5, "2.jpg": 9, "x/3.jpg": 5, "y/3.jpg": 9}))
    for frame in "123":
        save_ids(tmp_path / f"p/{frame}.png", [[1]])
        save_ids(tmp_path / f"q/v/{frame}.png", [[1]])
    reader = panoptic_reader(tmp_path, "p/{frame}.png", "all.json")
    assert [reader.has("v", frame) for frame in "123"] == [True, True, False]
    # With an image for each video, folder x may be another video.
    reader = panoptic_reader(tmp_path, "q/{video}/{frame}.png", "all.json")
    assert [reader.has("v", frame) for frame in "123"] == [False, True, False]


def test_frame_listed_twice_is_refused(tmp_path: Path) -> None:
    save_ids(tmp_path / "p/v/0.png", [[1]])
    twice = vipseg({"v": {"0": [segment(1, 5)]}})
    twice["annotations"] *= 2
    for table, name in ((coco({"v/0.png": 5, "v/0.jpg": 9}), "v/0"), (twice, "0")):
        save_json(tmp_path / "all.json", table)
        reader = panoptic_reader(tmp_path, "p/{video}/{frame}.png", "all.json")
        with pytest.raises(LabelError, match=rf"all\.json' frame '{name}' is listed twice"):
            reader.semantic("v", "0")


def test_frame_without_segments_is_all_ignored(tmp_path: Path) -> None:
    save_ids(tmp_path / "p/v/0.png", [[0, 3]])
    save_json(tmp_path / "all.json", vipseg({"v": {"0": []}}))
    labels = Labels(format="panoptic", path="p/{video}/{frame}.png", json_path="all.json")
    reader = LabelReader([labels], CATEGORIES, tmp_path, origin="the test")
    assert reader.semantic("v", "0").tolist() == [[IGNORE, IGNORE]]
    assert reader.panoptic("v", "0").segments == ()


def test_unknown_category_and_broken_json_are_named(tmp_path: Path) -> None:
    save_ids(tmp_path / "p/v/0.png", [[1]])
    path = save_json(tmp_path / "all.json", vipseg({"v": {"0": [segment(1, 77)]}}))
    labels = Labels(format="panoptic", path="p/{video}/{frame}.png", json_path="all.json")
    reader = LabelReader([labels], CATEGORIES, tmp_path, origin="the test")
    with pytest.raises(LabelError, match="uses category id 77, which the test does not list"):
        reader.semantic("v", "0")
    shapeless = r"all\.json' is not panoptic JSON"
    damaged = r"all\.json', panoptic JSON, is not whole JSON of the expected shape"
    for text, told in (
        ("[", damaged),
        ("[]", damaged),
        ('{"annotations": 3}', damaged),
        ('{"annotations": [{"video_id": "v"', damaged),
        ('{"annotations": [{"video_id": "v"}]}', shapeless),
        ('{"categories": []}', shapeless),
    ):
        path.write_text(text)
        reader = LabelReader([labels], CATEGORIES, tmp_path, origin="the test")
        with pytest.raises(LabelError, match=told):
            reader.semantic("v", "0")


def test_semantic_labels_come_before_panoptic_ones(tmp_path: Path) -> None:
    save(tmp_path / "s/v/0.png", [[5]])
    save_ids(tmp_path / "p/v/0.png", [[1]])
    save_json(tmp_path / "all.json", vipseg({"v": {"0": [segment(1, 9)]}}))
    labels = [
        Labels(format="panoptic", path="p/{video}/{frame}.png", json_path="all.json"),
        Labels(format="semantic", path="s/{video}/{frame}.png"),
    ]
    reader = LabelReader(labels, CATEGORIES, tmp_path, origin="the test")
    assert reader.semantic("v", "0").tolist() == [[0]]
    assert reader.panoptic("v", "0").segments[0].category == 1
    assert [entry.format for entry in reader.entries("v", "0")] == ["semantic", "panoptic"]


def test_more_categories_than_a_byte_holds_are_refused(tmp_path: Path) -> None:
    labels = [Labels(format="semantic", path="{frame}.png")]
    many = [Category(id=i, name=str(i), isthing=False) for i in range(255)]
    with pytest.raises(ConfigError, match="255 categories; at most 254"):
        LabelReader(labels, many, tmp_path, origin="the test")
    assert LabelReader(labels, many[:254], tmp_path, origin="the test").num_categories == 254
    with pytest.raises(ConfigError, match="the test names no labels"):
        LabelReader([], many[:3], tmp_path, origin="the test")
    with pytest.raises(ConfigError, match="the test names no categories"):
        LabelReader(labels, [], tmp_path, origin="the test")


def test_category_that_no_label_file_could_hold_is_refused(tmp_path: Path) -> None:
    labels = [Labels(format="semantic", path="{frame}.png", offset=-1)]
    with pytest.raises(ConfigError, match="category 0 of the test would be stored as -1"):
        LabelReader(labels, CATEGORIES, tmp_path, origin="the test")


@pytest.mark.parametrize(
    "place",
    [
        "{video}/{frame}.png",
        "{video}/semantic/{frame}.png",
        "{video}/masks/{frame}.png",
        "semantic/{video}/{frame}.png",
        "Annotations/{video}/{frame}.png",
    ],
)
def test_bare_folder_is_read_at_its_usual_places(tmp_path: Path, place: str) -> None:
    save(tmp_path / place.format(video="a/v", frame="0"), [[0, 3, 255]])
    save(tmp_path / place.format(video="b/v", frame="0"), [[1, 2, 2]])
    reader = LabelReader.open(tmp_path)
    assert reader.names == ["class 0", "class 1", "class 2", "class 3"]
    assert reader.semantic("a/v", "0").tolist() == [[0, 3, IGNORE]]
    assert reader.has("b/v", "0")
    assert not reader.has("v", "0")


def test_gray_frames_beside_label_folders_are_not_taken_for_labels(tmp_path: Path) -> None:
    save(tmp_path / "v/0.png", [[200]])
    save(tmp_path / "masks/v/0.png", [[1]])
    reader = LabelReader.open(tmp_path)
    assert reader.num_categories == 2
    assert reader.semantic("v", "0").tolist() == [[1]]


def test_bare_mask_of_a_single_image_is_called_by_the_video(tmp_path: Path) -> None:
    save(tmp_path / "a/cat.png", [[1]])
    reader = LabelReader.open(tmp_path)
    assert reader.semantic("a/cat", "cat").tolist() == [[1]]
    assert not reader.has("a/cat", "00001")


def test_masks_in_the_folder_itself_serve_a_single_video_only(tmp_path: Path) -> None:
    save(tmp_path / "00000.png", [[1]])
    assert LabelReader.open(tmp_path, video_ids=["v"]).has("v", "00000")
    assert not LabelReader.open(tmp_path, video_ids=["v", "w"]).has("v", "00000")


@pytest.mark.parametrize("wrapped", [False, True])
def test_categories_file_gives_order_and_makes_other_values_void(
    tmp_path: Path, wrapped: bool
) -> None:
    save(tmp_path / "masks/v/0.png", [[5, 9, 0, 11, 255]])
    rows = [
        {"id": 9, "name": "dog", "isthing": 1},
        {"id": 5, "name": "cat"},
        {"id": 0, "name": "x"},
    ]
    save_json(tmp_path / "categories.json", {"categories": rows} if wrapped else rows)
    for where in (tmp_path, tmp_path / "masks"):
        reader = LabelReader.open(where)
        assert reader.names == ["dog", "cat", "x"]
        assert reader.semantic("v", "0").tolist() == [[1, 0, 2, IGNORE, IGNORE]]


def test_broken_categories_file_is_named(tmp_path: Path) -> None:
    save(tmp_path / "v/0.png", [[0]])
    save_json(tmp_path / "categories.json", [{"nome": "x"}])
    with pytest.raises(LabelError, match=r"categories\.json' is not a list of categories"):
        LabelReader.open(tmp_path)


def test_bare_panoptic_folder_lists_things_first(tmp_path: Path) -> None:
    save_ids(tmp_path / "panoptic/v/0.png", [[1, 2, 3]])
    rows = [segment(1, 0), segment(2, 9), segment(3, 5)]
    save_json(tmp_path / "panoptic_gt.json", vipseg({"v": {"0": rows}}))
    reader = LabelReader.open(tmp_path)
    assert reader.names == ["cat", "dog", "sky"]
    assert reader.semantic("v", "0").tolist() == [[2, 1, 0]]
    assert [s.id for s in reader.panoptic("v", "0").segments] == [1, 2, 3]


def test_value_that_appears_late_is_an_error_not_a_class(tmp_path: Path) -> None:
    save(tmp_path / "v/0.png", [[1]])
    reader = LabelReader.open(tmp_path)
    save(tmp_path / "v/1.png", [[2]])
    with pytest.raises(LabelError, match="holds the value 2, which is neither void"):
        reader.semantic("v", "1")


def test_folder_that_holds_no_usable_label_says_so(tmp_path: Path) -> None:
    with pytest.raises(NoLabelsError, match="holds no label"):
        LabelReader.open(tmp_path)
    save(tmp_path / "v/0.png", [[255]])
    with pytest.raises(ConfigError, match=r"hold void \(255\) only"):
        LabelReader.open(tmp_path)
    save(tmp_path / "v/1.png", [[12401]], np.uint16)
    with pytest.raises(ConfigError, match="hold values up to 12401"):
        LabelReader.open(tmp_path)
    with pytest.raises(ConfigError, match="does not exist; expected a folder of masks"):
        LabelReader.open(tmp_path / "absent")


def test_manifest_file_and_shipped_name_open_too(tmp_path: Path) -> None:
    save(tmp_path / "data/1_x/mask/00000001.png", [[0, 1, 124, 252, 254, 255]])
    # Id 0 (wall) is the first stuff class, id 123 (a thing) the last of the 58 things.
    expected = [[IGNORE, 58, 57, IGNORE, IGNORE, IGNORE]]
    manifest = load_manifest("vspw", tmp_path)
    manifest.write(tmp_path / "mine.toml")
    for reader in (
        LabelReader.open("vspw", root=tmp_path),
        LabelReader.open(tmp_path / "mine.toml"),
        LabelReader.from_manifest(manifest),
    ):
        assert reader.num_categories == 124
        assert reader.semantic("1_x", "00000001").tolist() == expected
    with pytest.raises(ConfigError, match="has no root; give root="):
        LabelReader.open("vspw")


def test_vipseg_manifest_reads_each_video_in_the_json_of_its_split(tmp_path: Path) -> None:
    for split, video in (("train", "1_a"), ("val", "2_b")):
        save_ids(tmp_path / f"panomasksRGB/{video}/00000001.png", [[300]])
        other = vipseg({video: {"00000001": [segment(300, 2)]}, "0_other": {}})
        save_json(tmp_path / f"panoptic_gt_VIPSeg_{split}.json", other)
    reader = LabelReader.from_manifest(load_manifest("vipseg", tmp_path))
    for video in ("1_a", "2_b"):
        assert reader.semantic(video, "00000001").tolist() == [[0]]  # door is the first thing
    assert reader.has("2_b", "00000001", split="val")
    assert not reader.has("2_b", "00000001", split="train")


def test_coco_manifest_reads_an_image_by_its_name(tmp_path: Path) -> None:
    save_ids(tmp_path / "panoptic_val2017/000000000009.png", [[7, 8, 0]])
    rows = [segment(7, 200), segment(8, 1)]
    entry = {"file_name": "000000000009.png", "image_id": 9, "segments_info": rows}
    save_json(tmp_path / "annotations/panoptic_val2017.json", {"annotations": [entry]})
    reader = LabelReader.from_manifest(load_manifest("coco_panoptic", tmp_path))
    name = "000000000009"
    found = reader.semantic(f"val2017/{name}", name)
    assert found.tolist() == [[132, 0, IGNORE]]  # rug-merged is the last of 133


def test_reader_survives_pickling(tmp_path: Path) -> None:
    save(tmp_path / "v/0.png", [[5]])
    reader = pickle.loads(pickle.dumps(semantic_reader(tmp_path)))
    assert reader.semantic("v", "0").tolist() == [[0]]


@pytest.mark.parametrize(
    ("label", "image"),
    [
        ((480, 854), (480, 854)),
        ((480, 853), (720, 1280)),
        ((480, 854), (720, 1280)),
        ((1080, 1920), (720, 1280)),
        ((360, 480), (720, 960)),
        ((7, 5), (7, 5)),
        ((1000, 100), (333, 33)),
        ((100, 1000), (33, 333)),
    ],
)
def test_label_of_the_images_shape_fits_at_any_scale(
    label: tuple[int, int], image: tuple[int, int]
) -> None:
    check_size(label, image, "it")


@pytest.mark.parametrize(
    ("label", "image", "why"),
    [
        ((480, 640), (640, 480), "EXIF"),
        ((480, 854), (1280, 720), "EXIF"),
        ((480, 640), (480, 854), "cropped"),
        ((100, 100), (100, 110), "cropped"),
    ],
)
def test_label_of_another_shape_is_an_error_with_both_sizes(
    label: tuple[int, int], image: tuple[int, int], why: str
) -> None:
    with pytest.raises(LabelError) as caught:
        check_size(label, image, "it")
    text = caught.value.message
    assert f"{label[0]}x{label[1]}" in text
    assert f"{image[0]}x{image[1]}" in text
    assert why in text


def test_check_reports_misfits_and_counts_labelled_videos(tmp_path: Path) -> None:
    for video, shape in (("good", (4, 6)), ("turned", (6, 4)), ("bare", None)):
        for i in range(2):
            save(tmp_path / f"images/{video}/{i}.png", np.zeros((4, 6, 3)))
        if shape:
            save(tmp_path / f"semantic/{video}/1.png", np.zeros(shape))
    manifest = Manifest(
        name="m",
        root=str(tmp_path),
        labels=(
            Labels(format="semantic", path="nowhere/{video}/{frame}.png"),
            Labels(format="semantic", path="semantic/{video}/{frame}.png"),
        ),
        categories=CATEGORIES,
        videos=tuple(
            Video(id=name, path=f"images/{name}", kind="frames", height=4, width=6)
            for name in ("bare", "good", "turned")
        ),
    )
    report = check_labels(LabelReader.from_manifest(manifest), manifest)
    assert report.labelled == {"good", "turned"}
    ((video, reason),) = report.problems
    assert video == "turned"
    assert "6x4" in reason
    assert "4x6" in reason
    assert report.used == [manifest.labels[1]]


@needs_shared
@pytest.mark.parametrize("how", ["folder", "manifest"])
def test_camvid_reads_the_same_by_folder_and_by_manifest(how: str) -> None:
    root = SHARED / "data/annotated/camvid"
    reader = LabelReader.open(root) if how == "folder" else LabelReader.open("camvid", root=root)
    rows = json.loads((root / "categories.json").read_text())
    assert reader.names == [row["name"] for row in rows]
    raw = np.array(Image.open(root / "train/0001TP/semantic/0001TP_006690.png"))
    found = reader.semantic("train/0001TP", "0001TP_006690")
    np.testing.assert_array_equal(found, np.where(raw == 11, IGNORE, raw))
    assert (raw == 11).any()
    panoptic = reader.panoptic("val/0016E5", "0016E5_07959")
    classes = np.full(panoptic.ids.shape, IGNORE, np.uint8)
    for item in panoptic.segments:
        classes[panoptic.ids == item.id] = item.category
    # The instance ids were derived from the semantic masks; small parts were left out.
    agree = classes == reader.semantic("val/0016E5", "0016E5_07959")
    assert agree.mean() > 0.99


@needs_shared
def test_coco_sample_areas_are_those_of_its_json() -> None:
    root = SHARED / "data/annotated/coco_panoptic_sample"
    reader = LabelReader.open(root)
    official = load_manifest("coco_panoptic").categories
    assert reader.names == [category.name for category in official]
    for entry in json.loads((root / "panoptic_examples.json").read_text())["annotations"]:
        name = Path(entry["file_name"]).stem
        panoptic = reader.panoptic(name, name)
        areas = {item.id: int((panoptic.ids == item.id).sum()) for item in panoptic.segments}
        assert areas == {row["id"]: row["area"] for row in entry["segments_info"]}
        found = reader.semantic(name, name)
        assert (found != IGNORE).sum() == sum(areas.values())


@needs_shared
def test_davis_masks_are_read_by_palette_index() -> None:
    folder = SHARED / "data/annotated/davis_like/dogs-jump/masks"
    reader = LabelReader.open(folder, video_ids=["video"])
    assert reader.num_categories == 4
    raw = np.array(Image.open(folder / "00003.png"))
    np.testing.assert_array_equal(reader.semantic("video", "00003"), raw)
