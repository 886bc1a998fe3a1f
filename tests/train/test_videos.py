"""Videos trained on without a cache: decoded in the loop, drawn afresh or as a cache has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from fcache.config import SegmenterConfig
from fcache.data.sampling import ClipRequest, ClipSampler, FrameSampling
from fcache.errors import CacheNotFoundError, ConfigError, InterruptedJobError, SourceError
from fcache.sources.decode import decode
from fcache.train.decoded import DecodedCanvases, DecodedVideo
from fcache.train.inputs import open_inputs
from fcache.train.job import TrainResult, run_training
from fcache.train.plan import plan_training
from fcache.train.recipe import read_config
from fcache.train.videos import open_videos
from tests.cli.running import run
from tests.extract.making import SETTINGS, extract
from tests.sources.media import media_data
from tests.train.making import TINY, VIEW, checkpoint_bytes, tiny, train
from tests.train.test_job import interrupt_at, lines
from tests.train.test_live import CROPS, losses

BACKBONE = {"model": "test_vit", "blocks": (1, 2, 4, 5), "weights": "random:0"}
FULL = {**BACKBONE, "size": "64x96"}
SEEN = {
    "model": "test_vit",
    "blocks": "[1,2,4,5]",
    "weights": "random:0",
    "compute_dtype": "float32",
    "long_side_max": "none",
    "short_side": "64..80",
    "crop": "60x64",
}
CROPPED = {**BACKBONE, "short_side": "64..80", "crop": "60x64"}


@pytest.fixture(scope="module")
def cropped(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache = tmp_path_factory.mktemp("cropped") / "cache"
    extract(scenes / "manifest.toml", cache, **CROPS)
    return cache


def live(extract: dict[str, Any] = FULL, **changes: Any) -> SegmenterConfig:
    return tiny(**{"source": "live", "extract": extract, "steps": 3, "val_frames": 2, **changes})


def trained(videos: Path, folder: Path, config: SegmenterConfig, **options: Any) -> TrainResult:
    return run_training(None, config, folder, videos=videos, **options)


@pytest.mark.parametrize(
    ("cached", "seen"),
    [(VIEW, FULL), (CROPS, {**CROPPED, "crops": 2})],
    ids=["full", "crops"],
)
def test_training_on_videos_equals_training_on_their_cache(
    scenes: Path, tmp_path: Path, cached: dict[str, Any], seen: dict[str, Any]
) -> None:
    manifest = scenes / "manifest.toml"
    extract(manifest, tmp_path / "cache", **cached)
    settings = {"val_frames": 2, "steps": 3, "num_frames": 2, "range_frames": 1}
    wanted = train(tmp_path / "cache", tmp_path / "on cache", **settings)
    config = live(seen, live_rounded=True, **settings)
    found = trained(manifest, tmp_path / "on videos", config)
    assert checkpoint_bytes(found.last.folder) == checkpoint_bytes(wanted.last.folder)
    for kind in ("train", "val"):
        assert lines(tmp_path / "on videos", kind) == lines(tmp_path / "on cache", kind)


def test_folders_of_frames_equal_the_video_they_were(scenes: Path, tmp_path: Path) -> None:
    manifest, config = scenes / "manifest.toml", live()
    assert config.extract is not None
    for path in sorted((scenes / "videos").glob("*/*.mp4")):
        folder = tmp_path / "frames" / path.stem
        folder.mkdir(parents=True)
        for frame in decode(path, "video", config.extract.selection):
            assert frame is not None
            Image.fromarray(frame.rgb).save(folder / f"{frame.name}.png")
    files = open_videos(str(manifest), config)
    frames = open_videos(str(tmp_path / "frames"), live(labels=manifest, val_split="train"))
    assert files.view.key == frames.view.key
    by_id = {video.video_id: video for video in frames.videos}
    assert len(by_id) == 5
    for one in files.videos:
        other = by_id[one.video_id]
        assert one.labelled == other.labelled
        assert one.draws[0].names == other.draws[0].names
        canvases = []
        for video in (one.draws[0], other.draws[0]):
            out = np.empty((2, video.bucket.height, video.bucket.width, 3), np.uint8)
            DecodedCanvases(config.extract.selection, 16).read(
                ClipRequest(video, (3, 1)), None, out
            )
            canvases.append(out)
        assert np.array_equal(*canvases)


def test_crops_are_drawn_afresh_in_every_epoch_and_alike_by_every_sampler(scenes: Path) -> None:
    config = live(CROPPED, batch=2, micro_batch=2)
    data = open_videos(str(scenes / "manifest.toml"), config)

    def sampler() -> ClipSampler:
        return ClipSampler(data.videos, FrameSampling(), batch=2, micro_batch=2, seed=5)

    first = sampler()
    clips = [first.clips(step) for step in range(24)]
    again = [sampler().clips(step) for step in reversed(range(24))][::-1]
    named = [[clip.name for clip in step] for step in clips]
    assert named == [[clip.name for clip in step] for step in again]
    assert len({name for step in named for name in step}) == 48
    places: dict[str, set[Any]] = {}
    for step in clips:
        assert len({clip.video.bucket for clip in step}) == 1
        for clip in step:
            assert isinstance(clip.video, DecodedVideo)
            assert clip.draw == clip.epoch
            places.setdefault(clip.video.video_id, set()).add(clip.video.placed)
    assert min(len(seen) for seen in places.values()) > 8
    other = open_videos(str(scenes / "manifest.toml"), live(CROPPED, seed=7)).videos[0]
    assert other.afresh is not None
    assert data.videos[0].afresh is not None
    assert other.afresh(0).placed != data.videos[0].afresh(0).placed


def test_run_with_fresh_crops_resumes_bit_for_bit(scenes: Path, tmp_path: Path) -> None:
    manifest, config = scenes / "manifest.toml", live(CROPPED, steps=4)
    whole = trained(manifest, tmp_path / "whole", config)
    with pytest.raises(InterruptedJobError):
        trained(manifest, tmp_path / "run", config, report=interrupt_at(1, []))
    again = trained(manifest, tmp_path / "run", config)
    assert checkpoint_bytes(again.last.folder) == checkpoint_bytes(whole.last.folder)


def test_crops_are_trained_on_and_full_frames_validated_on(scenes: Path, tmp_path: Path) -> None:
    words = {f"extract.{k}": str(v) for k, v in SEEN.items()}
    words |= {"val_extract.crop": "none", "val_extract.short_side": "96", "source": "live"}
    config = read_config(
        "segmenter_demo",
        {**words, "crop": "none"},
        {**TINY, "steps": 1, "milestones": [], "val_frames": 2},
        videos=scenes / "manifest.toml",
    )
    assert config.extract is not None
    assert config.val_extract is not None
    assert config.val_extract.model == config.extract.model == "test_vit"
    assert (config.val_extract.crop, config.extract.crop) == (None, (60, 64))
    data = open_videos(str(scenes / "manifest.toml"), config)
    assert data.val_view.identity["view"]["short_side"] == 96
    assert {frame.video.bucket.height for frame in data.frames} == {96}
    assert {video.draws[0].bucket.height for video in data.videos} == {64}
    result = trained(scenes / "manifest.toml", tmp_path / "run", config)
    assert "miou" in (result.last.metrics or {})
    written = tmp_path / "run" / "recipe.toml"
    assert read_config(written, videos=scenes / "manifest.toml") == config
    other = config.model_copy(
        update={"val_extract": config.val_extract.model_copy(update={"weights": "random:1"})}
    )
    with pytest.raises(ConfigError, match="to validate on has another backbone than view"):
        open_videos(str(scenes / "manifest.toml"), other)


def test_pyramid_trains_on_windows_of_decoded_frames(scenes: Path, tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    seen = {"model": "test_resnet", "weights": "random:0", "size": "64x96"}
    changes = {"adapter": "none", "backbone": {"trainable": True}, "crop": 64, "steps": 2}
    result = trained(
        scenes / "manifest.toml", tmp_path / "run", live(seen, **changes), report=events.append
    )
    assert len(losses(events)) == 2
    assert any(name.startswith("backbone.net.") for name in load_file(result.last.model))


def test_windows_of_decoded_frames_train(scenes: Path, tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    config = live(crop=32, steps=1)
    trained(scenes / "manifest.toml", tmp_path / "run", config, report=events.append)
    assert len(losses(events)) == 1


@pytest.mark.parametrize("source", ["cache", "live"])
def test_auto_takes_the_cache_where_it_has_the_view_and_covers_the_labels(
    scenes: Path, tmp_path: Path, source: str
) -> None:
    manifest, cache = scenes / "manifest.toml", tmp_path / "cache"
    extract(manifest, cache, first=None if source == "cache" else 2, **VIEW)
    config = live(source="auto", live_rounded=True)
    data, chosen, notes = open_inputs(cache, manifest, config)
    assert chosen.source == source
    assert (data.cache is None) == (source == "live")
    assert ("lacks 1 of what" in notes[0]) == (source == "live")
    assert len(data.videos) == 3
    events: list[dict[str, Any]] = []
    run_training(cache, config, tmp_path / "run", videos=manifest, report=events.append)
    assert any(event.get("text", "").startswith("source=auto: ") for event in events)
    assert read_config(tmp_path / "run" / "recipe.toml") == chosen


def test_auto_without_the_view_runs_the_backbone_and_says_why(scenes: Path, tmp_path: Path) -> None:
    manifest, cache = scenes / "manifest.toml", tmp_path / "cache"
    extract(manifest, cache, **{**VIEW, "size": "96x128"})
    _, chosen, notes = open_inputs(cache, manifest, live(source="auto"))
    assert chosen.source == "live"
    assert "has no view of this backbone under this geometry and dtype" in notes[0]
    _, chosen, notes = open_inputs(None, manifest, live(source="auto"))
    assert (chosen.source, notes[0][-17:]) == ("live", "no cache is given")
    _, chosen, notes = open_inputs(cache, None, tiny(source="auto"))
    assert (chosen.source, chosen.extract) == ("cache", None)
    assert f"are read from '{cache}'" in notes[0]


def test_auto_takes_the_selected_frames_of_a_cache_or_none(scenes: Path, tmp_path: Path) -> None:
    manifest, cache = scenes / "manifest.toml", tmp_path / "cache"
    config = live({**FULL, "fps": 2.0, "max_frames": 2}, source="auto")
    extract(manifest, cache, **VIEW)
    data, chosen, notes = open_inputs(cache, manifest, config)
    assert chosen.source == "live"
    assert "under another frame selection than extract.* asks for: {'fps': 2.0," in notes[0]
    wanted = [video.draws[0].names for video in data.videos]
    extract(manifest, cache, **VIEW, fps="2.0", max_frames="2")
    data, chosen, _ = open_inputs(cache, manifest, config)
    assert chosen.source == "cache"
    assert [tuple(video.draws[0].names) for video in data.videos] == wanted
    assert set(wanted) == {("00000", "00002")}
    every, _, _ = open_inputs(cache, manifest, live(source="auto"))
    assert {len(video.draws[0].names) for video in every.videos} == {4}
    apart = live({**FULL, "fps": 2.0}, source="auto", val_extract=FULL)
    assert "takes other frames" in open_inputs(cache, manifest, apart)[2][0]


@pytest.mark.parametrize(
    ("crops", "source", "reason"),
    [
        (0, "live", "extract.crops=0 draws a crop of its own for every clip"),
        (1, "live", "holds 2 crops of video"),
        (2, "cache", "are read from"),
        (3, "live", "extract.crops=3 asks for 3"),
    ],
)
def test_auto_takes_a_cache_of_the_same_crops_alone(
    scenes: Path, cropped: Path, crops: int, source: str, reason: str
) -> None:
    config = live({**CROPPED, "crops": crops}, source="auto")
    _, chosen, notes = open_inputs(cropped, scenes / "manifest.toml", config)
    assert chosen.source == source
    assert reason in notes[0]


def test_auto_does_not_take_a_mistake_for_a_missing_view(scenes: Path, cropped: Path) -> None:
    manifest, config = scenes / "manifest.toml", live(source="auto")
    with pytest.raises(CacheNotFoundError, match="cahce' does not exist"):
        open_inputs(cropped.parent / "cahce", manifest, config)
    with pytest.raises(CacheNotFoundError, match="no view whose key starts with 'ffff'"):
        open_inputs(f"{cropped}@ffff", manifest, config)
    with pytest.raises(ConfigError, match=r"gone\.toml"):
        open_inputs(
            cropped, manifest, live({**CROPPED, "crops": 2}, source="auto", labels="gone.toml")
        )


def test_auto_checks_what_it_chose_as_any_recipe(scenes: Path, cropped: Path) -> None:
    config = live({**FULL, "dtype": "int8"}, source="auto", live_rounded=True)
    for cache, reason in ((None, "no cache is given"), (cropped, "has no view of this backbone")):
        with pytest.raises(ConfigError, match=f"needs channel scales.*the loop: .*{reason}"):
            open_inputs(cache, scenes / "manifest.toml", config)


def test_video_that_breaks_while_it_is_trained_on_is_named(scenes: Path, tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    for number, path in enumerate(sorted((scenes / "videos").glob("*/*.mp4"))[:3]):
        (videos / f"v{number}.mp4").write_bytes(path.read_bytes())
    names = sorted(path.stem for path in (scenes / "videos").glob("*/*.mp4"))[:3]
    for number, name in enumerate(names):
        (videos / f"v{number}.mp4").rename(videos / f"{name}.mp4")

    def report(event: dict[str, Any]) -> None:
        if event["event"] == "start":
            for path in videos.glob("*.mp4"):
                path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    config = live(labels=scenes / "manifest.toml")
    with pytest.raises(SourceError, match=r"video '.*' \('.*\.mp4'\) cannot be trained on: "):
        trained(videos, tmp_path / "run", config, report=report)


def test_video_that_cannot_be_opened_is_left_out_and_told(scenes: Path, tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    for path in sorted((scenes / "videos").glob("*/*.mp4")):
        (videos / path.name).write_bytes(path.read_bytes())
    (videos / "broken.mp4").write_bytes(b"no video at all")
    plan = plan_training(None, live(labels=scenes / "manifest.toml"), videos=videos)
    assert [video for video, _ in plan.quarantined] == ["broken"]
    assert plan.backbone_runs == "live"
    assert (plan.num_videos, plan.live_frames) == (4, 6)
    assert plan.split_by == "no splits known: 1 of 5 videos held out"


def damaged(videos: Path, folder: Path) -> Path:
    """Copies of videos, the first of them with damage behind a sound header and a sound frame."""
    folder.mkdir()
    for path in sorted(videos.glob("*/*.mp4")):
        (folder / path.name).write_bytes(path.read_bytes())
    first = min(folder.glob("*.mp4"))
    data = bytearray(first.read_bytes())
    start, end = media_data(bytes(data))
    tail = (end - start) // 10
    data[end - tail : end] = bytes(tail)
    first.write_bytes(data)
    return first


def test_video_that_is_damaged_further_on_is_left_out_before_the_run(
    scenes: Path, tmp_path: Path
) -> None:
    first = damaged(scenes / "videos", tmp_path / "videos")
    config = live(labels=scenes / "manifest.toml", val_split="train")
    data = open_videos(str(first.parent), config)
    assert [video_id for video_id, _ in data.quarantined] == [first.stem]
    assert "damaged: " in data.quarantined[0][1]
    kept = live({**FULL, "on_error": "keep_prefix"}, labels=config.labels, val_split="train")
    assert kept.extract is not None
    data = open_videos(str(first.parent), kept)
    assert data.quarantined == ()
    prefix = {video.video_id: video.draws[0] for video in data.videos}[first.stem]
    assert 0 < len(prefix.names) < 4
    for position in range(len(prefix.names)):
        out = np.empty((1, prefix.bucket.height, prefix.bucket.width, 3), np.uint8)
        request = ClipRequest(prefix, (position,))
        DecodedCanvases(kept.extract.selection, 16).read(request, None, out)


@pytest.mark.parametrize("damage", ["header", "size"])
def test_folder_with_a_broken_frame_is_left_out_or_kept_before_it(
    scenes: Path, tmp_path: Path, damage: str
) -> None:
    for path in sorted((scenes / "videos").glob("*/*.mp4")):
        (tmp_path / path.stem).mkdir()
        for index in range(4):
            Image.new("RGB", (128, 96)).save(tmp_path / path.stem / f"{index:05d}.png")
    first = min(tmp_path.iterdir())
    if damage == "header":
        (first / "00002.png").write_bytes(b"no image")
    else:
        Image.new("RGB", (96, 96)).save(first / "00002.png")
    config = live(labels=scenes / "manifest.toml", val_split="train")
    data = open_videos(str(tmp_path), config)
    assert [video_id for video_id, _ in data.quarantined] == [first.name]
    assert "00002.png" in data.quarantined[0][1]
    kept = live({**FULL, "on_error": "keep_prefix"}, labels=config.labels, val_split="train")
    names = {v.video_id: v.draws[0].names for v in open_videos(str(tmp_path), kept).videos}
    assert names[first.name] == ("00000", "00001")


def test_selection_by_time_lists_frames_by_their_pictures(scenes: Path) -> None:
    manifest = str(scenes / "manifest.toml")
    every = open_videos(manifest, live()).videos[0].draws[0]
    assert every.names == ("00000", "00001", "00002", "00003")
    halved = open_videos(manifest, live({**FULL, "fps": 2.0})).videos[0].draws[0]
    assert halved.names == ("00000", "00002")
    strided = open_videos(manifest, live({**FULL, "stride": 3})).videos[0].draws[0]
    assert strided.names == ("00000", "00003")


@pytest.mark.parametrize(
    ("cache", "videos", "changes", "message"),
    [
        (None, None, {}, "nothing says what is trained on; expected --cache, or --videos"),
        (None, None, {"source": "live", "extract": FULL}, "expected --videos"),
        ("c", "v", {"source": "live", "extract": FULL}, "expected one of the two"),
        ("c", "v", {}, "source=cache reads no --videos"),
        (None, "v", {"source": "live"}, "nothing says how the videos are seen"),
        (None, "v", {"source": "live", "extract": FULL, "view": "ab"}, "videos have none"),
    ],
)
def test_what_does_not_go_with_the_source_is_refused(cache, videos, changes, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_inputs(cache, videos, tiny(**changes))


def test_labels_are_needed(scenes: Path) -> None:
    with pytest.raises(ConfigError, match="nothing says where the labels of"):
        open_videos(str(scenes / "videos"), live())
    with pytest.raises(ConfigError, match=r"none of 5 readable videos of .* has semantic labels"):
        open_videos(
            str(scenes / "videos"),
            live({**FULL, "stride": 1}, labels=scenes / "manifest.toml", targets="semantic"),
        )


@pytest.mark.parametrize(
    ("extract", "message"),
    [
        ({"workers": 4}, "workers= is of an extraction job; it has no meaning in the loop"),
        ({"crops": 2}, "crops=2 has no meaning without crop="),
        ({"modle": "x"}, "modle"),
    ],
)
def test_settings_of_a_job_are_refused_in_the_loop(extract: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        live({**FULL, **extract})


def test_selection_of_a_cache_is_refused_for_videos() -> None:
    for source in ("live", "auto"):
        with pytest.raises(ValueError, match="selection= is of a cache's videos; give extract"):
            live(source=source, selection={"fps": 1.0})


def test_command_trains_on_videos(scenes: Path, tmp_path: Path) -> None:
    words = [f"extract.{k}={v}" for k, v in SETTINGS.items() if k not in {"short_side", "dtype"}]
    recipe = ["recipe=segmenter_demo", "source=live", "extract.size=64x96", "crop=none", "batch=1"]
    common = [*recipe, *words, "--videos", scenes / "manifest.toml"]
    code, out, err = run("train", *common, "--plan")
    assert code == 0, err
    assert "runs in the loop: 150 frames" in out
    code, out, err = run("train", *common, "extract.modle=x", "--plan")
    assert code == 2
    assert "'extract.modle' is not a setting; nearest: extract.model" in err
    more = ["steps=1", "milestones=[]", "val_frames=1", "num_points=64", "--run", tmp_path / "run"]
    code, out, err = run("train", *common, *more)
    assert code == 0, err
    script = (tmp_path / "run" / "reproduce.sh").read_text()
    assert '--videos "$from"' in script
    code, out, err = run(
        "train", f"recipe={tmp_path / 'run' / 'recipe.toml'}", "--videos",
        scenes / "manifest.toml", "--run", tmp_path / "run",
    )  # fmt: skip
    assert code == 0, err
    assert np.isfinite(float(out.split("last: step 1, ")[1].split()[1].rstrip(",")))
