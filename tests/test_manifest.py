"""Manifests: reading, writing, the shipped ones, and what a broken one says."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from fcache.errors import ConfigError
from fcache.manifest import (
    Category,
    Labels,
    Layout,
    Manifest,
    Video,
    load_manifest,
    manifest_names,
    parse_manifest,
)
from tests.shared import SHARED, needs_shared


def read_back(manifest: Manifest) -> Manifest:
    """Through TOML, and through JSON, which must say the same."""
    origin = Path("/some/where.toml")
    found = parse_manifest(tomllib.loads(manifest.to_toml()), origin=origin)
    assert parse_manifest(json.loads(manifest.to_json()), origin=origin) == found
    return found


def full() -> Manifest:
    return Manifest(
        name="käse = 'x' \"y\"\n",
        about="Two\nlines.",
        root="/data/a b",
        layout=Layout(videos="{split}/{video}", id="{split}/{video}", splits={"train": "t.txt"}),
        sampling={"fps": 2.5, "on_error": "keep_prefix"},
        labels=(
            Labels(format="semantic", path="{video}/{frame}.png", void=(0, 255), offset=1),
            Labels(format="panoptic", path="p/{frame}.png", json_path="{split}.json"),
        ),
        categories=(
            Category(id=7, name='a "b"\\ \x7f\t', isthing=True, color=(1, 2, 3)),
            Category(id=0, name="stuff", isthing=False),
        ),
        videos=(
            Video(id="train/видео 1", path="a=b.mp4", kind="video", sha256="0" * 64, split="train"),
            Video(id="c", path="c", kind="frames", num_frames=3, height=480, width=854),
        ),
    )


def test_written_manifest_reads_back_equal() -> None:
    assert read_back(full()) == full()
    assert read_back(Manifest(name="least")) == Manifest(name="least")


@settings(max_examples=60, deadline=None)
@given(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.text(st.characters(codec="utf-8"), min_size=1),
)
def test_any_name_reads_back_equal(name: str, part: str) -> None:
    manifest = Manifest(
        name=name,
        categories=(Category(id=0, name=name, isthing=False),),
        videos=(Video(id="x" + part.replace("/", "_"), path=part, kind="video"),),
    )
    assert read_back(manifest) == manifest


@pytest.mark.parametrize("name", manifest_names())
def test_every_shipped_manifest_reads_back_equal(name: str) -> None:
    manifest = load_manifest(name)
    assert read_back(manifest) == manifest
    assert manifest.layout is not None
    assert manifest.labels
    assert manifest.root is None


@needs_shared
@pytest.mark.parametrize(
    ("name", "file"),
    [("vipseg", "vipseg"), ("vspw", "vipseg"), ("coco_panoptic", "coco")],
)
def test_shipped_categories_stand_in_model_order(name: str, file: str) -> None:
    path = SHARED / f"vectors/categories/categories_{file}.json"
    rows = json.loads(path.read_text())["categories"]
    expected = sorted(rows, key=lambda row: row["model_index"])
    found = load_manifest(name).categories
    assert [c.model_dump(mode="json") for c in found] == [
        {key: row[key] if key != "isthing" else bool(row[key]) for key in Category.model_fields}
        for row in expected
    ]
    things = [c.isthing for c in found]
    assert things == sorted(things, reverse=True)


@needs_shared
def test_camvid_categories_are_those_of_its_folder() -> None:
    rows = json.loads((SHARED / "data/annotated/camvid/categories.json").read_text())
    found = load_manifest("camvid").categories
    assert [(c.id, c.name, c.isthing, list(c.color)) for c in found] == [
        (row["id"], row["name"], bool(row["isthing"]), row["color"]) for row in rows
    ]


def test_shipped_counts_are_those_of_the_papers() -> None:
    categories = {name: load_manifest(name).categories for name in manifest_names()}
    counts = {name: (sum(c.isthing for c in of), len(of)) for name, of in categories.items()}
    assert counts == {
        "camvid": (3, 11),
        "coco_panoptic": (80, 133),
        "vipseg": (58, 124),
        "vspw": (58, 124),
    }
    assert categories["vipseg"] == categories["vspw"]


def test_content_hash_ignores_the_root_only() -> None:
    assert full().sha256 == full().model_copy(update={"root": "/else/where"}).sha256
    assert full().sha256 != full().model_copy(update={"name": "other"}).sha256


def test_relative_root_counts_from_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.toml").write_text('name = "m"\nroot = "../data"\n')
    assert load_manifest(str(tmp_path / "mine.toml")).root == str(tmp_path.parent / "data")
    monkeypatch.chdir(tmp_path)
    assert load_manifest("mine.toml").root == str(tmp_path.parent / "data")
    assert load_manifest("mine.toml", Path("here")).root == str(tmp_path / "here")
    (tmp_path / "mine.json").write_text('{"name": "m", "root": "../data"}')
    assert load_manifest("mine.json") == load_manifest("mine.toml")


def test_unknown_name_offers_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'vipsg' is not shipped; nearest: vipseg"):
        load_manifest("vipsg")
    for path in ("no/such/file.toml", "no/such/file.json"):
        with pytest.raises(ConfigError, match=f"'{path}' does not exist"):
            load_manifest(path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('nme = "x"', "'nme' is not a key; nearest: name"),
        ('nme = "x"', "'name' is needed"),
        ('name = "m"\n[[videos]]\nid="a"\npath="a"\nknd="video"', "'videos.0.knd' is not a key"),
        ('name = "m"\n[[videos]]\nid="a"\npath="a"\nknd="video"', "nearest: kind"),
        ('name = "m"\n[[videos]]\nid="../a"\npath="a"\nkind="video"', "video id '../a' is not"),
        ('name = "m"\n[[videos]]\nid="/a"\npath="a"\nkind="video"', "video id '/a' is not"),
        ('name = "m"\n[[videos]]\nid="a"\npath="a"\nkind="film"', "videos.0.kind: Input should be"),
        ('name = "m"\n[layout]\nvideos="{vid}"', "uses {vid}; expected only {video}, {split}"),
        ('name = "m"\n[layout]\nvideos="{video"', "is not a pattern"),
        ('name = "m"\n[layout]\nvideos="images"', "need {video}"),
        ('name = "m"\n[layout]\nvideos="{video}"\nid="{split}/{video}"', "lacks"),
        ('name = "m"\n[[labels]]\nformat="panoptic"\npath="{frame}.png"', "need a json_path"),
        ('name = "m"\n[[labels]]\nformat="semantic"\npath="{frame}.png"\nvoid=[-1]', "void"),
        ('name = "m"\n[sampling]\nfsp=2', "sampling: 'fsp' is not a key; nearest: fps"),
        ('name = "m"\n[sampling]\nstride=0', "sampling: stride"),
        ('name = "m"\nroot = 3', "root: Input should be a valid string"),
        ("name = ", "is not a readable TOML file"),
    ],
)
def test_broken_manifest_says_what_is_wrong(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_manifest(str(path))
    assert expected in caught.value.message
    assert str(path) in caught.value.message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"nme": "x"}', "'nme' is not a key; nearest: name"),
        (
            '{"name": "m", "videos": [{"id": "../a", "path": "a", "kind": "video"}]}',
            "'../a' is not",
        ),
        ('["name"]', "its JSON is not one object"),
        ('{"name": "m"', "is not a readable JSON file: Expecting"),
        ("[" * 100_000, "is not a readable JSON file"),
        ('name = "m"', "is not a readable JSON file"),
    ],
)
def test_broken_json_manifest_says_what_is_wrong(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "mine.json"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_manifest(str(path))
    assert expected in caught.value.message
    assert str(path) in caught.value.message


def test_the_suffix_chooses_the_form_and_the_hash_does_not_depend_on_it(tmp_path: Path) -> None:
    for name in ("a.toml", "b.json"):
        full().write(tmp_path / name)
        assert load_manifest(str(tmp_path / name)) == full()
        assert load_manifest(str(tmp_path / name)).sha256 == full().sha256
    assert (tmp_path / "a.toml").read_text() == full().to_toml()
    lines = (tmp_path / "b.json").read_text().splitlines()
    assert [json.loads(line.rstrip(","))["id"] for line in lines if "kind" in line] == [
        video.id for video in full().videos
    ]


def test_names_used_twice_are_named() -> None:
    video = Video(id="a", path="a", kind="video")
    with pytest.raises(ValueError, match="video id used twice: a"):
        Manifest(name="m", videos=(video, video))
    category = Category(id=4, name="a", isthing=True)
    with pytest.raises(ValueError, match="category id used twice: 4"):
        Manifest(name="m", categories=(category, category))


def test_writing_refuses_to_replace_without_force(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    full().write(path)
    with pytest.raises(ConfigError, match=r"exists; pass --force"):
        Manifest(name="other").write(path)
    assert load_manifest(str(path)) == full()
    Manifest(name="other").write(path, force=True)
    assert load_manifest(str(path)).name == "other"
    assert [p.name for p in tmp_path.iterdir()] == ["mine.toml"]


def test_writing_where_no_folder_is_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be written: No such file or directory"):
        full().write(tmp_path / "absent/mine.toml")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("file", "num_videos"), [("vipseg.toml", 3_536), ("coco.json", 20_000)])
def test_manifests_of_the_size_of_data_sets_read_back_equal(
    tmp_path: Path, file: str, num_videos: int
) -> None:
    videos = tuple(
        Video(
            id=f"{i}_{i * 7919:011d}",
            path=f"images/{i}_{i * 7919:011d}",
            kind="frames",
            sha256=f"{i:064x}",
            split="train",
            num_frames=24,
            height=720,
            width=1280,
        )
        for i in range(num_videos)
    )
    path = tmp_path / file
    manifest = load_manifest("vipseg", Path("/data")).model_copy(update={"videos": videos})
    manifest.write(path)
    assert load_manifest(str(path)) == manifest
