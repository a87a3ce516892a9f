"""Rotating, shearing and shifting against torchvision's, place by place."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from headstart.extract.affine import Affine, Box, rotation, shear_x, shear_y, shifted, warped
from headstart.extract.decode import decode
from headstart.extract.pixel_ops import as_planes

FILL = (124, 16, 204)
MODES = {True: InterpolationMode.BILINEAR, False: InterpolationMode.NEAREST}


@pytest.fixture(scope="module")
def photograph(samples) -> np.ndarray:
    path = sorted((samples / "hymenoptera").rglob("*.jpg"))[0]
    return as_planes(decode(path.read_bytes()).pixels[100:280, 50:290])


def whole(image: np.ndarray) -> Box:
    return Box(0, 0, *image.shape[1:])


def affine(image: np.ndarray, smooth: bool, fill, *, shear=(0.0, 0.0), translate=(0, 0), center=None) -> np.ndarray:
    return functional.affine(
        torch.from_numpy(image), 0.0, list(translate), 1.0, list(shear), MODES[smooth], list(fill), center
    ).numpy()


def bent_alike(
    image: np.ndarray, by: Affine, theirs: Callable[[np.ndarray, list[int]], np.ndarray], smooth: bool
) -> None:
    """Check that few values differ, and by little, but where a place is between two pixels of which one is nearest.

    Where a place is between pixel and fill, torchvision weighs the pixel twice, so that edges are darker there.
    """
    ours = warped(image, by, whole(image), smooth=smooth, fill=FILL)
    inside = theirs(np.ones(image.shape, np.float32), [0, 0, 0])[0]
    edge = (inside > 0) & (inside < 0.9999)
    assert edge.mean() < 0.02
    away = np.abs(ours.astype(int) - theirs(image, list(FILL)))[:, ~edge]
    if smooth:
        assert away.max() <= 2
        assert away.mean() < 0.3
    else:
        assert (away.max(axis=0) > 0).mean() < 0.004


@pytest.mark.parametrize("smooth", [True, False])
@pytest.mark.parametrize("degrees", [-135.0, -90.0, -15.0, -4.5, 0.0, 0.3, 9.0, 30.0, 45.0, 90.0, 121.5, 180.0])
def test_rotation_is_torchvisions(photograph, degrees, smooth):
    def theirs(image: np.ndarray, fill: list[int]) -> np.ndarray:
        return functional.rotate(torch.from_numpy(image), degrees, MODES[smooth], fill=fill).numpy()

    bent_alike(photograph, rotation(degrees, *photograph.shape[1:]), theirs, smooth)


@pytest.mark.parametrize("smooth", [True, False])
@pytest.mark.parametrize("slope", [-0.99, -0.09, 0.0, 0.033, 0.3, 0.99])
@pytest.mark.parametrize("axis", [0, 1])
def test_shears_are_torchvisions(photograph, axis, slope, smooth):
    shear = [0.0, 0.0]
    shear[axis] = math.degrees(math.atan(slope))

    def theirs(image: np.ndarray, fill: list[int]) -> np.ndarray:
        return affine(image, smooth, fill, shear=shear, center=[0, 0])

    bent_alike(photograph, (shear_x, shear_y)[axis](slope), theirs, smooth)


@pytest.mark.parametrize("right", [-500, -240, -7, 0, 1, 32, 239, 240, 1000])
@pytest.mark.parametrize("down", [-200, -180, -5, 0, 31, 179, 180])
def test_shifts_are_torchvisions_to_the_bit(photograph, right, down):
    theirs = affine(photograph, False, FILL, translate=(right, down))
    np.testing.assert_array_equal(shifted(photograph, right, down, FILL), theirs)


@pytest.mark.parametrize("smooth", [True, False])
@pytest.mark.parametrize("degrees", [-135.0, -11.3, 0.0, 14.9, 90.0])
def test_a_part_is_that_part_of_the_whole(photograph, degrees, smooth):
    by = rotation(degrees, *photograph.shape[1:])
    complete = warped(photograph, by, whole(photograph), smooth=smooth, fill=FILL)
    for box in [Box(0, 0, 1, 1), Box(179, 239, 1, 1), Box(40, 50, 77, 91), Box(0, 100, 180, 3), Box(170, 0, 10, 240)]:
        part = complete[:, box.top : box.top + box.high, box.left : box.left + box.wide]
        np.testing.assert_array_equal(warped(photograph, by, box, smooth=smooth, fill=FILL), part)
        pixels = np.ascontiguousarray(photograph.transpose(1, 2, 0)).transpose(2, 0, 1)  # of other strides
        np.testing.assert_array_equal(warped(pixels, by, box, smooth=smooth, fill=FILL), part)


def exact(image: np.ndarray, by: Affine) -> np.ndarray:
    """Interpolate in doubles, with a border that never ends."""
    _, high, wide = image.shape
    y, x = np.mgrid[0:high, 0:wide] + 0.5
    across, down = by.xx * x + by.xy * y + by.x0 - 0.5, by.yx * x + by.yy * y + by.y0 - 0.5
    left, top = np.floor(across).astype(int), np.floor(down).astype(int)
    total = np.zeros(image.shape)
    for i in (0, 1):
        for j in (0, 1):
            row, column = top + i, left + j
            inside = (row >= 0) & (row < high) & (column >= 0) & (column < wide)
            value = image[:, row.clip(0, high - 1), column.clip(0, wide - 1)]
            weight = (1 - np.abs(down - row)) * (1 - np.abs(across - column))
            total += weight * np.where(inside, value, np.array(FILL)[:, None, None])
    return total


@pytest.mark.parametrize("degrees", [-117.0, -3.3, 7.7, 60.0])
def test_noise_is_interpolated_as_exactly_as_eight_bits_can(degrees):
    noise = np.random.default_rng(1).integers(0, 256, (3, 70, 90), dtype=np.uint8)
    by = rotation(degrees, 70, 90)
    away = warped(noise, by, whole(noise), smooth=True, fill=FILL) - exact(noise, by)
    assert np.abs(away).max() < 2.5
    assert np.abs(away).mean() < 0.45  # rounding alone is 0.25
    assert abs(away.mean()) < 0.03  # and nothing is shifted


def test_large_pictures_and_places_far_outside_take_more_bits():
    wide = np.zeros((3, 2, 70_000), dtype=np.uint8)
    wide[:, :, 69_990:] = 200
    same = warped(wide, rotation(0.0, 2, 70_000), whole(wide), smooth=True, fill=FILL)
    np.testing.assert_array_equal(same, wide)
    away = warped(wide[:, :, :50], Affine(1.0, 0.0, 1e9, 0.0, 1.0, 0.0), Box(0, 0, 2, 50), smooth=False, fill=FILL)
    assert away.reshape(3, -1).T.tolist() == [list(FILL)] * 100


def test_memory_that_was_never_written_reaches_no_pixel(photograph):
    # The upper 16 bits of a packed pixel are whatever was there before.
    by = rotation(20.0, *photograph.shape[1:])
    results = set()
    for value in (0, 255):
        for _ in range(8):
            np.full((184, 243, 8), value, dtype=np.uint8)
        results.add(warped(photograph, by, whole(photograph), smooth=True, fill=FILL).tobytes())
    assert len(results) == 1
