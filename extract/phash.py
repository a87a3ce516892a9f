"""Perceptual hashes: 64 bits that hardly change when a picture is resized, recompressed or brightened a little.

The whole upright picture is shrunk to 32 x 32 grey levels and transformed by a DCT-II; each bit is the sign of one of
64 low-frequency coefficients. Signs are taken against zero and not, as is more common, against the median: a mirrored
picture has the same coefficients, those of odd horizontal frequency negated, so its hash is the same but for a fixed
set of bits, those of `MIRROR`. After C. Zauner, "Implementation and benchmarking of perceptual image hash functions",
2010, section 3.2.1.

A picture that shows next to nothing, a white page say, has coefficients that are all noise and signs that mean
nothing. It gets `FLAT` for a hash, which is like that of no other picture, not even of another flat one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from ..cache.index import KeyIndex
from ..cache.part import Keys

UNKNOWN = np.uint64(0)
"""In the place of a hash: nobody has looked at the picture."""
FLAT = np.uint64(1)
"""In the place of a hash: the picture has too little texture for one."""
MIRROR = np.uint64(0xFFFFFFFF00000000)
"""The bits that differ between a picture and its mirror image: those of odd horizontal frequency."""

SIDE = 32
_HALF = 32  # bits of even horizontal frequency, and of odd
# Pictures are thinned out to about this many pixels along the shorter side before they are averaged. Each of the
# 32 x 32 levels is then the mean of at least 8 x 8 pixels, and a picture of 12 megapixels costs as much as a small one.
_ENOUGH = 256
# Rounding to whole levels puts noise of 0.3 on each coefficient, JPEG about as much again. What is below this may have
# either sign, and a hash of which most bits may have either sign is none.
_NOISE = 1.0
_LEAST_SURE = 32  # coefficients above the noise


def phash(pixels: np.ndarray) -> np.uint64:
    """Return the perceptual hash of a picture. Any number of threads may call this at once.

    Parameters
    ----------
    pixels : ndarray of shape (H, W, 3), dtype uint8
        The whole picture, upright, red first.

    Returns
    -------
    uint64
        `FLAT` where the picture has too little texture; never `UNKNOWN`. Bit 0 to 31 are those of even horizontal
        frequency, 32 to 63 those of odd.
    """
    places, cosines = _basis()
    coefficients = (cosines @ _small_grey(pixels) @ cosines.T).take(places)
    if np.count_nonzero(np.abs(coefficients) >= _NOISE) < _LEAST_SURE:
        return FLAT
    found = np.packbits(coefficients > 0, bitorder="little").view("<u8")[0]
    return np.uint64(max(found, 2))  # 0 and 1 have meanings of their own


def mirrored(hashes: np.ndarray) -> np.ndarray:
    """Return the hashes of the mirror images, uint64 of the same shape; meaningless for `UNKNOWN` and `FLAT`."""
    return hashes ^ MIRROR


def _small_grey(pixels: np.ndarray) -> np.ndarray:
    """Shrink a picture to (32, 32) grey levels, float32."""
    from PIL import Image

    step = max(1, min(pixels.shape[:2]) // _ENOUGH)
    # From the middle of each step, so that a mirrored picture is thinned out alike.
    thin = np.ascontiguousarray(pixels[step // 2 :: step, step // 2 :: step])
    # What `Image.fromarray` comes to, without first filling with black what the pixels are then written to.
    image = Image.new("RGB", (thin.shape[1], thin.shape[0]), None)
    image.frombytes(thin)
    small = image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
    return np.frombuffer(small.tobytes(), np.uint8).reshape(SIDE, SIDE).astype(np.float32)


@cache
def _basis() -> tuple[np.ndarray, np.ndarray]:
    """Return where in a spectrum (K, K) the chosen coefficients stand, (64,) int64, and the cosines, (K, 32) float32.

    The orthonormal DCT-II: row k is sqrt(2 / 32) cos(pi k (2 x + 1) / 64), row 0 sqrt(1 / 32).
    """
    of_all = sorted((u * u + v * v, v, u) for u in range(SIDE) for v in range(SIDE) if u or v)
    chosen = [(u, v) for parity in (0, 1) for _, v, u in [item for item in of_all if item[2] % 2 == parity][:_HALF]]
    columns, rows = np.array(chosen).T
    order, place = np.arange(max(columns.max(), rows.max()) + 1)[:, None], np.arange(SIDE)
    cosines = np.sqrt(2 / SIDE) * np.cos(np.pi * order * (2 * place + 1) / (2 * SIDE))
    cosines[0] = np.sqrt(1 / SIDE)
    return rows * len(order) + columns, cosines.astype(np.float32)


@dataclass(frozen=True, slots=True)
class KnownHashes:
    """Perceptual hashes by the digest of the picture.

    Attributes
    ----------
    index : KeyIndex
        Of the digests.
    hashes : ndarray of shape (n,), dtype uint64
        Of each of its rows.
    """

    index: KeyIndex
    hashes: np.ndarray

    @classmethod
    def of(cls, digest: np.ndarray, hashes: np.ndarray) -> KnownHashes:
        """Take those that are known from digests, (n, 32) uint8, and hashes, (n,) uint64."""
        known = hashes != UNKNOWN
        return cls(KeyIndex([Keys.plain(digest[known])]), hashes[known])

    def of_one(self, digest: bytes) -> int:
        """Return the hash of a picture with this digest, 0 (`UNKNOWN`) where it is not known."""
        place = self.index.find_one(digest)
        return int(self.hashes[place]) if place >= 0 else 0

    def find(self, digest: np.ndarray) -> np.ndarray:
        """Return the hashes of pictures with these digests, (m, 32) uint8; (m,) uint64, `UNKNOWN` where not known."""
        if not len(self.hashes):
            return np.zeros(len(digest), np.uint64)
        places = self.index.find(Keys.plain(digest))
        return np.where(places >= 0, self.hashes[places], UNKNOWN)
