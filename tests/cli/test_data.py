"""``fcache data init`` as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from PIL import Image
from typer.testing import CliRunner, Result

from fcache.cli import data
from fcache.errors import ConfigError
from fcache.manifest import load_manifest
from fcache.sources.listing import from_manifest

app = typer.Typer()
app.add_typer(data.app, name="data")


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(app, ["data", "init", *map(str, words)])


@pytest.fixture(autouse=True)
def _own_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "a=b set"
    for split, color in (("train", 1), ("val", 2)):
        for i in range(3):
            for place, mode in (("images", "RGB"), ("semantic", "L")):
                path = root / split / "clip 1" / place / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new(mode, (6, 4), color if mode == "L" else (color, i, 0)).save(path)
    return root


def test_init_writes_a_manifest_that_lists_the_folder(folder: Path, tmp_path: Path) -> None:
    result = run(folder, "-o", tmp_path / "mine.toml", "stride=2")
    assert result.exit_code == 0, result.output
    size = {
        split: sum(path.stat().st_size for path in folder.glob(f"{split}/*/images/*"))
        for split in ("train", "val")
    }
    assert result.stdout == (
        f"wrote {tmp_path}/mine.toml (root {folder})\n"
        "split  videos  frames   size  labelled\n"
        f"train       1       3  {size['train']} B         1\n"
        f"val         1       3  {size['val']} B         1\n"
        "categories: 3 (0 things, 3 stuff); labels: semantic\n"
        "notes: 1\n"
        f"  {folder}/train/clip 1/semantic: and 1 more folders were left out: "
        "their names say labels\n"
    )
    manifest = load_manifest(str(tmp_path / "mine.toml"))
    assert [video.id for video in manifest.videos] == ["train/clip 1", "val/clip 1"]
    assert manifest.sampling == {"stride": 2}
    assert [entry.path for entry in manifest.labels] == ["{video}/semantic/{frame}.png"]
    assert [source.split for source in from_manifest(manifest)] == ["train", "val"]


def test_init_prints_one_json_object(folder: Path, tmp_path: Path) -> None:
    result = run(folder, "-o", tmp_path / "mine.toml", "--json")
    facts = json.loads(result.stdout)
    assert facts["schema"] == "fcache.data.init/v1"
    assert facts["splits"]["val"]["frames"] == 3
    assert facts["sha256"] == load_manifest(str(tmp_path / "mine.toml")).sha256
    assert facts["unreadable"] == []


def test_init_ends_with_3_where_sources_cannot_be_read(folder: Path, tmp_path: Path) -> None:
    (folder / "empty.webm").write_bytes(b"")
    result = run(folder, "-o", tmp_path / "mine.toml", "--json")
    assert result.exit_code == 3
    (problem,) = json.loads(result.stdout)["unreadable"]
    assert problem["video"] == "empty"
    assert "zero bytes" in problem["reason"]
    videos = {video.id: video for video in load_manifest(str(tmp_path / "mine.toml")).videos}
    assert videos["empty"].height is None


def test_init_reports_labels_that_do_not_fit(folder: Path, tmp_path: Path) -> None:
    for path in folder.glob("val/*/semantic/*.png"):
        Image.new("L", (4, 6)).save(path)
    result = run(folder, "-o", tmp_path / "mine.toml", "--json")
    assert result.exit_code == 0
    (problem,) = json.loads(result.stdout)["label_problems"]
    assert problem["video"] == "val/clip 1"
    assert "EXIF" in problem["reason"]


def test_init_refuses_to_replace_without_force(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("kept")
    result = run(folder, "-o", path)
    assert isinstance(result.exception, ConfigError)
    assert "--force" in result.exception.message
    assert path.read_text() == "kept"
    assert run(folder, "-o", path, "--force").exit_code == 0
    assert load_manifest(str(path)).name == "a=b set"


def test_init_takes_categories_and_layout_of_a_shipped_manifest(
    folder: Path, tmp_path: Path
) -> None:
    result = run("camvid", folder, "-o", tmp_path / "mine.toml")
    assert result.exit_code == 0, result.output
    manifest = load_manifest(str(tmp_path / "mine.toml"))
    assert manifest.categories == load_manifest("camvid").categories
    assert [(video.id, video.split) for video in manifest.videos] == [
        ("train/clip 1", "train"),
        ("val/clip 1", "val"),
    ]


def test_a_json_manifest_says_the_same_and_can_be_a_template(folder: Path, tmp_path: Path) -> None:
    for name in ("mine.toml", "mine.json"):
        assert run(folder, "-o", tmp_path / name, "--no-hash").exit_code == 0
    json.loads((tmp_path / "mine.json").read_text())
    manifest = load_manifest(str(tmp_path / "mine.json"))
    assert manifest == load_manifest(str(tmp_path / "mine.toml"))
    result = run(tmp_path / "mine.json", "-o", tmp_path / "hashed.json")
    assert result.exit_code == 0, result.output
    hashed = load_manifest(str(tmp_path / "hashed.json"))
    assert [video.id for video in hashed.videos] == [video.id for video in manifest.videos]
    assert all(video.sha256 for video in hashed.videos)


def test_plan_writes_nothing(folder: Path, tmp_path: Path) -> None:
    result = run(folder, "-o", tmp_path / "mine.toml", "--plan")
    assert result.exit_code == 0
    assert "would list 2 sources: 0 video files, 2 frame folders, 0 images" in result.stdout
    assert not (tmp_path / "mine.toml").exists()


def test_no_hash_reads_no_content(folder: Path, tmp_path: Path) -> None:
    run(folder, "-o", tmp_path / "mine.toml", "--no-hash")
    videos = load_manifest(str(tmp_path / "mine.toml")).videos
    assert [video.sha256 for video in videos] == [None, None]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["camvd"], "neither a folder nor a shipped manifest; nearest: camvid"),
        (["camvid"], "needs the folder that holds the data"),
        (["camvid", "absent"], "root 'absent' is not a folder"),
        (["a", "b", "c"], "3 plain words are given"),
        (["camvid", ".", "fsp=2"], "'fsp' is not a setting; nearest: fps"),
        (["camvid", ".", "fps=2", "stride=2"], "both choose frames"),
    ],
)
def test_wrong_words_are_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*words, "-o", "mine.toml")
    assert isinstance(result.exception, ConfigError)
    assert expected in result.exception.message
    assert not (tmp_path / "mine.toml").exists()


def test_labels_that_cannot_be_used_are_reported_not_dropped_silently(
    folder: Path, tmp_path: Path
) -> None:
    (folder / "categories.json").write_text("[3]")
    result = run(folder, "-o", tmp_path / "mine.toml", "--json")
    (problem,) = json.loads(result.stdout)["label_problems"]
    assert "categories.json" in problem["reason"]
    assert load_manifest(str(tmp_path / "mine.toml")).labels == ()
