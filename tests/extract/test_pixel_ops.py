"""Changes of colour against torchvision's, and at the edges of what there is."""

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional

from headstart.extract import pixel_ops
from headstart.extract.decode import decode

FACTORS = [0.0, 0.01, 0.4, 0.6, 0.937, 1.0, 1.31, 1.4, 1.99]


@pytest.fixture(scope="module")
def images(samples) -> list[np.ndarray]:
    """Photographs, noise, and all values of each channel beside each other, as planes of odd and even sides."""
    paths = sorted((samples / "hymenoptera").rglob("*.jpg"))[:3]
    photographs = [decode(path.read_bytes()).pixels[:181, :204] for path in paths]
    noise = np.random.default_rng(0).integers(0, 256, (97, 64, 3), dtype=np.uint8)
    steps = np.linspace(0, 255, 18).astype(np.uint8)
    cube = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(54, 108, 3)
    return [pixel_ops.as_planes(image) for image in [*photographs, noise, cube]]


def differences(ours: np.ndarray, theirs: torch.Tensor) -> np.ndarray:
    assert ours.dtype == np.uint8
    assert ours.shape == theirs.shape
    return ours.astype(int) - theirs.numpy()


COLOURS = {  # what it is called there, and by how many levels they may differ
    "brightness": ("adjust_brightness", 1),
    "contrast": ("adjust_contrast", 2),
    "saturation": ("adjust_saturation", 2),
    "sharpness": ("adjust_sharpness", 1),
}


@pytest.mark.parametrize("name", COLOURS)
@pytest.mark.parametrize("factor", FACTORS)
def test_a_factor_does_what_torchvision_does_with_it(name, factor, images):
    theirs, most = COLOURS[name]
    for image in images:
        found = differences(
            getattr(pixel_ops, name)(image, factor), getattr(functional, theirs)(torch.from_numpy(image), factor)
        )
        assert np.abs(found).max() <= most
        assert -0.1 < found.mean() <= most  # torchvision cuts fractions off, those of grey before, which is darker


@pytest.mark.parametrize("turn", [-0.5, -0.1, -0.033, 0.0, 0.05, 0.1, 0.31, 0.5])
def test_hue_turns_as_torchvisions(turn, images):
    for image in images:
        found = differences(pixel_ops.hue(image, turn), functional.adjust_hue(torch.from_numpy(image), turn))
        assert np.abs(found).max() <= 1
        assert abs(found.mean()) < 0.2


def test_a_third_of_a_turn_of_hue_swaps_channels_and_greys_stay(images):
    for image in images[-2:]:
        np.testing.assert_array_equal(pixel_ops.hue(image, 1 / 3), image[[2, 0, 1]])
        grey = np.repeat(image[:1], 3, axis=0)
        np.testing.assert_array_equal(pixel_ops.hue(grey, 0.123), grey)


@pytest.mark.parametrize("bits", range(9))
def test_posterize_is_torchvisions(bits, images):
    for image in images:
        assert not differences(
            pixel_ops.posterize(image, bits), functional.posterize(torch.from_numpy(image), bits)
        ).any()


@pytest.mark.parametrize("threshold", [0, 1, 100, 179, 254, 255])
def test_solarize_is_torchvisions(threshold, images):
    for image in images:
        assert not differences(
            pixel_ops.solarize(image, threshold), functional.solarize(torch.from_numpy(image), threshold)
        ).any()
        np.testing.assert_array_equal(pixel_ops.solarize(image, 256), image)


def test_equalize_is_torchvisions(images):
    for image in [*images, images[0] // 3 + 20, images[1][:, :3, :4]]:
        assert not differences(pixel_ops.equalize(image), functional.equalize(torch.from_numpy(image))).any()


def test_autocontrast_is_torchvisions_but_for_rounding(images):
    for image in [
        *images,
        images[0] // 3 + 20,
        np.stack([images[1][0] // 2, images[1][1], np.full_like(images[1][2], 9)]),
    ]:
        found = differences(pixel_ops.autocontrast(image), functional.autocontrast(torch.from_numpy(image)))
        assert np.abs(found).max() <= 1


SAME = {
    "brightness": lambda image: pixel_ops.brightness(image, 1),
    "contrast": lambda image: pixel_ops.contrast(image, 1),
    "saturation": lambda image: pixel_ops.saturation(image, 1),
    "sharpness": lambda image: pixel_ops.sharpness(image, 1),
    "hue": lambda image: pixel_ops.hue(image, 0),
    "posterize": lambda image: pixel_ops.posterize(image, 8),
    "solarize": lambda image: pixel_ops.solarize(image, 256),
    "planes": lambda image: pixel_ops.as_planes(pixel_ops.as_pixels(image)),
}


@pytest.mark.parametrize("name", SAME)
def test_the_strength_that_changes_nothing_changes_nothing(name, images):
    for image in images:
        np.testing.assert_array_equal(SAME[name](image), image)


EVERY = {
    **SAME,
    "autocontrast": pixel_ops.autocontrast,
    "equalize": pixel_ops.equalize,
    **{name: lambda image, name=name: getattr(pixel_ops, name)(image, 1.9) for name in COLOURS},
    "hue": lambda image: pixel_ops.hue(image, 0.4),
}


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (2, 2), (3, 3), (5, 1)])
def test_images_of_one_value_and_a_few_pixels_stay_within_0_to_255(name, shape):
    for value in (0, 1, 128, 255):
        image = np.full((3, *shape), value, dtype=np.uint8)
        before = image.copy()
        result = EVERY[name](image)
        assert result.shape == image.shape
        assert result.min() == result.max()
        assert (value in (0, 255)) <= (result.max() == value)  # black and white stay
        np.testing.assert_array_equal(image, before)
