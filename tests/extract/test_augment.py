"""Augmentation: from the seed alone, on every machine, and with torchvision's recipes."""

import json
import os
import pickle
import random
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from headstart.errors import UsageError
from headstart.extract import augment
from headstart.extract.augment import PRESETS, RECIPE_VERSIONS, Augment, image_seed
from headstart.extract.decode import decode
from headstart.extract.draws import Draws
from headstart.extract.preprocess import Preprocess, to_input

SMALL = Preprocess(resize=72, crop=64)
RANDOM = [preset for preset in PRESETS if preset != "none"]


def waves(high: int, wide: int) -> np.ndarray:
    """Return a deterministic picture without symmetry, (high, wide, 3) uint8."""
    y, x = np.mgrid[0:high, 0:wide]
    channels = [np.sin(x / 9) + np.cos(y / 7), np.sin((x + y) / 13), np.cos(x / 5) * np.sin(y / 11)]
    return np.stack([(channel / 2 * 127 + 128).clip(0, 255) for channel in channels], axis=-1).astype(np.uint8)


PICTURES = [waves(96, 128), waves(200, 90), waves(40, 50), waves(64, 64)]


@pytest.fixture(scope="module")
def photographs(samples) -> list[np.ndarray]:
    paths = sorted((samples / "hymenoptera").rglob("*.jpg"))[:4]
    assert len(paths) == 4
    return [decode(path.read_bytes()).pixels for path in paths]


def test_none_is_the_evaluations_preprocessing_and_flip_its_mirror_image_half_of_the_time():
    none, flip = Augment("none", SMALL), Augment("flip", SMALL)
    for pixels in PICTURES:
        wanted, _ = to_input(pixels, SMALL)
        np.testing.assert_array_equal(none(pixels, 1), wanted)
        mirrored = 0
        for seed in range(200):
            image = flip(pixels, seed)
            mirrored += not np.array_equal(image, wanted)
            assert np.array_equal(image, wanted) or np.array_equal(image, wanted[:, ::-1])
        assert 70 < mirrored < 130  # four standard deviations


@pytest.mark.parametrize("preset", RANDOM)
@pytest.mark.parametrize("threads", [1, 2, 8])
def test_the_seed_decides_in_any_order_and_number_of_threads_while_another_thread_draws(preset, threads):
    augmented = Augment(preset, SMALL)
    jobs = [(picture, seed) for picture in range(len(PICTURES)) for seed in range(12)]
    wanted = {(picture, seed): augmented(PICTURES[picture], seed) for picture, seed in jobs}
    random.Random(threads).shuffle(jobs)
    stop = threading.Event()

    def draw() -> None:
        while not stop.is_set():
            torch.rand(3)

    other = threading.Thread(target=draw)
    other.start()
    try:
        with ThreadPoolExecutor(threads) as pool:
            found = list(pool.map(lambda job: Augment(preset, SMALL)(PICTURES[job[0]], job[1]), jobs[:8]))
            found += pool.map(lambda job: augmented(PICTURES[job[0]], job[1]), jobs[8:])
    finally:
        stop.set()
        other.join()
    for job, image in zip(jobs, found, strict=True):
        np.testing.assert_array_equal(image, wanted[job])


@pytest.mark.parametrize("preset", RANDOM)
def test_different_seeds_give_different_pixels(preset):
    augmented = Augment(preset, SMALL)
    different = {augmented(PICTURES[0], seed).tobytes() for seed in range(20)}
    assert len(different) == 2 if preset == "flip" else len(different) > 15


@pytest.mark.parametrize("preset", PRESETS)
def test_nothing_that_others_draw_from_is_touched(preset):
    augmented = Augment(preset, SMALL)
    torch.manual_seed(11)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tobytes()
    for seed in range(60):  # so many that each operation of trivial has its turn
        augmented(PICTURES[seed % len(PICTURES)], seed)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.random.get_state()[1].tobytes() == before[2]


@pytest.mark.parametrize("shape", [(300, 400), (224, 224), (100, 900)])
def test_random_boxes_are_as_torchvision_draws_them(shape):
    high, wide = shape
    torch.manual_seed(0)
    transform = v2.RandomResizedCrop(224)
    blank = torch.zeros(3, high, wide, dtype=torch.uint8)
    theirs = np.array(
        [[p["top"], p["left"], p["height"], p["width"]] for p in (transform.make_params([blank]) for _ in range(3000))]
    )
    draws = Draws(1)
    ours = np.array([augment._random_box(high, wide, draws) for _ in range(3000)])
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, 0] + ours[:, 2] <= high).all()
    assert (ours[:, 1] + ours[:, 3] <= wide).all()
    area, ratio = ours[:, 2] * ours[:, 3] / (high * wide), ours[:, 3] / ours[:, 2]
    assert 0.078 < area.min() <= area.max() <= 1
    assert 0.73 < ratio.min() < 0.77
    assert 1.3 < ratio.max() < 1.37
    for column in range(4):
        # Kolmogorov's and Smirnov's distance, above this once in a thousand.
        together = np.sort(np.concatenate([ours[:, column], theirs[:, column]]))
        shares = [np.searchsorted(np.sort(side[:, column]), together, side="right") / 3000 for side in (ours, theirs)]
        assert np.abs(shares[0] - shares[1]).max() < 1.95 * (2 / 3000) ** 0.5


@pytest.mark.parametrize("shape", [(1, 64), (64, 1), (10, 100), (90, 120), (1, 1), (7, 5)])
def test_the_central_box_is_torchvisions(shape):
    ours = augment._central_box(*shape)
    assert 0 < ours.high <= shape[0]
    assert 0 < ours.wide <= shape[1]
    transform = v2.RandomResizedCrop(224, scale=(2.0, 3.0))  # no try fits
    theirs = transform.make_params([torch.zeros(3, *shape, dtype=torch.uint8)])
    assert ours == (theirs["top"], theirs["left"], theirs["height"], theirs["width"])


def test_strong_rotates_crops_mirrors_and_jitters_as_torchvision_does(photographs):
    preprocess = Preprocess(resize=256, crop=224)
    augmented = Augment("strong", preprocess)
    plain = 0
    for seed in range(24):
        pixels = photographs[seed % 4]
        draws, image = Draws(seed), torch.from_numpy(pixels).permute(2, 0, 1)
        scale = (augment.MOST_ROTATED * 224**2 / (pixels.shape[0] * pixels.shape[1])) ** 0.5
        if scale < 1:
            image = v2.functional.resize(image, [int(length * scale) for length in pixels.shape[:2]])
        turn, box = draws.uniform(-15, 15), augment._random_box(*image.shape[1:], draws)
        image = v2.functional.rotate(image, turn, v2.InterpolationMode.BILINEAR, fill=[124, 116, 104])
        image = v2.functional.resized_crop(image, *box, [224, 224])
        image = image.flip(-1) if draws.chance(0.5) else image
        if draws.chance(0.8):
            order = draws.permutation(4)
            amounts = [draws.uniform(0.6, 1.4) for _ in range(3)] + [draws.uniform(-0.1, 0.1)]
            names = ("brightness", "contrast", "saturation", "hue")
            for which in order:
                image = getattr(v2.functional, f"adjust_{names[which]}")(image, amounts[which])
        else:
            plain += 1
        away = np.abs(augmented(pixels, seed).astype(int) - image.permute(1, 2, 0).numpy())
        assert away.mean() < 2
        assert np.quantile(away, 0.98) <= 6
    assert 0 < plain < 12


@pytest.mark.parametrize("preset", ["tutorial", "crop"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest", "nearest-exact"])
def test_what_only_crops_and_resizes_is_torchvisions_to_the_bit(preset, interpolation):
    preprocess = Preprocess(resize=72, crop=64, interpolation=interpolation)
    mode = v2.InterpolationMode(interpolation)
    for seed in range(20):
        pixels, draws = PICTURES[seed % 2], Draws(seed)
        image = torch.from_numpy(pixels).unsqueeze(0).permute(0, 3, 1, 2)
        if preset == "tutorial":
            image = v2.functional.resized_crop(image, *augment._random_box(*pixels.shape[:2], draws), [64, 64], mode)
        else:
            image = v2.functional.resize(image, [72], mode)
            top, left = draws.below(image.shape[-2] - 63), draws.below(image.shape[-1] - 63)
            image = image[..., top : top + 64, left : left + 64]
        image = image.flip(-1) if draws.chance(0.5) else image
        np.testing.assert_array_equal(Augment(preset, preprocess)(pixels, seed), image[0].permute(1, 2, 0).numpy())


# SHA-256 of what each preset makes of a picture, in all ways to resize. If one changes, cached views are not what they
# were any more: the preset's number in RECIPE_VERSIONS must go up, and only then may the digest here be replaced.
DIGESTS = {
    "none": "923c930291578a47814de3e89018e12029deecd75e9cfef7a7672c9668510057",
    "flip": "b1731bb933445b1da06a9d238d3fcc1e0d3e6a4d52c08668b8b74f4270a22ecb",
    "tutorial": "d3f2259b1bc08f94da607094191d283910dd2d9d154ea681ecfb9e05d0f3141c",
    "crop": "88fb3ee4c046bd4d9e3fa678d0eeb413cce8c165c33083d49b0d86c069fae5b3",
    "strong": "aa64400c012fd691fd0f31211dba9ca99333ae3fb0b82f280ec9f512fc5a2a1e",
    "randaugment": "7902607120a7004515f9fc6abe48d6824e314faa7768823afdfedf4d8c486194",
    "trivial": "5ee87ccb1c075c48f486545248141a86a09e06eb8ad8b379338243601c899004",
}

DIGEST = """
import hashlib, itertools, json, sys
import numpy as np, torch
from headstart.extract.augment import PRESETS, Augment
from headstart.extract.preprocess import INTERPOLATIONS, Preprocess

torch.set_num_threads(int(sys.argv[1]))
y, x = np.mgrid[0:211, 0:307]
picture = np.stack([(x * x + 3 * y) // 5, (x * y) // 7 + x, (x - 2 * y) ** 2 // 31 + (x & 32)], axis=-1) % 256
picture = picture.astype(np.uint8)
found = {}
for preset in PRESETS:
    digest = hashlib.sha256()
    seeds = iter(range(96))
    for interpolation, antialias in itertools.product(INTERPOLATIONS, (True, False)):
        augment = Augment(preset, Preprocess(resize=99, crop=85, interpolation=interpolation, antialias=antialias))
        for seed in itertools.islice(seeds, 12):
            digest.update(augment(picture[: 211 - seed], seed))
    found[preset] = digest.hexdigest()
print(json.dumps([torch.backends.cpu.get_cpu_capability().lower(), torch.get_num_threads(), found]))
"""


def capabilities() -> list[str]:
    """Return what torch can be told to do without on this machine, down to nothing."""
    own, known = torch.backends.cpu.get_cpu_capability().lower(), ["default", "avx2", "avx512"]
    return known[: known.index(own) + 1] if own in known else ["default", own]


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("capability", capabilities())
def test_pixels_are_these_for_ever_whatever_the_processor_can_do(capability, threads):
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability}
    if capability == "default":  # numpy too does without what not every processor has
        environment["NPY_DISABLE_CPU_FEATURES"] = " ".join(np.show_config("dicts")["SIMD Extensions"].get("found", []))
    done = subprocess.run(
        [sys.executable, "-c", DIGEST, str(threads)], env=environment, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == [capability, threads, DIGESTS]


@pytest.fixture
def restored_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("preset", ["strong", "randaugment", "trivial"])
def test_the_number_of_torchs_threads_changes_no_pixel_and_stays(preset, restored_threads):
    augmented = Augment(preset, Preprocess(resize=None, crop=384))
    rows = []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        rows.append([augmented(waves(400, 500), seed) for seed in range(6)])
        assert torch.get_num_threads() == count
    np.testing.assert_array_equal(rows[0], rows[1])
    np.testing.assert_array_equal(rows[0], rows[2])


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("resize", [None, 20, 72, (80, 50)])
def test_pictures_of_any_shape_fill_the_crop(preset, resize):
    augmented = Augment(preset, Preprocess(resize=resize, crop=64))
    for shape in [(1, 1), (1, 5000), (5000, 1), (30, 40), (64, 64), (64, 300)]:
        white = np.full((*shape, 3), 255, dtype=np.uint8)
        image = augmented(white, image_seed(0, str(shape)))
        assert image.shape == (64, 64, 3)
        assert image.dtype == np.uint8
        assert image.flags.c_contiguous
        assert image.flags.writeable
        assert white.min() == 255
        if preset in ("none", "flip", "tutorial", "crop"):
            assert image.min() == 255  # enlarged, not padded


def test_crop_takes_every_place_that_fits():
    pixels = np.zeros((64, 67, 3), dtype=np.uint8)
    pixels[:] = np.arange(67)[None, :, None]
    augmented = Augment("crop", Preprocess(resize=None, crop=64))
    lefts = {augmented(pixels, seed)[0].min() for seed in range(60)}
    assert lefts == {0, 1, 2, 3}


def test_corners_that_a_rotation_leaves_empty_get_the_mean_of_the_network():
    preprocess = Preprocess(resize=None, crop=64, mean=(0.5, 0.25, 0.0))
    augmented = Augment("trivial", preprocess)
    white = np.full((64, 64, 3), 255, dtype=np.uint8)
    corners = {tuple(augmented(white, seed)[0, 0].tolist()) for seed in range(300)}
    assert (128, 64, 0) in corners


def test_the_result_has_memory_of_its_own_and_the_picture_may_be_read_only():
    for preset in PRESETS:
        pixels = waves(64, 64)
        pixels.flags.writeable = False
        image = Augment(preset, Preprocess(resize=None, crop=64))(pixels, 0)
        assert not np.shares_memory(image, pixels)
        image[:] = 7
        np.testing.assert_array_equal(pixels, waves(64, 64))


@pytest.mark.parametrize("preset", PRESETS)
def test_photographs_come_out_whole_and_again_the_same(preset, photographs):
    augmented = Augment(preset, Preprocess(resize=256, crop=224))
    for number, pixels in enumerate(photographs):
        image = augmented(pixels, image_seed(number))
        assert image.shape == (224, 224, 3)
        assert image.std() > 5
        np.testing.assert_array_equal(image, augmented(pixels, image_seed(number)))


def test_an_augmentation_can_be_sent_to_another_process():
    augmented = Augment("strong", SMALL)
    again = pickle.loads(pickle.dumps(augmented))
    np.testing.assert_array_equal(again(PICTURES[0], 4), augmented(PICTURES[0], 4))


def test_an_unknown_preset_names_all():
    with pytest.raises(UsageError) as caught:
        Augment("wild", SMALL)
    assert str(caught.value) == (
        "augment must be one of none, flip, tutorial, crop, strong, randaugment, trivial; got 'wild'"
    )


def test_every_preset_has_a_version():
    assert tuple(RECIPE_VERSIONS) == PRESETS
    assert all(version >= 1 for version in RECIPE_VERSIONS.values())


def test_seeds_of_different_parts_differ_and_are_these_for_ever():
    # Cached views are named by what they are drawn from, so an equal name must mean equal seeds in every release.
    assert image_seed(0, 3, b"\x01\x02") == 6897377973628782562
    assert image_seed() == 8203414616412130826
    several = [(), (1,), (-1,), ("1",), (b"1",), (1, 2), (12,), ("1", "2"), ("12",), ("1", "2", ""), (0, b""), (b"", 0)]
    seeds = {image_seed(*parts) for parts in several}
    assert len(seeds) == len(several)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert image_seed(np.int64(7)) == image_seed(7)
    with pytest.raises(TypeError):
        image_seed(0.5)


ONE_THREAD = """
import json, threading
from concurrent.futures import ThreadPoolExecutor
import torch
from headstart.extract.augment import one_thread

torch.set_num_threads(3)
with ThreadPoolExecutor(4, initializer=one_thread) as pool:
    barrier = threading.Barrier(4)
    workers = list(pool.map(lambda _: (barrier.wait(), torch.get_num_threads())[1], range(4)))
    during = torch.get_num_threads()
with ThreadPoolExecutor(1) as pool:
    later = pool.submit(torch.get_num_threads).result()
print(json.dumps([workers, during, torch.get_num_threads(), later]))
"""


def test_workers_compute_with_one_thread_each_and_all_others_as_before():
    done = subprocess.run([sys.executable, "-c", ONE_THREAD], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [[1, 1, 1, 1], 3, 3, 3]


def test_the_module_needs_no_torch_to_name_its_presets():
    code = "import sys, headstart.extract.augment; print(sorted({'torch', 'torchvision'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
