"""Images of different sizes in one call: the same rows as alone, up to rounding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fcache.cache import open_cache
from fcache.errors import ConfigError, FeatureError
from fcache.extract.producer import BackboneProducer
from fcache.store.tables import made_with
from tests.extract.images import make_images
from tests.extract.making import extract, make_video, stored

SIZES = {"wide": (48, 64), "widest": (48, 120), "tall": (64, 48)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("set")
    for number, (name, sides) in enumerate(SIZES.items()):
        make_images(folder, [f"{name}{n}" for n in range(number + 2)], sides)
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.png"))


def assert_alike(one: Path, other: Path, videos: list[str]) -> None:
    for name in videos:
        (pixels, mixed), (same_pixels, alone) = stored(one, name), stored(other, name)
        assert np.array_equal(pixels, same_pixels)
        for stage, same_stage in zip(mixed, alone, strict=True):
            np.testing.assert_allclose(stage, same_stage, atol=1e-4, rtol=1e-4)


def counted(monkeypatch) -> list[int]:
    """How many images each mixed call computes."""
    calls: list[int] = []
    produce = BackboneProducer.produce_mixed

    def counting(self, canvases, *rest):
        calls.append(len(canvases))
        assert len({canvas.shape for canvas in canvases}) > 1
        return produce(self, canvases, *rest)

    monkeypatch.setattr(BackboneProducer, "produce_mixed", counting)
    return calls


def test_mixed_images_equal_images_computed_by_size(tmp_path, folder, monkeypatch) -> None:
    calls = counted(monkeypatch)
    extract(f"{folder}/*.png", tmp_path / "alone", batch=8)
    assert calls == []
    summary = extract(f"{folder}/*.png", tmp_path / "mixed", batch=8, mix=True)
    assert summary.num_frames == len(names(folder)) == 9
    assert calls == [7]  # of shards of four, three and two images; the last is left over
    assert_alike(tmp_path / "mixed", tmp_path / "alone", names(folder))
    assert open_cache(tmp_path / "mixed").view().key == open_cache(tmp_path / "alone").view().key


def test_videos_between_images_are_computed_as_ever(tmp_path, folder) -> None:
    video = make_video(tmp_path / "videos" / "v.mp4", 5)
    for name, changes in {"alone": {}, "mixed": {"mix": True}}.items():
        extract([f"{folder}/*.png", video], tmp_path / name, batch=4, **changes)
    assert_alike(tmp_path / "mixed", tmp_path / "alone", [*names(folder), "v"])


def test_commit_records_name_the_attention_of_mixed_images(tmp_path, folder) -> None:
    extract(f"{folder}/*.png", tmp_path / "cache", batch=8, mix=True)
    state = open_cache(tmp_path / "cache").view().state
    assert made_with(state.tables)["attention"] == {"sdpa per frame"}


def test_an_image_whose_features_cannot_be_stored_does_not_take_its_batch_along(
    tmp_path, folder, monkeypatch
) -> None:
    produce = BackboneProducer.produce

    def refuse(self, *args):
        raise FeatureError("int8 cannot hold one of these")

    def picky(self, canvases, valid, *rest):
        if (32, 80) in valid:
            raise FeatureError("int8 cannot hold these")
        return produce(self, canvases, valid, *rest)

    monkeypatch.setattr(BackboneProducer, "produce_mixed", refuse)
    monkeypatch.setattr(BackboneProducer, "produce", picky)
    summary = extract(f"{folder}/*.png", tmp_path / "cache", batch=8, mix=True)
    assert sorted(summary.quarantined) == ["widest0", "widest1", "widest2"]
    assert summary.num_frames == 6


def test_a_pyramid_cannot_mix(tmp_path, folder) -> None:
    with pytest.raises(ConfigError, match="is a pyramid"):
        extract(
            f"{folder}/*.png",
            tmp_path / "cache",
            model="test_resnet",
            blocks="none",
            batch=8,
            mix=True,
        )


@pytest.mark.parametrize("other", [{"batch": 1}, {"batch": 8, "compile": True}])
def test_mixing_needs_a_batch_and_plain_blocks(tmp_path, folder, other) -> None:
    with pytest.raises(ConfigError, match="mix=true"):
        extract(f"{folder}/*.png", tmp_path / "cache", mix=True, **other)
