"""A picture in memory has the pixels that its file gives, whatever its mode, orientation and transparency."""

import io

import numpy as np
import pytest
from PIL import Image

from headstart.errors import DecodeError
from headstart.extract.decode import as_bmp, decode, pixels_of


def colours(width: int = 23, height: int = 17) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def transparent(mode: str) -> Image.Image:
    image = colours().convert("RGBA")
    image.putalpha(Image.fromarray(np.tile(np.linspace(0, 255, 23).astype(np.uint8), (17, 1))))
    return image.convert(mode)


def palette() -> Image.Image:
    image = colours().quantize(9)
    image.info["transparency"] = 3
    return image


def deep() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 65536, (17, 23), dtype=np.uint16))


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


FILES = {
    "png": (colours(), "PNG", {}),
    "RGBA": (transparent("RGBA"), "PNG", {}),
    "LA": (transparent("LA"), "PNG", {}),
    "palette": (palette(), "PNG", {"transparency": 3}),
    "1 bit": (colours().convert("1"), "PNG", {}),
    "16 bits": (deep(), "PNG", {}),
    "jpeg": (colours(), "JPEG", {}),
    "grey jpeg": (colours().convert("L"), "JPEG", {}),
    "CMYK": (colours().convert("CMYK"), "JPEG", {}),
    "gif": (colours().quantize(200), "GIF", {}),
    "float": (Image.fromarray(np.linspace(0, 1, 391, dtype=np.float32).reshape(17, 23)), "TIFF", {}),
    **{f"jpeg, turned {turn}": (colours(), "JPEG", {"exif": turned(turn)}) for turn in range(2, 9)},
    **{f"{kind}, turned": (colours(), kind, {"exif": turned(6)}) for kind in ("PNG", "WEBP", "TIFF")},
}


@pytest.mark.parametrize("change", [lambda image: image, lambda image: image.copy()], ids=["opened", "copied"])
@pytest.mark.parametrize("name", FILES)
def test_a_picture_in_memory_has_the_pixels_of_its_file(name, change):
    image, kind, options = FILES[name]
    file = io.BytesIO()
    image.save(file, kind, **options)
    with Image.open(io.BytesIO(file.getvalue())) as opened:
        pixels = pixels_of(change(opened))
    np.testing.assert_array_equal(pixels, decode(file.getvalue()).pixels)
    np.testing.assert_array_equal(decode(as_bmp(pixels)).pixels, pixels)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (2, 3), (3, 2), (5, 1)])
def test_every_width_goes_through_a_file_unchanged(size):
    pixels = np.array(colours(*size))
    np.testing.assert_array_equal(decode(as_bmp(pixels)).pixels, pixels)


def test_a_picture_without_pixels_is_none():
    with pytest.raises(DecodeError, match="no pixels"):
        as_bmp(np.zeros((0, 4, 3), np.uint8))


def test_a_large_picture_is_refused_before_it_is_read():
    file = io.BytesIO()
    Image.new("RGB", (300, 200)).save(file, "PNG")
    image = Image.open(io.BytesIO(file.getvalue()[:60]))  # the header and nothing else
    with pytest.raises(DecodeError, match="60000 pixels exceed the limit of 1000"):
        pixels_of(image, max_pixels=1000)
    with pytest.raises(DecodeError, match="truncated"):
        pixels_of(image)
