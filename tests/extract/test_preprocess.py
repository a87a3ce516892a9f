"""Resizing and cropping against torchvision's own, and what happens to images that are too small or too long."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import models
from torchvision.transforms import InterpolationMode, v2

from headstart.errors import HeadstartError, UsageError
from headstart.extract.preprocess import INTERPOLATIONS, Preprocess, to_input
from headstart.extract.sources import TorchvisionSource


def waves(high: int, wide: int) -> np.ndarray:
    """Return a smooth deterministic picture, (high, wide, 3) uint8."""
    y, x = np.mgrid[0:high, 0:wide]
    channels = [np.sin(x / 9) + np.cos(y / 7), np.sin((x + y) / 13), np.cos(x / 5) * np.sin(y / 11)]
    return np.stack([(channel / 2 * 127 + 128).clip(0, 255) for channel in channels], axis=-1).astype(np.uint8)


# Elsewhere torchvision takes the way through floats.
FAST_KERNELS = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
SIZES = [(375, 500), (500, 333), (256, 256), (301, 299), (224, 1000)]


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "vit_b_16", "efficientnet_b0", "efficientnet_b1"])
def test_equals_torchvision_v2_exactly_and_the_presets_closely(name):
    preset = models.get_model_weights(name).DEFAULT.transforms()
    preprocess = TorchvisionSource(name).preprocess()
    exact = v2.Compose(
        [v2.Resize(preset.resize_size, preset.interpolation, antialias=True), v2.CenterCrop(preset.crop_size)]
    )
    mean, std = (np.array(values, dtype=np.float32) for values in (preset.mean, preset.std))
    for size in SIZES:
        pixels = waves(*size)
        image, enlarged = to_input(pixels, preprocess)
        assert not enlarged
        wanted = exact(torch.from_numpy(pixels).permute(2, 0, 1)).permute(1, 2, 0).numpy()
        np.testing.assert_allclose(image.astype(int), wanted.astype(int), atol=0 if FAST_KERNELS else 1)
        # The preset itself, as published accuracies were measured: on a Pillow image.
        levels = (preset(Image.fromarray(pixels)).permute(1, 2, 0).numpy() * std + mean) * 255
        assert np.abs(levels - image).max() <= 2 + 1e-3
        assert np.abs(levels - image).mean() < 0.25


def test_the_preset_of_resnet18_is_read_field_by_field():
    assert TorchvisionSource("resnet18").preprocess() == Preprocess(
        resize=256,
        crop=224,
        interpolation="bilinear",
        antialias=True,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )


def test_golden_values_and_layout():
    image, _ = to_input(waves(375, 500), Preprocess(resize=256, crop=224))
    assert image.shape == (224, 224, 3)
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    # One level of room: processors without AVX2 round otherwise.
    corners = [[62, 183, 116], [111, 137, 141], [251, 182, 146]]
    np.testing.assert_allclose(image[[0, 100, 223], [0, 50, 223]].astype(int), corners, atol=1)
    assert image.mean() == pytest.approx(19133083 / image.size, abs=0.05)


@pytest.mark.parametrize("resize", [None, 100])
def test_an_image_smaller_than_the_crop_is_enlarged_not_padded(resize):
    white = np.full((90, 60, 3), 255, dtype=np.uint8)
    image, enlarged = to_input(white, Preprocess(resize=resize, crop=224))
    assert enlarged
    assert image.shape == (224, 224, 3)
    assert image.min() == 255


def test_without_resizing_a_large_image_keeps_its_pixels():
    pixels = waves(301, 402)
    image, enlarged = to_input(pixels, Preprocess(resize=None, crop=224))
    assert not enlarged
    # Half a pixel, 38.5, is rounded to the even neighbour.
    np.testing.assert_array_equal(image, pixels[38 : 38 + 224, 89 : 89 + 224])


def test_height_and_width_ignore_the_aspect():
    image, _ = to_input(waves(100, 400), Preprocess(resize=(224, 224), crop=224))
    wanted = v2.functional.resize(torch.from_numpy(waves(100, 400)).permute(2, 0, 1), [224, 224], antialias=True)
    np.testing.assert_array_equal(image, wanted.permute(1, 2, 0).numpy())


@pytest.mark.parametrize("shape", [(1, 300_000, 3), (300_000, 1, 3)])
def test_a_strip_does_not_grow_to_gigabytes(shape):
    # Resized as it is, this would be 256 x 76,800,000 pixels.
    image, enlarged = to_input(np.full(shape, 7, dtype=np.uint8), Preprocess(resize=256, crop=224))
    assert image.shape == (224, 224, 3)
    assert not enlarged
    assert np.unique(image).tolist() == [7]


def test_one_pixel_is_enough():
    image, _ = to_input(np.array([[[1, 2, 3]]], dtype=np.uint8), Preprocess(resize=256, crop=224))
    assert np.unique(image.reshape(-1, 3), axis=0).tolist() == [[1, 2, 3]]


@pytest.mark.filterwarnings("error")
def test_read_only_and_strided_pixels_are_taken():
    pixels = waves(300, 300)
    wanted, _ = to_input(pixels, Preprocess(resize=256, crop=224))
    frozen = pixels.copy()
    frozen.flags.writeable = False
    np.testing.assert_array_equal(to_input(frozen, Preprocess(resize=256, crop=224))[0], wanted)
    fortran = np.asfortranarray(pixels)
    np.testing.assert_array_equal(to_input(fortran, Preprocess(resize=256, crop=224))[0], wanted)


def test_threads_do_not_disturb_each_other():
    pictures = [waves(300 + i, 400 - i) for i in range(16)]
    preprocess = Preprocess(resize=256, crop=224, interpolation="bicubic")
    alone = [to_input(picture, preprocess)[0] for picture in pictures]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda picture: to_input(picture, preprocess)[0], pictures))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("antialias", [True, False])
def test_every_interpolation_is_torchvisions(interpolation, antialias):
    pixels = waves(211, 303)
    preprocess = Preprocess(resize=120, crop=112, interpolation=interpolation, antialias=antialias)
    mode = InterpolationMode(interpolation)
    resized = v2.functional.resize(torch.from_numpy(pixels).permute(2, 0, 1), [120], mode, antialias=antialias)
    wanted = v2.functional.center_crop(resized, [112, 112]).permute(1, 2, 0).numpy()
    image, _ = to_input(pixels, preprocess)
    np.testing.assert_allclose(image.astype(int), wanted.astype(int), atol=0 if FAST_KERNELS else 1)


def test_torchvision_is_not_imported():
    program = (
        "import sys, numpy as np; from headstart.extract.preprocess import *;"
        "to_input(np.zeros((300, 400, 3), np.uint8), Preprocess(resize=256, crop=224));"
        "print('torch' in sys.modules, 'torchvision' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "True False\n"


@pytest.mark.parametrize("resize", [None, 256, (224, 200)])
def test_survives_json(resize):
    preprocess = Preprocess(resize=resize, crop=224, interpolation="bicubic")
    assert Preprocess.from_dict(json.loads(json.dumps(preprocess.as_dict()))) == preprocess
    assert list(preprocess.as_dict()) == ["resize", "crop", "interpolation", "antialias", "mean", "std"]


def test_override_changes_what_is_given_alone():
    preprocess = Preprocess(resize=256, crop=224)
    assert preprocess.override() == preprocess
    assert preprocess.override(resize="none").resize is None
    assert preprocess.override(resize=[10, 20]).resize == (10, 20)
    changed = preprocess.override(crop=160, interpolation="bicubic", mean=[0.5, 0.5, 0.5], std=(1, 1, 1))
    assert changed == Preprocess(resize=256, crop=160, interpolation="bicubic", mean=(0.5, 0.5, 0.5), std=(1, 1, 1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crop": 0}, "crop must be 1 pixel or more; got 0"),
        ({"resize": -3}, "resize must be 1 pixel or more, or none; got -3"),
        ({"resize": "large"}, "resize must be a number of pixels, height and width, or none; got large"),
        (
            {"interpolation": "lanczos"},
            "interpolation must be one of nearest, nearest-exact, bilinear, bicubic; got 'lanczos'",
        ),
        ({"std": (1, 0, 1)}, "std must be three numbers (red,green,blue), each above 0; got 1,0,1"),
        ({"mean": (0.5,)}, "mean must be three numbers (red,green,blue), each a number; got 0.5"),
        ({"mean": (0.5, float("nan"), 0)}, "mean must be three numbers (red,green,blue), each a number; got 0.5,nan,0"),
    ],
)
def test_impossible_values_are_refused(change, message):
    with pytest.raises(UsageError) as caught:
        Preprocess(resize=256, crop=224).override(**change)
    assert isinstance(caught.value, HeadstartError)
    assert str(caught.value) == message
