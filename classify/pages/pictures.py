"""Small pictures for a page: each once, as WebP in base64, the most wanted first, as long as there is room."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

from ...errors import DecodeError
from ...extract.access import read_anywhere
from ...extract.decode import decode
from ...extract.device import available_cores
from ...extract.elsewhere import location
from ..thumbnails import shrunk

SIDE = 128  # pixels of the long side
QUALITY = 60
BUDGET = 7_500_000  # characters of all pictures together, so that a page stays below 10 MB
_AT_ONCE = 256

NO_ROOM = "left out, so that this page stays small"
CHANGED = "the file has changed since it was embedded"


@dataclass
class Album:
    """Pictures that a page wants, by the number that it calls them by.

    Parameters
    ----------
    base : bytes
        The folder that paths are relative to.
    max_pixels : int
        Larger pictures are not decoded.
    budget : int, optional
        Characters of all pictures together.

    Attributes
    ----------
    images : dict of int to str
        WebP in base64, of those that were read.
    missing : dict of int to str
        Why others have none: not a picture any more, another one than was embedded, or one too many.
    """

    base: bytes
    max_pixels: int
    budget: int = BUDGET
    images: dict[int, str] = field(default_factory=dict)
    missing: dict[int, str] = field(default_factory=dict)

    def add(self, numbers: Sequence[int], paths: Sequence[bytes], digests: list[bytes]) -> None:
        """Read pictures while there is room.

        Parameters
        ----------
        numbers : sequence of int
            What the page calls them, the most wanted first; those that are there already cost nothing.
        paths, digests : list of bytes
            By number: where a picture lies, and the SHA-256 of the bytes that were embedded.
        """
        wanted = iter([number for number in dict.fromkeys(numbers) if number not in self.images])
        spent = sum(map(len, self.images.values()))
        with ThreadPoolExecutor(available_cores(), "picture") as pool:
            while spent < self.budget and (some := list(islice(wanted, _AT_ONCE))):
                made = pool.map(lambda number: self._made(paths[number], digests[number]), some)
                for number, (image, reason) in zip(some, made, strict=True):
                    spent += len(image)
                    if reason:
                        self.missing[number] = reason
                    elif spent <= self.budget:
                        self.images[number] = image
        for number in dict.fromkeys(numbers):
            if number not in self.images:
                self.missing.setdefault(number, NO_ROOM)

    def _made(self, path: bytes, digest: bytes) -> tuple[str, str]:
        """Return a picture in base64, or the reason why there is none."""
        try:
            data, _ = read_anywhere(location(self.base, path))
            if hashlib.sha256(data).digest() != digest:
                return "", CHANGED
            pixels = decode(data, max_pixels=self.max_pixels).pixels
        except DecodeError as error:
            return "", str(error)
        from PIL import Image

        stream = io.BytesIO()
        Image.fromarray(shrunk(pixels, SIDE)).save(stream, "WEBP", quality=QUALITY, method=2)
        return base64.b64encode(stream.getvalue()).decode(), ""
