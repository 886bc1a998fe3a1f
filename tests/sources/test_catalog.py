"""A manifest made from sources, readable or not."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import pytest
from PIL import Image

from fcache.manifest import Category, Labels, Manifest, load_manifest
from fcache.sources import content
from fcache.sources.catalog import build_manifest, source_bytes
from fcache.sources.content import HashMemo, content_hash
from fcache.sources.listing import Source, from_manifest, list_sources
from tests.shared import SHARED, needs_shared


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(3):
        (tmp_path / "set/train/clip").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 4), (i, 0, 0)).save(tmp_path / f"set/train/clip/{i}.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (8, 5)).save(tmp_path / "set/turned.jpg", exif=turned)
    (tmp_path / "set/broken").mkdir()
    (tmp_path / "set/broken/clip.mp4").write_bytes(b"not a video")
    (tmp_path / "set/broken/empty.mp4").write_bytes(b"")
    return tmp_path / "set"


def test_manifest_lists_sizes_as_displayed_and_content(folder: Path) -> None:
    manifest, _ = build_manifest(list_sources([folder]), name="mine", root=folder)
    videos = {video.id: video for video in manifest.videos}
    assert list(videos) == ["broken/clip", "broken/empty", "train/clip", "turned"]
    clip, turned = videos["train/clip"], videos["turned"]
    assert (clip.path, clip.kind, clip.split) == ("train/clip", "frames", "train")
    assert (clip.num_frames, clip.height, clip.width) == (3, 4, 6)
    assert clip.sha256 == content_hash(folder / "train/clip", "frames")
    assert (turned.kind, turned.num_frames, turned.height, turned.width) == ("image", 1, 8, 5)
    assert manifest.root == str(folder)


def test_unreadable_source_stays_without_sizes_and_with_its_reason(folder: Path) -> None:
    sources = list_sources([folder])
    sources.append(Source("gone", folder / "gone.mp4", "video", None))
    manifest, problems = build_manifest(sources, name="mine", root=folder)
    assert [video_id for video_id, _ in problems] == ["broken/clip", "broken/empty", "gone"]
    assert all(reason for _, reason in problems)
    videos = {video.id: video for video in manifest.videos}
    assert videos["broken/empty"].sha256 == hashlib.sha256(b"").hexdigest()
    assert videos["gone"].sha256 is None
    for video_id, _ in problems:
        assert (videos[video_id].height, videos[video_id].num_frames) == (None, None)


def test_written_manifest_gives_the_same_sources(folder: Path, tmp_path: Path) -> None:
    sources = list_sources([folder])
    manifest, _ = build_manifest(sources, name="mine", root=folder)
    manifest.write(tmp_path / "mine.toml")
    loaded = load_manifest(str(tmp_path / "mine.toml"))
    assert loaded == manifest
    assert from_manifest(loaded) == sources


def test_without_a_root_the_deepest_common_folder_is_taken(folder: Path) -> None:
    sources = list_sources([folder / "train/clip", folder / "broken/clip.mp4"])
    manifest, _ = build_manifest(sources, name="mine", hash_content=False)
    assert manifest.root == str(folder)
    assert [video.sha256 for video in manifest.videos] == [None, None]


def test_source_outside_the_root_keeps_its_absolute_path(folder: Path) -> None:
    manifest, _ = build_manifest(
        list_sources([folder / "turned.jpg"]), name="mine", root=folder / "train"
    )
    assert manifest.videos[0].path == str(folder / "turned.jpg")


def test_template_gives_what_is_not_given(folder: Path) -> None:
    labels = Labels(format="semantic", path="{video}/{frame}.png")
    template = Manifest(
        name="template",
        about="About it.",
        labels=(labels,),
        categories=(Category(id=3, name="cat", isthing=True),),
        sampling={"stride": 2},
    )
    sources = list_sources([folder / "turned.jpg"])
    manifest, _ = build_manifest(sources, name="mine", template=template)
    assert (manifest.name, manifest.about) == ("mine", "About it.")
    assert (manifest.labels, manifest.categories) == (template.labels, template.categories)
    assert manifest.sampling == {"stride": 2}
    manifest, _ = build_manifest(sources, name="mine", template=template, sampling={"fps": 1.5})
    assert manifest.sampling == {"fps": 1.5}


def test_progress_follows_the_order_of_the_sources(folder: Path) -> None:
    seen: list[str] = []
    sources = list_sources([folder])
    build_manifest(
        sources, name="mine", root=folder, on_done=lambda source: seen.append(source.video_id)
    )
    assert seen == [source.video_id for source in sources]


def test_memo_is_saved_when_the_user_stops_the_job(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = time.time_ns
    monkeypatch.setattr(content.time, "time_ns", lambda: real() + 10 * content.FRESH_NS)

    def stop(_: Source) -> None:
        raise KeyboardInterrupt

    memo = HashMemo(tmp_path / "memo.json")
    with pytest.raises(KeyboardInterrupt):
        build_manifest(
            list_sources([folder]), name="mine", root=folder, memo=memo, on_done=stop, threads=1
        )
    assert str(folder / "broken/clip.mp4") in (tmp_path / "memo.json").read_text()


def test_source_bytes_adds_up_frames(folder: Path) -> None:
    sizes = {source.video_id: source_bytes(source) for source in list_sources([folder])}
    assert sizes["train/clip"] == sum(p.stat().st_size for p in (folder / "train/clip").iterdir())
    assert (sizes["broken/clip"], sizes["broken/empty"]) == (11, 0)
    assert source_bytes(Source("gone", folder / "gone.mp4", "video", None)) == 0


@needs_shared
def test_awkward_videos_that_cannot_be_read_are_reported() -> None:
    folder = SHARED / "data/videos"
    sources = list_sources([folder])
    manifest, problems = build_manifest(sources, name="awkward", root=folder)
    assert len(manifest.videos) == len(sources)
    failed = {video_id for video_id, _ in problems}
    assert {"zero_byte", "generated/truncated_no_moov"} <= failed
    videos = {video.id: video for video in manifest.videos}
    assert (videos["decord_video_90"].height, videos["decord_video_90"].width) == (
        videos["decord_video_270"].height,
        videos["decord_video_270"].width,
    )
    assert all(video.height for video_id, video in videos.items() if video_id not in failed)
