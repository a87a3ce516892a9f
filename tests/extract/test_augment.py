"""Augmentation: torchvision's own pixels, from the seed alone, whatever else draws at the same time."""

import json
import pickle
import random
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode, v2

from headstart.errors import UsageError
from headstart.extract import augment
from headstart.extract.augment import PRESETS, RECIPE_VERSIONS, Augment, image_seed
from headstart.extract.decode import decode
from headstart.extract.preprocess import Preprocess, to_input

SMALL = Preprocess(resize=72, crop=64)
RANDOM = [preset for preset in PRESETS if preset != "none"]


def waves(high: int, wide: int) -> np.ndarray:
    """Return a deterministic picture without symmetry, (high, wide, 3) uint8."""
    y, x = np.mgrid[0:high, 0:wide]
    channels = [np.sin(x / 9) + np.cos(y / 7), np.sin((x + y) / 13), np.cos(x / 5) * np.sin(y / 11)]
    return np.stack([(channel / 2 * 127 + 128).clip(0, 255) for channel in channels], axis=-1).astype(np.uint8)


PICTURES = [waves(96, 128), waves(200, 90), waves(40, 50), waves(64, 64)]


def torchvisions_own(preset: str, preprocess: Preprocess) -> v2.Compose:
    """Write each recipe out as its documentation has it."""
    crop, antialias = preprocess.crop, preprocess.antialias
    mode = InterpolationMode(preprocess.interpolation)
    bending = {
        "interpolation": {"bicubic": InterpolationMode.BILINEAR, "nearest-exact": InterpolationMode.NEAREST}.get(
            preprocess.interpolation, mode
        ),
        "fill": [124, 116, 104],
    }
    part = v2.RandomResizedCrop(crop, (0.08, 1.0), (3 / 4, 4 / 3), interpolation=mode, antialias=antialias)
    flip = v2.RandomHorizontalFlip(0.5)
    jitter = v2.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
    return v2.Compose(
        {
            "tutorial": [part, flip],
            "crop": [v2.Resize(preprocess.resize, mode, antialias=antialias), v2.RandomCrop(crop), flip],
            "strong": [v2.RandomRotation((-15, 15), **bending), part, flip, v2.RandomApply([jitter], p=0.8)],
            "randaugment": [part, flip, v2.RandAugment(2, 9, 31, **bending)],
            "trivial": [part, flip, v2.TrivialAugmentWide(31, **bending)],
        }[preset]
    )


@pytest.fixture(scope="module")
def photographs(samples) -> list[np.ndarray]:
    paths = sorted((samples / "hymenoptera").rglob("*.jpg"))[:4]
    assert len(paths) == 4
    return [decode(path.read_bytes()).pixels for path in paths]


@pytest.mark.parametrize("preset", ["tutorial", "crop", "strong", "randaugment", "trivial"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest-exact"])
def test_pixels_are_torchvisions_own_after_manual_seed(preset, interpolation):
    preprocess = Preprocess(resize=72, crop=64, interpolation=interpolation)
    ours, theirs = Augment(preset, preprocess), torchvisions_own(preset, preprocess)
    for seed in range(25):
        pixels = PICTURES[seed % 2]
        torch.manual_seed(seed)
        # A batch's channels lie last, which decides between kernels that round alike only nearly.
        wanted = theirs(torch.from_numpy(pixels).unsqueeze(0).permute(0, 3, 1, 2)[0]).permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(ours(pixels, seed), wanted)


def test_a_large_picture_is_shrunk_before_it_is_rotated():
    pixels = waves(400, 600)  # 240,000 pixels, of which 6 x 64 x 64 stay
    small = v2.functional.resize(torch.from_numpy(pixels).permute(2, 0, 1), [128, 192], antialias=True)
    torch.manual_seed(3)
    wanted = torchvisions_own("strong", SMALL)(small).permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(Augment("strong", SMALL)(pixels, 3), wanted)


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


@pytest.fixture
def restored_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("preset", ["strong", "randaugment", "trivial"])
def test_the_number_of_torchs_threads_changes_no_pixel_and_is_given_back(preset, restored_threads):
    augmented = Augment(preset, Preprocess(resize=None, crop=384))
    rows = []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        rows.append([augmented(waves(400, 500), seed) for seed in range(6)])
        assert torch.get_num_threads() == count
    np.testing.assert_array_equal(rows[0], rows[1])
    np.testing.assert_array_equal(rows[0], rows[2])


def test_one_thread_computes_whatever_torch_was_told(restored_threads, monkeypatch):
    augmented, seen = Augment("tutorial", SMALL), []
    monkeypatch.setattr(augmented, "_draw", lambda image: seen.append(torch.get_num_threads()) or 1 / 0)
    for count in (1, 3):
        torch.set_num_threads(count)
        with pytest.raises(ZeroDivisionError):
            augmented(PICTURES[0], 0)
        assert torch.get_num_threads() == count
    assert seen == [1, 1]


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


DRAWS = {
    "rand": lambda: torch.rand(5),
    "randn": lambda: torch.randn(5),
    "randint": lambda: torch.randint(1000, (5,)),
    "randint from": lambda: torch.randint(10, 1000, (5,)),
    "randperm": lambda: torch.randperm(50),
    "rand_like": lambda: torch.rand_like(torch.ones(5)),
    "uniform_": lambda: torch.empty(5).uniform_(2, 3),
    "random_": lambda: torch.empty(5).random_(),
    "normal": lambda: torch.normal(torch.zeros(5), 1.0),
    "normal_": lambda: torch.empty(5).normal_(),
    "bernoulli": lambda: torch.bernoulli(torch.full((40,), 0.5)),
    "multinomial": lambda: torch.multinomial(torch.ones(50), 5),
    "none given": lambda: torch.rand(5, generator=None),
    "dropout": lambda: torch.nn.functional.dropout(torch.ones(40)),
    "init": lambda: torch.nn.init.xavier_normal_(torch.empty(3, 4)),
    "an operation itself": lambda: torch.ops.aten.rand.default([5]),
    "inside a function of Python": lambda: torch.nn.functional.gumbel_softmax(torch.ones(5)),
}


@pytest.mark.parametrize("name", DRAWS)
def test_every_way_to_draw_follows_the_seed_and_nothing_else(name):
    torch.manual_seed(5)
    wanted = DRAWS[name]()
    torch.manual_seed(6)
    before = torch.get_rng_state()
    with augment._seeded()(5):
        found = DRAWS[name]()
    assert torch.equal(found, wanted)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_draw_that_no_seed_can_fix_is_an_error():
    with augment._seeded()(5), pytest.raises(RuntimeError, match="takes no generator"):
        torch.native_dropout(torch.ones(5), 0.5, True)


def test_a_transform_that_brings_its_own_generator_keeps_it():
    with augment._seeded()(5):
        found = torch.rand(5, generator=torch.Generator().manual_seed(8))
    assert torch.equal(found, torch.rand(5, generator=torch.Generator().manual_seed(8)))


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
