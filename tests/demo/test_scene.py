"""The rendered set: the same every time, and its labels are true of the decoded frames."""

import hashlib
import json
from collections import defaultdict

import av
import numpy as np
import pytest
from PIL import Image

from fcache.data.labels import LabelReader
from fcache.demo.landscape import THEMES, Kind
from fcache.demo.scene import CATEGORIES, Scene, render_set
from fcache.manifest import load_manifest

SMALL = {
    "num_train": 3, "num_val": 2, "num_frames": 5, "height": 96, "width": 160, "fps": 5,
}  # fmt: skip


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    folder = tmp_path_factory.mktemp("set")
    return folder, render_set(folder, **SMALL, seed=3)


def decoded(path):
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def label_ids(folder, video, frame):
    image = Image.open(folder / "panoptic" / video.split / video.id / f"{frame:05d}.png")
    bands = np.array(image, np.int64)
    return bands[..., 0] + 256 * bands[..., 1] + 65536 * bands[..., 2]


def annotations(folder, split):
    table = json.loads((folder / f"panoptic_{split}.json").read_text())
    return {entry["video_id"]: entry["annotations"] for entry in table["annotations"]}


def test_same_seed_gives_the_same_bytes_and_another_seed_does_not(rendered, tmp_path):
    _, manifest = rendered
    few = {**SMALL, "num_train": 1, "num_val": 1}
    first, second, other = (
        render_set(tmp_path / name, **few, seed=seed)
        for name, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    assert first.sha256 == second.sha256 != other.sha256
    assert first.videos[0].sha256 == manifest.videos[0].sha256 != other.videos[0].sha256
    for path in sorted((tmp_path / "a").rglob("*.*")):
        twin = tmp_path / "b" / path.relative_to(tmp_path / "a")
        assert path.read_bytes() == twin.read_bytes(), path


def test_manifest_lists_every_file_with_its_hash_size_and_split(rendered):
    folder, manifest = rendered
    assert manifest == load_manifest(str(folder / "manifest.toml"))
    assert [video.split for video in manifest.videos] == ["train"] * 3 + ["val"] * 2
    assert {(video.height, video.width) for video in manifest.videos} == {(96, 160), (96, 120)}
    for video in manifest.videos:
        data = (folder / video.path).read_bytes()
        assert hashlib.sha256(data).hexdigest() == video.sha256
        frames = decoded(folder / video.path)
        assert len(frames) == video.num_frames == 5
        assert frames[0].shape == (video.height, video.width, 3)


def test_video_files_are_h264_420_tagged_bt709(rendered):
    folder, manifest = rendered
    with av.open(str(folder / manifest.videos[0].path)) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
        assert (int(context.colorspace), int(context.color_range)) == (1, 1)
        assert container.streams.video[0].average_rate == 5


def test_json_areas_equal_png_counts_and_ids_equal(rendered):
    folder, manifest = rendered
    listed = {**annotations(folder, "train"), **annotations(folder, "val")}
    for video in manifest.videos:
        for frame, entry in enumerate(listed[video.id]):
            assert entry["file_name"] == f"{frame:05d}.png"
            ids, counts = np.unique(label_ids(folder, video, frame), return_counts=True)
            in_png = {int(i): int(n) for i, n in zip(ids, counts, strict=True) if i}
            assert in_png == {item["id"]: item["area"] for item in entry["segments_info"]}
            assert CATEGORIES[entry["segments_info"][0]["category_id"]].isthing is False


def test_an_id_keeps_its_category_and_stuff_is_one_segment(rendered):
    folder, _ = rendered
    for entries in annotations(folder, "train").values():
        category_of, ids_of = {}, defaultdict(set)
        for entry in entries:
            for item in entry["segments_info"]:
                assert (
                    category_of.setdefault(item["id"], item["category_id"]) == (item["category_id"])
                )
                ids_of[item["category_id"]].add(item["id"])
        assert all(len(ids) == 1 for kind, ids in ids_of.items() if not CATEGORIES[kind].isthing)
        assert sum(len(ids) for kind, ids in ids_of.items() if CATEGORIES[kind].isthing) >= 3


def test_the_label_reader_reads_the_labels_back(rendered):
    folder, manifest = rendered
    video = manifest.videos[0]
    label = LabelReader.from_manifest(manifest).semantic(video.id, "00002")
    ids = label_ids(folder, video, 2)
    for item in annotations(folder, "train")[video.id][2]["segments_info"]:
        assert (label[ids == item["id"]] == item["category_id"]).all()


def test_labels_lie_where_the_decoded_frames_change():
    scene = Scene((120, 200), THEMES[0], 1.0, 0, [0, 0])
    frame = scene.frame(0.5)
    image = frame.image.astype(np.int64)
    label = frame.ids
    steps = np.abs(np.diff(image, axis=1)).sum(-1)
    edge = label[:, 1:] != label[:, :-1]
    assert steps[edge].mean() > 4 * steps[~edge].mean()
    # A label that is two pixels off loses most of that.
    moved = np.roll(label, 3, axis=1)
    moved_edge = moved[:, 1:] != moved[:, :-1]
    assert steps[edge].mean() > 1.5 * steps[moved_edge].mean()


def test_decoded_frames_are_the_rendered_pictures(rendered):
    folder, manifest = rendered
    video = manifest.videos[1]
    scene = Scene((96, 120), THEMES[1], 1.0, 0, [3, 1])
    compared = 0
    for number, image in enumerate(decoded(folder / video.path)):
        truth = scene.frame(number / 5)
        assert np.array_equal(truth.ids, label_ids(folder, video, number))
        for segment in truth.categories:
            mask = truth.ids == segment
            # Chroma at half size bleeds over borders; two pixels inside it does not.
            for axis in (0, 1):
                mask &= np.logical_and.reduce([np.roll(mask, by, axis) for by in (-2, -1, 1, 2)])
            if mask.sum() >= 100:
                compared += 1
                difference = image[mask].mean(0) - truth.image[mask].mean(0)
                assert np.abs(difference).max() < 4
    assert compared > 20


def test_frames_may_be_asked_for_in_any_order():
    first, second = (Scene((96, 128), THEMES[2], 1.0, 0, [1, 2]) for _ in range(2))
    wanted = first.frame(0.4)
    second.frame(0.8)
    assert np.array_equal(second.frame(0.4).image, wanted.image)


def test_every_third_video_has_a_void_border_and_the_others_no_void(rendered):
    folder, manifest = rendered
    for index, video in enumerate(manifest.videos[:3]):
        ids = label_ids(folder, video, 0)
        if index == 2:
            assert (ids[:3] == 0).all()
            assert (ids[:, -3:] == 0).all()
            assert (ids[3:-3, 3:-3] > 0).all()
        else:
            assert (ids > 0).all()


def test_things_move_overlap_enter_and_leave():
    seen, touches = [], 0
    for number in range(8):
        scene = Scene((96, 160), THEMES[number % 4], 1.0, 0, [0, number])
        for sprite_set in (scene.frame(0.0), scene.frame(0.9)):
            things = {i for i, kind in sprite_set.categories.items() if kind >= Kind.BALL}
            seen.append(things)
            ids = sprite_set.ids
            pairs = (ids[:, 1:] != ids[:, :-1]) & np.isin(ids[:, 1:], list(things))
            touches += bool((pairs & np.isin(ids[:, :-1], list(things))).any())
    assert any(after - before for before, after in zip(seen[::2], seen[1::2], strict=True))
    assert any(before - after for before, after in zip(seen[::2], seen[1::2], strict=True))
    assert touches >= 4


def test_every_category_occurs_in_eight_videos():
    kinds = set()
    for number in range(8):
        scene = Scene((96, 160), THEMES[number % 4], 1.0, 0, [0, number])
        kinds |= {Kind(kind) for t in (0.2, 0.7) for kind in scene.frame(t).categories.values()}
    assert kinds == set(Kind)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"height": 97}, "height=97"), ({"width": 62}, "width=62"), ({"num_val": 0}, "num_val=0")],
)
def test_impossible_sets_are_refused_before_anything_is_written(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        render_set(tmp_path / "set", **{**SMALL, **change}, seed=0)
    assert not (tmp_path / "set").exists()
