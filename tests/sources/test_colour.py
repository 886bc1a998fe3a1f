from __future__ import annotations

import av
import numpy as np
import pytest
from av.video.reformatter import VideoReformatter

from fcache.sources.colour import to_rgb

UNTAGGED, BT709, BT601, SMPTE170M, BT2020 = 2, 1, 5, 6, 9  # ITU-T H.273 matrix codes
KR_KB = {BT709: (0.2126, 0.0722), BT2020: (0.2627, 0.0593)}


def formula(y, u, v, matrix, full):
    """RGB of one 8-bit YUV colour by the standard's own equations."""
    kr, kb = KR_KB.get(matrix, (0.299, 0.114))
    luma, scale = (y / 255, 255) if full else ((y - 16) / 219, 224)
    cb, cr = (u - 128) / scale, (v - 128) / scale
    red, blue = luma + 2 * (1 - kr) * cr, luma + 2 * (1 - kb) * cb
    green = (luma - kr * red - kb * blue) / (1 - kr - kb)
    return np.clip(np.round(np.array([red, green, blue]) * 255), 0, 255)


@pytest.mark.parametrize(("pix_fmt", "bits"), [("yuv420p", 8), ("yuv444p", 8), ("yuv420p10le", 10)])
@pytest.mark.parametrize("matrix", [UNTAGGED, BT709, BT601, SMPTE170M, BT2020])
@pytest.mark.parametrize("colour_range", [0, 1, 2])  # untagged, limited, full
def test_colours_follow_the_tagged_matrix_and_range(pix_fmt, bits, matrix, colour_range):
    reformatter = VideoReformatter()
    for yuv in ((90, 100, 170), (200, 140, 110), (16, 128, 128), (235, 128, 128), (60, 180, 90)):
        picture = av.VideoFrame(31, 17, pix_fmt)
        for plane, value in zip(picture.planes, yuv, strict=True):
            dtype = np.uint8 if bits == 8 else np.uint16
            num = plane.buffer_size // dtype().itemsize
            plane.update(np.full(num, value << (bits - 8), dtype).tobytes())
        picture.colorspace, picture.color_range = matrix, colour_range
        rgb = to_rgb(picture, reformatter)
        assert rgb.shape == (17, 31, 3)
        expected = formula(*yuv, matrix, colour_range == 2)
        assert np.abs(rgb - expected).max() <= 1, (yuv, rgb[0, 0], expected)
