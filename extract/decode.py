r"""Bytes -> uint8 RGB pixels, or a named reason.

The rules, whose version `DECODER_RULES` is part of the feature space, so that changing one makes a new space:

1. Content decides, never the file's name. JPEG, PNG, WebP, BMP, GIF, TIFF and AVIF are read; HEIC and HEIF where
   pillow-heif is installed. Nothing else is tried.
2. JPEG goes to libjpeg-turbo through simplejpeg, with the accurate transform and smooth upsampling. CMYK and YCCK, and
   JPEGs about which it complains, go to Pillow, which decodes a damaged scan as far as it can. Missing data is a
   failure, ``truncated``: it is never filled in. An end marker straight after cut data cannot be told from damage.
3. The first frame is taken; of a HEIF collection, the primary image.
4. Grey, 1-bit and palette images are expanded to RGB. Transparency is composited onto white. CMYK is converted as
   Pillow does it. Colour profiles are ignored.
5. 16-bit grey is scaled, not clipped: 65535 becomes 255, to the nearest level; a transparent colour of such an image is
   ignored. 16-bit colour is reduced by Pillow to its high bytes. 32-bit integers in 0..65535 are taken as 16-bit, and
   floats as reaching to the smallest of 1, 255 and 65535 that holds them all; any other range is stretched from its
   least to its greatest value. What is not finite counts as 0.
6. The EXIF orientation is applied, as is TIFF's tag and the rotation of AVIF and HEIF. One that stands in XMP, or in
   a text chunk of a PNG, is not.

All of it may run in any number of threads; the decoders let go of the interpreter's lock.

The pixel limit is checked against the header, before anything is decoded. Pillow has a limit of its own in
`PIL.Image.MAX_IMAGE_PIXELS`, a global of the process at which `PIL.Image.open` warns, and raises at twice that. The
warning is avoided by making the format's reader directly. The exception, which some readers raise themselves, is
avoided by raising the global to ``max_pixels`` where that is larger, once, under a lock. It is not lowered again:
putting it back would need every thread to wait for every other.
"""

from __future__ import annotations

import importlib
import io
import re
import struct
import threading
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, ImageFile, features
from PIL import __version__ as pillow_version

from ..errors import DecodeError
from .options import DEFAULT_MAX_PIXELS

DECODER_RULES: int = 1
"""Version of the rules above."""

Pixels = npt.NDArray[np.uint8]

_SIGNATURES = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
)
_READERS = {
    "JPEG": ("PIL.JpegImagePlugin", "JpegImageFile"),
    "PNG": ("PIL.PngImagePlugin", "PngImageFile"),
    "GIF": ("PIL.GifImagePlugin", "GifImageFile"),
    "BMP": ("PIL.BmpImagePlugin", "BmpImageFile"),
    "TIFF": ("PIL.TiffImagePlugin", "TiffImageFile"),
    "WEBP": ("PIL.WebPImagePlugin", "WebPImageFile"),
    "AVIF": ("PIL.AvifImagePlugin", "AvifImageFile"),
    "HEIF": ("pillow_heif", "HeifImageFile"),
}
_HEIF_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"))
_HTML = re.compile(rb"<(!doctype html|html|head|body|script)\b", re.IGNORECASE)
_CUT_SHORT = re.compile(
    r"truncat|premature end of jpeg|unexpected end|requires a buffer|insufficient input|no more images", re.IGNORECASE
)
_ORIENTATION_TAG = 0x0112
_PILLOW_LIMIT_LOCK = threading.Lock()


@dataclass(frozen=True, slots=True, eq=False)
class Decoded:
    """One decoded image.

    Attributes
    ----------
    pixels : ndarray of uint8, shape (height, width, 3)
        RGB levels 0 to 255, upright, C-contiguous and writable.
    animated : bool
        Whether the file holds more than one frame; the first was taken.
    """

    pixels: Pixels
    animated: bool


def decode(data: bytes, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Decoded:
    """Decode an image file's bytes by the rules of this module.

    Parameters
    ----------
    data : bytes
        The whole file.
    max_pixels : int, default 89478485
        The largest width times height that is decoded. Memory grows with it: 3 bytes a pixel for the result, and
        up to 4 times that while decoding.

    Returns
    -------
    Decoded
        The pixels.

    Raises
    ------
    DecodeError
        The bytes are no image that can be decoded; the message is the reason alone, in one line.
    """
    if not data:
        raise DecodeError("empty file")
    kind = _kind(data)
    if kind is None:
        raise DecodeError(_foreign_reason(data))
    try:
        return _decode_kind(kind, data, max_pixels)
    except DecodeError:
        raise
    # Decoders answer bad bytes with whatever exception the bytes led them to: OSError, SyntaxError, ValueError,
    # struct.error, zlib.error, EOFError, MemoryError, IndexError, KeyError, AssertionError and more have been seen.
    # A list would be incomplete with the next release, and one broken image must never stop a run.
    except Exception as error:
        raise DecodeError(_reason(kind, data, error, max_pixels)) from error


def pixels_of(image: Image.Image, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Pixels:
    """Return the pixels of a picture that Pillow has opened or made, by rules 3 to 6: those that its file would give.

    Of several frames, the one that `image` is at is taken.

    Parameters
    ----------
    image : Image
        Is read from its file if it was not yet.
    max_pixels : int, default 89478485
        As for `decode`.

    Returns
    -------
    ndarray of uint8, shape (height, width, 3)

    Raises
    ------
    DecodeError
        As `decode`.
    """
    try:
        _check_pixels(image.width, image.height, max_pixels)
        image.load()
        return _finished(image, image.format)
    except DecodeError:
        raise
    except Exception as error:  # as in `decode`
        raise DecodeError(_reason(image.format or "picture", b"", error, max_pixels)) from error


def as_bmp(pixels: Pixels) -> bytes:
    """Return pixels as a file that `decode` turns into the same pixels.

    Parameters
    ----------
    pixels : ndarray of uint8, shape (height, width, 3)

    Raises
    ------
    DecodeError
        There are none, or too many for such a file: 4 GiB.
    """
    file = io.BytesIO()
    try:
        if not pixels.size:
            raise ValueError("it has no pixels")
        Image.fromarray(pixels).save(file, "BMP")
    except ValueError as error:
        raise DecodeError(str(error)) from error
    return file.getvalue()


def versions() -> dict[str, str]:
    """Return the versions of the libraries that decode.

    Returns
    -------
    dict of str to str
        ``pillow`` and ``simplejpeg``; ``libjpeg-turbo`` (Pillow's, since simplejpeg does not tell its own) and
        ``pillow-heif`` where they are there.
    """
    found = {"pillow": pillow_version, "simplejpeg": str(simplejpeg.__version__)}
    turbo = features.version_feature("libjpeg_turbo")
    if turbo:
        found["libjpeg-turbo"] = turbo
    try:
        import pillow_heif
    except ImportError:
        return found
    return found | {"pillow-heif": str(pillow_heif.__version__)}


# What the bytes are


def _kind(data: bytes) -> str | None:
    for signature, kind in _SIGNATURES:
        if data.startswith(signature):
            return kind
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    return _container_kind(data) if data[4:8] == b"ftyp" else None


def _container_kind(data: bytes) -> str | None:
    brand, compatible = data[8:12], data[16:64]
    if brand in (b"avif", b"avis") or (brand in (b"mif1", b"msf1") and b"avif" in compatible):
        return "AVIF"
    return "HEIF" if brand in _HEIF_BRANDS else None


def _foreign_reason(data: bytes) -> str:
    start = data[:1024].removeprefix(b"\xef\xbb\xbf").lstrip()
    if start.startswith(b"<") and _HTML.search(start):
        return "not an image (looks like HTML; failed download?)"
    if start.startswith(b"version https://git-lfs"):
        return "not an image (a Git LFS pointer; run `git lfs pull`)"
    return "not an image"


def _reason(kind: str, data: bytes, error: Exception, max_pixels: int) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        count = re.search(r"\d+", text)
        return _over_limit(count[0] if count else "more", max_pixels)
    if isinstance(error, EOFError) or _CUT_SHORT.search(text) or (data and _is_short(kind, data)):
        return "truncated"
    if isinstance(error, MemoryError):
        return f"not enough memory to decode this {kind}"
    shown = "".join(character if character.isprintable() else "?" for character in text)[:120]
    return shown if shown.startswith("broken") else f"broken {kind} ({shown or type(error).__name__})"


def _is_short(kind: str, data: bytes) -> bool:
    """Tell whether a container ends before its own lengths say: these decoders only say that something is wrong."""
    if kind == "WEBP":
        return int.from_bytes(data[4:8], "little") + 8 > len(data)
    if kind not in ("AVIF", "HEIF"):
        return False
    position = 0
    while 0 <= position < len(data):
        size = int.from_bytes(data[position : position + 4], "big")
        if size < 8:  # a box of 64-bit length, or one that reaches to the end
            return False
        position += size
    return position > len(data)


def _over_limit(pixels: int | str, max_pixels: int) -> str:
    return f"{pixels} pixels exceed the limit of {max_pixels}; raise it with --max-pixels"


def _check_pixels(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise DecodeError(_over_limit(width * height, max_pixels))


# Decoding


def _decode_kind(kind: str, data: bytes, max_pixels: int) -> Decoded:
    if kind == "JPEG":
        pixels = _decode_jpeg(data, max_pixels)
        if pixels is None:  # of several pictures in one JPEG, as phones write them, the first is the photograph
            pixels = _converted(_loaded(kind, data, max_pixels))
        return Decoded(_upright(pixels, _jpeg_exif(data)), animated=False)
    image = _loaded(kind, data, max_pixels)
    return Decoded(_finished(image, kind), animated=bool(getattr(image, "is_animated", False)))


def _decode_jpeg(data: bytes, max_pixels: int) -> Pixels | None:
    """Return the pixels, or None where Pillow has to judge."""
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    _check_pixels(width, height, max_pixels)
    if space in ("CMYK", "YCCK"):
        return None
    try:
        pixels: Pixels = simplejpeg.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False, strict=True)
    except ValueError as error:
        if _CUT_SHORT.search(str(error)):
            raise
        return None
    return pixels


def _loaded(kind: str, data: bytes, max_pixels: int) -> ImageFile.ImageFile:
    _raise_pillow_limit(max_pixels)
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # a program around us may have set it: missing data would be filled in
    image = _opened(kind, io.BytesIO(data))
    _check_pixels(image.width, image.height, max_pixels)
    image.load()
    return image


def _raise_pillow_limit(max_pixels: int) -> None:
    with _PILLOW_LIMIT_LOCK:
        limit = Image.MAX_IMAGE_PIXELS
        if limit is not None and limit < max_pixels:
            Image.MAX_IMAGE_PIXELS = max_pixels


def _opened(kind: str, file: io.BytesIO) -> ImageFile.ImageFile:
    """Read the header by the format's own reader; each is imported when its format is first met."""
    module, name = _READERS[kind]
    try:
        reader: type[ImageFile.ImageFile] = getattr(importlib.import_module(module), name)
    except ImportError:
        if kind != "HEIF":
            raise
        raise DecodeError('HEIC needs the extra: pip install "headstart[heif]"') from None
    return reader(file)


# Conversion


def _finished(image: Image.Image, kind: str | None) -> Pixels:
    # Pillow has turned a TIFF already; its other formats leave the turning to the caller.
    exif = b"" if kind == "TIFF" else image.info.get("exif") or b""
    return _upright(_converted(image), exif)


def _converted(image: Image.Image) -> Pixels:
    if image.mode.startswith("I") or image.mode == "F":
        return np.repeat(_eight_bits(np.asarray(image))[:, :, None], 3, axis=2)
    if image.has_transparency_data:
        image = _on_white(image)
    # np.array and not np.asarray: the latter is a read-only view of bytes.
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _on_white(image: Image.Image) -> Image.Image:
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image.convert("RGBA"))


def _eight_bits(values: npt.NDArray[np.generic]) -> Pixels:
    if values.dtype.kind == "u":
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)  # 65535 / 255 is 257, so no ties
    levels = values.astype(np.float64)
    levels[~np.isfinite(levels)] = 0
    low, high = float(levels.min()), float(levels.max())
    if low < 0 or high > 65535:
        levels, full = levels - low, high - low
    else:
        scales = (1.0, 255.0, 65535.0) if values.dtype.kind == "f" else (65535.0,)
        full = min(scale for scale in scales if scale >= high)
    return np.rint(levels * (255.0 / (full or 1.0))).astype(np.uint8)


# Orientation


def jpeg_orientation(data: bytes) -> int:
    """Return the EXIF orientation of a JPEG, 1 to 8; 1 is upright."""
    return _orientation(_jpeg_exif(data))


def _upright(pixels: Pixels, exif: bytes) -> Pixels:
    turn = _orientation(exif)
    if turn >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if turn in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if turn in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def _jpeg_exif(data: bytes) -> bytes:
    """Return the EXIF segment of a JPEG, or nothing; the segments before the first scan are walked by their lengths."""
    position = 2
    while data[position : position + 1] == b"\xff" and position + 4 <= len(data):
        marker, length = data[position + 1], int.from_bytes(data[position + 2 : position + 4], "big")
        if marker == 0xE1 and data[position + 4 : position + 10] == b"Exif\0\0":
            return data[position + 4 : position + 2 + length]
        if marker == 0xDA:
            break
        position += 2 + length
    return b""


def _orientation(exif: bytes) -> int:
    """Return the orientation 1 to 8 that an EXIF block gives; 1 where there is none or the block is damaged.

    Pillow's own reader is not used: it warns on damage, and what it accepts changes from version to version.
    """
    block = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(block[:4])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(order + "I", block, 4)
        (count,) = struct.unpack_from(order + "H", block, start)
        for index in range(count):
            tag, kind, _, value = struct.unpack_from(order + "HHIH", block, start + 2 + 12 * index)
            if tag == _ORIENTATION_TAG:
                return int(value) if kind == 3 and 1 <= value <= 8 else 1
    except struct.error:
        return 1
    return 1
