"""Pictures come back from their PNG as they were."""

import io

import numpy as np
import pytest
from PIL import Image

from workbench.traces.png import encode_png


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (7, 1), (96, 64)], ids=str)
def test_a_picture_comes_back_pixel_by_pixel(size: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO(encode_png(Image.fromarray(noise)))
    with Image.open(file) as found:
        assert found.format == "PNG" and found.mode == "RGB"
        assert np.array_equal(np.asarray(found), noise)


def test_checksums_and_end_are_right() -> None:
    with Image.open(io.BytesIO(encode_png(Image.new("RGB", (20, 10), (1, 2, 3))))) as found:
        found.verify()  # reads every chunk's checksum
