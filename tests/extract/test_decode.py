import io
import struct
import subprocess
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from headstart.errors import DecodeError
from headstart.extract import decode as module
from headstart.extract.decode import DEFAULT_MAX_PIXELS, decode, versions

HEIGHT, WIDTH = 48, 64
ROWS, COLUMNS = np.mgrid[0:HEIGHT, 0:WIDTH]
GRADIENT = np.stack([COLUMNS * 4, ROWS * 5, (COLUMNS + ROWS) * 2], axis=-1).astype(np.uint8)
LOSSY = {"JPEG", "WEBP", "AVIF", "GIF"}
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF")
LIMIT = "pixels exceed the limit of"


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def gradient(mode: str = "RGB") -> Image.Image:
    return Image.fromarray(GRADIENT).convert(mode)


def see_through() -> Image.Image:
    image = gradient("RGBA")
    image.putalpha(Image.fromarray((COLUMNS * 4).astype(np.uint8)))
    return image


def reason(data: bytes, **options: int) -> str:
    with pytest.raises(DecodeError) as caught:
        decode(data, **options)
    text = str(caught.value)
    assert text and "\n" not in text
    return text


# Formats and modes


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_rgb(kind: str) -> None:
    result = decode(encode(gradient(), kind))
    assert result.pixels.shape == (HEIGHT, WIDTH, 3)
    assert result.pixels.dtype == np.uint8
    assert result.pixels.flags.c_contiguous and result.pixels.flags.writeable
    assert not result.animated
    difference = np.abs(result.pixels.astype(int) - GRADIENT)
    assert difference.mean() <= (6 if kind in LOSSY else 0)


def test_heic_is_read_where_the_extra_is_installed() -> None:
    heif = pytest.importorskip("pillow_heif", reason="needs the extra heif")
    buffer = io.BytesIO()
    heif.from_pillow(gradient()).save(buffer)
    pixels = decode(buffer.getvalue()).pixels
    assert pixels.shape == (HEIGHT, WIDTH, 3)
    assert np.abs(pixels.astype(int) - GRADIENT).mean() < 6


def test_heic_without_the_extra_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64)
    assert reason(heic) == 'HEIC needs the extra: pip install "headstart[heif]"'
    assert "pillow-heif" not in versions()


GOLDEN_MEANS = {
    "L": (gradient("L"), {}, 119.1891),
    "1": (gradient("1"), {}, 118.9502),
    "LA": (see_through().convert("LA"), {}, 195.5215),
    "RGBA": (see_through(), {}, 197.9186),
    "RGB and tRNS": (gradient(), {"transparency": (0, 0, 0)}, 117.9163),
    "L and tRNS": (gradient("L"), {"transparency": 0}, 119.2721),
}


@pytest.mark.parametrize("name", GOLDEN_MEANS)
def test_f19_golden_mean_of_each_mode(name: str) -> None:
    image, options, mean = GOLDEN_MEANS[name]
    pixels = decode(encode(image, "PNG", **options)).pixels
    assert pixels.shape == (HEIGHT, WIDTH, 3)
    assert pixels.mean() == pytest.approx(mean, abs=1e-4)


def test_f19_transparency_is_composited_onto_white() -> None:
    pixels = decode(encode(see_through(), "PNG")).pixels
    assert (pixels[:, 0] == 255).all(), "what is wholly transparent is white"
    alpha = (COLUMNS * 4 / 255)[:, :, None]
    assert np.abs(pixels - (GRADIENT * alpha + 255 * (1 - alpha))).max() <= 1


def palette_image() -> Image.Image:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    return image


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_f19_palette_with_and_without_a_transparent_entry(kind: str) -> None:
    assert decode(encode(palette_image(), kind)).pixels.tolist() == [[[10, 20, 30], [40, 50, 60]]]
    clear = encode(palette_image(), kind, transparency=1)
    assert decode(clear).pixels.tolist() == [[[10, 20, 30], [255, 255, 255]]]


def test_f19_palette_with_alpha_between_none_and_full() -> None:
    pixels = decode(encode(palette_image(), "PNG", transparency=bytes([255, 128]))).pixels
    assert pixels.tolist() == [[[10, 20, 30], [147, 152, 157]]]  # (40 * 128 + 255 * 127) / 255 and so on


def test_f19_cmyk_jpeg_is_converted_as_pillow_does() -> None:
    data = encode(gradient("CMYK"), "JPEG")
    assert np.array_equal(decode(data).pixels, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
    assert decode(data).pixels.mean() == pytest.approx(117.83, abs=0.1)


def test_f19_grey_jpeg_has_three_equal_channels() -> None:
    pixels = decode(encode(gradient("L"), "JPEG")).pixels
    assert pixels.shape == (HEIGHT, WIDTH, 3)
    assert (pixels == pixels[:, :, :1]).all()


# 16 bits and more

DEEP = np.linspace(0, 65535, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(np.uint16)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_f20_sixteen_bit_grey_is_scaled_to_the_nearest_level(kind: str) -> None:
    pixels = decode(encode(Image.fromarray(DEEP), kind)).pixels
    assert np.array_equal(pixels[:, :, 1], np.rint(DEEP * (255 / 65535)).astype(np.uint8))
    assert pixels.mean() == pytest.approx(127.4980, abs=1e-4)
    assert pixels[-1, -1].tolist() == [255, 255, 255]


def test_f20_big_endian_sixteen_bit_tiff_is_the_same() -> None:
    swapped = Image.frombytes("I;16B", (WIDTH, HEIGHT), DEEP.astype(">u2").tobytes())
    assert decode(encode(swapped, "TIFF")).pixels.mean() == pytest.approx(127.4980, abs=1e-4)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 0.5, 1]], dtype=np.float32), [0, 128, 255]),
        (np.array([[0, 100, 255]], dtype=np.float32), [0, 100, 255]),
        (np.array([[0, 257, 65535]], dtype=np.float32), [0, 1, 255]),
        (np.array([[-1, 0, 1]], dtype=np.float32), [0, 128, 255]),
        (np.array([[-5, -5, -5]], dtype=np.float32), [0, 0, 0]),
        (np.array([[np.nan, np.inf, 1]], dtype=np.float32), [0, 0, 255]),
        (np.array([[0, 257, 65535]], dtype=np.int32), [0, 1, 255]),
        (np.array([[0, 50_000, 100_000]], dtype=np.int32), [0, 128, 255]),
    ],
)
def test_floats_and_integers_are_scaled_by_the_documented_rule(values: np.ndarray, expected: list[int]) -> None:
    assert decode(encode(Image.fromarray(values), "TIFF")).pixels[0, :, 0].tolist() == expected


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")


def test_f20_sixteen_bit_colour_is_reduced_to_eight() -> None:
    row = struct.pack(">6H", 0xFFFF, 0x8000, 0x0100, 0, 0x1234, 0xFF00)
    pixels = decode(png(2, 1, 16, 2, b"\0" + row)).pixels
    assert pixels.tolist() == [[[255, 128, 1], [0, 0x12, 255]]]


# Frames


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "AVIF", "TIFF"])
def test_f21_first_frame_of_several(kind: str) -> None:
    frames = [Image.new("RGB", (WIDTH, HEIGHT), colour) for colour in ("lime", "blue")]
    data = encode(Image.new("RGB", (WIDTH, HEIGHT), "red"), kind, save_all=True, append_images=frames)
    result = decode(data)
    assert result.animated
    assert result.pixels.shape == (HEIGHT, WIDTH, 3)
    assert np.abs(result.pixels.mean(axis=(0, 1)) - [255, 0, 0]).max() < 4


def test_pictures_of_a_phone_give_the_first() -> None:
    data = encode(gradient(), "MPO", save_all=True, append_images=[gradient().rotate(180)])
    result = decode(data)
    assert not result.animated
    assert np.abs(result.pixels.astype(int) - GRADIENT).mean() < 4


# JPEG


def test_f23_content_decides_and_not_the_kind_that_a_name_promises() -> None:
    for kind in ("PNG", "BMP"):
        assert np.array_equal(decode(encode(gradient(), kind)).pixels, GRADIENT)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 30}])
def test_jpeg_equals_pillow_bit_for_bit(options: dict[str, int]) -> None:
    data = encode(gradient(), "JPEG", **options)
    assert np.array_equal(decode(data).pixels, np.asarray(Image.open(io.BytesIO(data))))


def test_photographs_equal_pillow_bit_for_bit(samples: Path) -> None:
    for path in sorted((samples / "hymenoptera" / "val" / "bees").glob("*.jpg"))[:10]:
        data = path.read_bytes()
        assert np.array_equal(decode(data).pixels, np.asarray(Image.open(path).convert("RGB")))


def test_junk_after_the_end_is_ignored() -> None:
    data = encode(gradient(), "JPEG", progressive=True)
    assert np.array_equal(decode(data + b"junk" * 50).pixels, decode(data).pixels)


def test_harmless_complaints_go_to_pillow() -> None:
    data = encode(gradient(), "JPEG")
    end = data.rindex(b"\xff\xd9")
    noisy = data[:end] + b"\0" * 7 + data[end:]  # "7 extraneous bytes before marker 0xd9"
    assert np.array_equal(decode(noisy).pixels, decode(data).pixels)


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_f14_a_cut_jpeg_is_never_filled_in(mode: str, options: dict[str, bool]) -> None:
    data = encode(gradient(mode), "JPEG", **options)
    for length in (len(data) - 2, len(data) - 20, len(data) // 2, 200, 30):
        assert reason(data[:length]) == "truncated"
    zeros = data[: len(data) // 2] + bytes(len(data) - len(data) // 2)  # a download that reserved its space
    assert reason(zeros) in ("truncated", "broken JPEG (cannot load this image)")


def test_one_pixel() -> None:
    assert decode(encode(Image.new("RGB", (1, 1), (1, 2, 3)), "PNG")).pixels.tolist() == [[[1, 2, 3]]]


# What is no image


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "empty file"),
        (b"<!DOCTYPE html>\n<html><body>404</body></html>", "not an image (looks like HTML; failed download?)"),
        (b"\xef\xbb\xbf  <HTML><p>", "not an image (looks like HTML; failed download?)"),
        (b"<!-- x --><head></head>", "not an image (looks like HTML; failed download?)"),
        (b"<svg xmlns='x'></svg>", "not an image"),
        (b"hello", "not an image"),
        (bytes(1000), "not an image"),
        (b"%PDF-1.7\n", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "not an image"),
        (b"version https://git-lfs.github.com/spec/v1\n", "not an image (a Git LFS pointer; run `git lfs pull`)"),
    ],
)
def test_f15_reason_for_what_is_no_image(data: bytes, expected: str) -> None:
    assert reason(data) == expected


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF"])
def test_f14_half_a_file_is_truncated(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    data = encode(Image.fromarray(noise), kind)
    assert reason(data[: len(data) // 2]) == "truncated"
    assert reason(data[:-40]) == "truncated"


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "TIFF"])
def test_f14_nothing_is_filled_in_though_the_program_around_us_allows_it(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    data = encode(Image.fromarray(noise), kind)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    assert reason(data[: len(data) // 2]) == "truncated"


def test_a_broken_checksum_names_the_format() -> None:
    data = bytearray(encode(gradient(), "PNG"))
    data[20] ^= 1  # in IHDR
    assert reason(bytes(data)).startswith("broken PNG file (bad header checksum")


# Orientation

TURNED = {1: "RGBW", 2: "GRWB", 3: "WBGR", 4: "BWRG", 5: "RBGW", 6: "BRWG", 7: "WGBR", 8: "GWRB"}
COLOURS = {"R": (255, 0, 0), "G": (0, 255, 0), "B": (0, 0, 255), "W": (255, 255, 255)}


def quarters() -> Image.Image:
    image = Image.new("RGB", (64, 32))
    for name, corner in zip("RGBW", [(0, 0), (32, 0), (0, 16), (32, 16)], strict=True):
        image.paste(COLOURS[name], (*corner, corner[0] + 32, corner[1] + 16))
    return image


def corners(pixels: np.ndarray) -> str:
    names = ""
    for row, column in ((2, 2), (2, -3), (-3, 2), (-3, -3)):
        distance = {name: np.abs(pixels[row, column] - np.array(colour)).sum() for name, colour in COLOURS.items()}
        names += min(distance, key=distance.__getitem__)
    return names


def oriented(kind: str, orientation: int, **options: object) -> bytes:
    exif = Image.Exif()
    exif[0x010F] = "a maker whose name comes first"
    exif[0x0112] = orientation
    return encode(quarters(), kind, exif=exif, **options)


@pytest.mark.parametrize("orientation", TURNED)
def test_f22_all_orientations_of_jpeg(orientation: int) -> None:
    pixels = decode(oriented("JPEG", orientation)).pixels
    assert corners(pixels) == TURNED[orientation]
    assert pixels.shape == ((32, 64, 3) if orientation < 5 else (64, 32, 3))
    assert pixels.flags.c_contiguous


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", [6, 7])
def test_f22_orientation_of_other_formats(kind: str, orientation: int) -> None:
    assert corners(decode(oriented(kind, orientation)).pixels) == TURNED[orientation]


def test_orientation_of_heif_is_applied_once() -> None:
    heif = pytest.importorskip("pillow_heif", reason="needs the extra heif")
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    heif.from_pillow(quarters()).save(buffer, exif=exif.tobytes())
    assert corners(decode(buffer.getvalue()).pixels) == TURNED[6]


def test_orientation_of_a_jpeg_that_pillow_decodes() -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    assert corners(decode(encode(quarters().convert("CMYK"), "JPEG", exif=exif)).pixels) == TURNED[3]


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_impossible_orientation_is_none(value: int) -> None:
    assert corners(decode(oriented("JPEG", value)).pixels) == TURNED[1]


def test_damaged_exif_is_no_failure() -> None:
    plain = encode(quarters(), "JPEG")
    for body in (b"", b"II*\0", b"MM\0*\xff\xff\xff\xff", b"II*\0\x08\0\0\0\xff\xff", b"garbage"):
        segment = b"\xff\xe1" + struct.pack(">H", 8 + len(body)) + b"Exif\0\0" + body
        assert corners(decode(plain[:2] + segment + plain[2:]).pixels) == TURNED[1]


# Limits


def claimed(kind: str, width: int, height: int) -> bytes:
    """Return a small file whose header claims a large picture."""
    data = bytearray(encode(gradient(), kind, **({"lossless": True} if kind == "WEBP" else {})))
    if kind == "PNG":
        return png(width, height, 8, 2, b"\0" * 100)
    if kind == "JPEG":
        start = data.index(b"\xff\xc0") + 5
        data[start : start + 4] = struct.pack(">HH", height, width)
    elif kind == "GIF":
        data[6:10] = struct.pack("<HH", width, height)
    elif kind == "BMP":
        data[18:26] = struct.pack("<ii", width, height)
    elif kind == "WEBP":
        start = data.index(b"VP8L") + 9
        (bits,) = struct.unpack_from("<I", data, start)
        struct.pack_into("<I", data, start, (bits & ~0xFFFFFFF) | (width - 1) | (height - 1) << 14)
    else:
        position = struct.unpack_from("<I", data, 4)[0] + 2
        struct.pack_into("<I", data, position + 8, width)
        struct.pack_into("<I", data, position + 20, height)
    return bytes(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
@pytest.mark.parametrize("side", [10_000, 16_000])  # Pillow warns at the one and raises at the other
def test_f18_the_header_is_checked_before_decoding_and_nothing_is_warned(kind: str, side: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        text = reason(claimed(kind, side, side))
    assert text == f"{side * side} {LIMIT} {DEFAULT_MAX_PIXELS}; raise it with --max-pixels"


MEMORY = """
import resource, sys
from headstart.errors import DecodeError
from headstart.extract.decode import decode
first = sys.stdin.buffer.read(int(sys.argv[1]))
decode(first)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for size in sys.argv[2:]:
    try:
        decode(sys.stdin.buffer.read(int(size)))
    except DecodeError as error:
        print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the unit of ru_maxrss is another there")
def test_f18_memory_stays_flat_on_bombs() -> None:
    real = png(12_000, 12_000, 1, 0, b"\0" * (1501 * 12_000))
    bombs = [real, *(claimed(kind, 16_000, 16_000) for kind in ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"))]
    files = [encode(gradient(), "PNG"), *bombs]
    command = [sys.executable, "-c", MEMORY, *(str(len(data)) for data in files)]
    done = subprocess.run(command, input=b"".join(files), capture_output=True, timeout=60, check=True)
    *reasons, grown = done.stdout.decode().splitlines()
    assert len(reasons) == len(bombs) and all(LIMIT in text for text in reasons)
    assert int(grown) < 24, f"peak memory grew by {grown} MiB"
    assert done.stderr == b""


@pytest.mark.parametrize("kind", FORMATS)
def test_f18_a_limit_beyond_pillows_own_holds(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # the picture has 3072 pixels, more than twice that
    data = encode(gradient(), kind)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode(data, max_pixels=HEIGHT * WIDTH).pixels.shape == (HEIGHT, WIDTH, 3)
    assert reason(data, max_pixels=3071) == f"3072 {LIMIT} 3071; raise it with --max-pixels"


def test_pillows_limit_is_never_lowered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10**9)
    decode(encode(gradient(), "PNG"), max_pixels=5000)
    assert Image.MAX_IMAGE_PIXELS == 10**9
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    decode(encode(gradient(), "PNG"))
    assert Image.MAX_IMAGE_PIXELS is None


# Robustness


def test_threads_get_what_one_thread_gets() -> None:
    files = [encode(gradient(), kind) for kind in FORMATS] + [encode(see_through(), "PNG")]
    alone = [decode(data).pixels for data in files]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda data: decode(data).pixels, files * 20))
    assert all(np.array_equal(pixels, alone[i % len(files)]) for i, pixels in enumerate(together))


@pytest.mark.parametrize("error", [MemoryError(), ZeroDivisionError("division by zero"), RuntimeError(), KeyError("x")])
def test_whatever_a_decoder_raises_is_a_decode_error(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(module, "_loaded", fail)
    text = reason(encode(gradient(), "PNG"))
    assert text.startswith("not enough memory" if isinstance(error, MemoryError) else "broken PNG (")


def test_interruption_is_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_loaded", fail)
    with pytest.raises(KeyboardInterrupt):
        decode(encode(gradient(), "PNG"))


FLIPS = """
import random, sys, warnings
from headstart.errors import DecodeError
from headstart.extract.decode import decode
warnings.simplefilter("ignore")
count, seed = int(sys.argv[1]), int(sys.argv[2])
data = sys.stdin.buffer.read()
random.seed(seed)
good = bad = 0
for _ in range(count):
    flipped = bytearray(data)
    flipped[random.randrange(len(data))] ^= 1 << random.randrange(8)
    try:
        pixels = decode(bytes(flipped), max_pixels=10**6).pixels
        assert pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.dtype == "uint8"
        good += 1
    except DecodeError as error:
        assert str(error) and chr(10) not in str(error)
        bad += 1
print(good, bad)
"""


def flip_bits(data: bytes, count: int, seed: int) -> tuple[int, int]:
    command = [sys.executable, "-c", FLIPS, str(count), str(seed)]
    done = subprocess.run(command, input=data, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr.decode()
    good, bad = done.stdout.split()
    return int(good), int(bad)


def fuzzed_files() -> dict[str, bytes]:
    exif = Image.Exif()
    exif[0x0112] = 6
    files = {kind: encode(gradient(), kind, **({} if kind in ("BMP", "GIF") else {"exif": exif})) for kind in FORMATS}
    return files | {
        "progressive": encode(gradient(), "JPEG", progressive=True),
        "CMYK": encode(gradient("CMYK"), "JPEG"),
        "palette": encode(gradient().quantize(16), "PNG", transparency=3),
        "animated GIF": encode(gradient(), "GIF", save_all=True, append_images=[gradient().rotate(90)]),
        "lossless WebP": encode(gradient(), "WEBP", lossless=True),
        "TIFF LZW": encode(gradient(), "TIFF", compression="tiff_lzw"),
    }


@pytest.mark.parametrize("name", fuzzed_files())
def test_t6_single_flipped_bits_never_end_the_process(name: str) -> None:
    good, bad = flip_bits(fuzzed_files()[name], 60, seed=1)
    assert good + bad == 60


@pytest.mark.torture
@pytest.mark.parametrize("name", fuzzed_files())
def test_t6_a_thousand_flipped_bits_never_end_the_process(name: str) -> None:
    good, bad = flip_bits(fuzzed_files()[name], 1000, seed=2)
    print(f"T6 {name}: {good} decoded, {bad} refused, 0 crashes")
    assert good + bad == 1000


def test_versions_name_the_decoders() -> None:
    found = versions()
    assert {"pillow", "simplejpeg"} <= set(found)
    assert all(text[0].isdigit() for text in found.values())
