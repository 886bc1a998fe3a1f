from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from fcache.errors import SourceError
from fcache.sources.images import EXIF_ORIENTATION, frame_files, image_size, read_image

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 9, 3)).astype(np.uint8)


@pytest.mark.parametrize(
    ("orientation", "shown"),
    [
        (1, PIXELS),
        (2, PIXELS[:, ::-1]),
        (3, PIXELS[::-1, ::-1]),
        (4, PIXELS[::-1]),
        (5, PIXELS.transpose(1, 0, 2)),
        (6, np.rot90(PIXELS, -1)),
        (7, np.rot90(PIXELS, -1)[::-1][:, :]),
        (8, np.rot90(PIXELS, 1)),
    ],
)
def test_exif_orientation_is_applied(tmp_path, orientation, shown):
    if orientation == 7:
        shown = PIXELS[::-1, ::-1].transpose(1, 0, 2)
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    Image.fromarray(PIXELS).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "a.png"), shown)
    assert image_size(tmp_path / "a.png") == shown.shape[:2]


def test_natural_order_ignores_hidden_files_folders_and_other_files(tmp_path):
    for name in ("img10.png", "img2.PNG", "img1.jpg", ".img0.png", "notes.txt", "Thumbs.db"):
        (tmp_path / name).touch()
    (tmp_path / "img3.png").mkdir()
    assert [path.name for path in frame_files(tmp_path)] == ["img1.jpg", "img2.PNG", "img10.png"]


def test_padded_names_are_in_lexicographic_order(tmp_path):
    names = [f"{index:05d}.jpg" for index in (0, 3, 12, 100, 99999)]
    for name in reversed(names):
        (tmp_path / name).touch()
    assert [path.name for path in frame_files(tmp_path)] == names


def test_two_files_of_one_frame_name_are_refused(tmp_path):
    (tmp_path / "0.png").touch()
    (tmp_path / "0.jpg").touch()
    with pytest.raises(SourceError, match="two files are frame '0'"):
        frame_files(tmp_path)


def test_a_folder_without_images_is_refused(tmp_path):
    with pytest.raises(SourceError, match="holds no image"):
        frame_files(tmp_path)
    with pytest.raises(SourceError, match="cannot be listed: No such file"):
        frame_files(tmp_path / "absent")


def test_gray_palette_and_bilevel_become_rgb(tmp_path):
    gray = PIXELS[:, :, 0]
    Image.fromarray(gray).save(tmp_path / "gray.png")
    assert np.array_equal(read_image(tmp_path / "gray.png"), np.stack([gray] * 3, axis=2))
    palette = Image.fromarray(PIXELS).quantize(200)
    palette.save(tmp_path / "palette.png")
    assert np.array_equal(read_image(tmp_path / "palette.png"), np.array(palette.convert("RGB")))
    Image.fromarray(gray > 128).save(tmp_path / "bilevel.png")
    assert set(np.unique(read_image(tmp_path / "bilevel.png"))) == {0, 255}


def test_alpha_is_dropped_and_colours_under_it_are_kept(tmp_path):
    alpha = np.dstack([PIXELS, np.zeros((6, 9), np.uint8)])
    Image.fromarray(alpha).save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png"), PIXELS)


def test_16_bit_gray_keeps_its_high_byte(tmp_path):
    wide = np.random.default_rng(1).integers(0, 65536, (6, 9)).astype(np.uint16)
    for name in ("a.png", "a.tif"):
        Image.fromarray(wide).save(tmp_path / name)
        assert np.array_equal(read_image(tmp_path / name)[:, :, 1], wide >> 8)


def test_cmyk_jpeg_is_read_as_its_colours(tmp_path):
    red = Image.new("RGB", (16, 16), (255, 0, 0)).convert("CMYK")
    red.save(tmp_path / "a.jpg", quality=95)
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - [255, 0, 0]).max() < 12


def test_32_bit_samples_are_refused(tmp_path):
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(SourceError, match=r"32-bit samples.*expected 8 or 16"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif", "bmp"])
def test_truncated_images_are_refused(tmp_path, suffix):
    noise = np.random.default_rng(2).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(noise).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(SourceError, match=r"'a\.\w+' is "):
        read_image(path)


def test_reasons_of_unusable_images(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(SourceError, match="empty: zero bytes"):
        read_image(tmp_path / "empty.png")
    with pytest.raises(SourceError, match="not an image"):
        read_image(tmp_path / "text.png")
    with pytest.raises(SourceError, match="does not exist"):
        image_size(tmp_path / "absent.png")
