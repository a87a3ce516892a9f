"""Numbered views: what each looks like depends on its key alone, and what is computed is what was lacking."""

import hashlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from command_line import BACKBONE
from PIL import Image

import headstart as package
from headstart.cache.info import info
from headstart.cache.listing import SPLITS
from headstart.cache.part import PLAIN_RECIPE
from headstart.cache.store import FeatureStore
from headstart.errors import DataError, UsageError
from headstart.extract import views
from headstart.extract.audit import verify
from headstart.extract.augment import PRESETS
from headstart.extract.batches import Batches
from headstart.extract.embedder import Embedder
from headstart.extract.job import plan_extract
from headstart.extract.preprocess import Preprocess, to_input
from headstart.extract.reader import Ahead, Item, Reader
from headstart.extract.views import MOST_VIEWS, PLAIN, Views, known_recipes, view_seed
from support import random_rows

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"resize": 40, "crop": 32}
DRAWN = [preset for preset in PRESETS if preset != "none"]


def extract(data, cache, count=4, augment=None, **options):
    return package.extract(
        data, BACKBONE, cache=cache, views=count, augment=augment, **{**SMALL, "batch_size": 16, **options}
    )


def all_views(done) -> np.ndarray:
    """Return the rows of all views of all images, (n, V, D), in the order of their digests."""
    order = np.lexsort(done.digest.T)
    return done.of_views(np.arange(len(done.rows))[order])


# What a view is


@pytest.fixture
def pixels(monkeypatch):
    """SHA-256 of what networks are given from now on, by digest and view, and how often each."""
    seen: dict[tuple[bytes, int], list[str]] = {}
    take = Batches.take

    def note(self, item, view, pixels):
        seen.setdefault((item.digest, view), []).append(hashlib.sha256(pixels).hexdigest())
        take(self, item, view, pixels)

    monkeypatch.setattr(Batches, "take", note)
    return seen


def reversed_copy(few: Path, folder: Path) -> Path:
    """Copy photographs so that they are listed the other way round, under other names, and in one split."""
    for place, path in enumerate(sorted(few.rglob("*.jpg"), reverse=True)):
        target = folder / path.parent.name / f"{place:03d}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    return folder


@pytest.mark.parametrize("augment", ["tutorial", "strong"])
def test_pixels_and_rows_depend_on_the_key_alone(few, tmp_path, pixels, augment):
    whole = extract(few, tmp_path / "whole", augment=augment)
    wanted, rows = dict(pixels), all_views(whole)
    assert len(wanted) == 36 * 4 and rows.shape == (36, 4, 1280)
    assert len({one for several in wanted.values() for one in several}) == 36 * 4, "views differ"

    for cache, data, options in (
        ("other order", reversed_copy(few, tmp_path / "reversed"), {}),
        ("one worker", few, {"workers": 1}),
        ("five workers", few, {"workers": 5}),
    ):
        pixels.clear()
        again = extract(data, tmp_path / cache, augment=augment, **options)
        assert pixels == wanted, cache
        np.testing.assert_array_equal(all_views(again), rows, err_msg=cache)

    pixels.clear()
    other = extract(few, tmp_path / "batches", augment=augment, batch_size=None)
    assert pixels == wanted
    np.testing.assert_allclose(all_views(other), rows, rtol=0, atol=1e-5 * np.abs(rows).max())


def test_views_that_come_one_run_after_another_are_those_of_one_run(few, tmp_path, pixels):
    whole = extract(few, tmp_path / "whole", augment="crop")
    wanted = dict(pixels)
    pixels.clear()
    counts = []
    for count, augment in ((1, None), (2, "crop"), (4, "crop")):
        grown = extract(few, tmp_path / "grown", count, augment)
        counts.append((grown.embedded, grown.reused))
    assert counts == [(36, 0), (36, 36), (72, 72)]
    assert pixels == wanted, "each view once"
    np.testing.assert_array_equal(all_views(grown), all_views(whole))


def test_two_processes_give_the_rows_of_one(samples, tmp_path):
    data = samples / "hotdog"
    one, two = (
        extract(data, tmp_path / str(count), 3, "trivial", limit=130, processes=count, views_split="train")
        for count in (1, 2)
    )
    for done in (one, two):
        assert (done.embedded, len(done.store.index(done.space.id)[0])) == (390 - 2 * 26, 390 - 2 * 26)
    train = np.flatnonzero(one.split == "train")
    assert (one.digest == two.digest).all() and len(train) == 104
    np.testing.assert_array_equal(one.of_views(train), two.of_views(train))
    np.testing.assert_array_equal(one.X, two.X)


# SHA-256 of views 1 and 2 of one picture. If one changes, the preset's number in RECIPE_VERSIONS must have gone up.
GOLDEN = {
    "flip": [
        "d5b7b4637a47d95ca56138f43e8ce35e29257f0c56343b7c7fd45e34e03263e1",
        "d5b7b4637a47d95ca56138f43e8ce35e29257f0c56343b7c7fd45e34e03263e1",
    ],
    "tutorial": [
        "667fb992febbcf23b970e5386ef5bda5436b94a407f636b3effd9830a7cee412",
        "f9a4c05fc2e4f78193e8db5c5f73dfe88c9b65616658220b8fe6586cf9413fa7",
    ],
    "crop": [
        "89c190739ecd0d3e33c3da3723c051361e44f6ad49f820ab5e619efeb326e653",
        "20ca836ea076c0e78a915c06e1e5420c3e9b6844071764ce60feca56aa597837",
    ],
    "strong": [
        "543a4df88bb19a2d71a7eef4cfaff12bdc703e5bc206f95ad9cb7257939e1b39",
        "cf07c7064f12c74a90eeba3f45ea1b5f3a460198239b03b77ae86fed4e18997f",
    ],
    "randaugment": [
        "cbbf859e557423e7e2d6cc20d90c8460605411e8521253319138ae511a0816eb",
        "0e8a4176f577e1be25d4cb71cc5b773a228a1ad0328c1ceddbf85f77b71b0551",
    ],
    "trivial": [
        "fdc910eaed4414e2abfb66caec7955847cdf5b50cf2d7622060a67769d33c836",
        "c6719cedb4f0620707f7bc0f720f94ea0339f67c9aea50ac43790e51785856da",
    ],
}

MAKE = """
import hashlib, json, sys
import numpy as np, torch
from headstart.extract.preprocess import Preprocess
from headstart.extract.views import known_recipes

y, x = np.mgrid[0:240, 0:320]
picture = np.stack([(x * x + 3 * y) // 5, (x * y) // 7 + x, (x - 2 * y) ** 2 // 31 + (x & 32)], axis=-1) % 256
picture, preprocess = picture.astype(np.uint8), Preprocess(resize=72, crop=64)
digest = hashlib.sha256(picture).digest()
found = {
    views.augment: [hashlib.sha256(views.maker(preprocess)(picture, digest, view)[0]).hexdigest() for view in (1, 2)]
    for recipe, views in known_recipes().items() if recipe
}
print(json.dumps([torch.backends.cpu.get_cpu_capability().lower(), found]))
"""


def test_views_are_these_for_ever_whatever_the_processor_can_do(capsys):
    exec(MAKE, {})  # what this processor can do
    here = json.loads(capsys.readouterr().out)
    done = subprocess.run(
        [sys.executable, "-c", MAKE],
        env={**os.environ, "ATEN_CPU_CAPABILITY": "default"},
        capture_output=True,
        text=True,
        check=True,
    )
    there = json.loads(done.stdout)
    assert there == ["default", GOLDEN]
    assert here[1] == GOLDEN


def test_recipes_and_seeds_are_these_for_ever():
    digest = bytes(range(32))
    assert {views.augment: recipe for recipe, views in known_recipes().items()} == {
        "none": PLAIN_RECIPE,
        "flip": 12475532727464956667,
        "tutorial": 15506057093778840370,
        "crop": 15150238572614369593,
        "strong": 7410761946600315302,
        "randaugment": 3885041845886426794,
        "trivial": 6240016226404484959,
    }
    assert view_seed(digest, 15506057093778840370, 3) == 6553760194598926255


def test_the_seed_differs_for_each_digest_recipe_and_view():
    digests = [row.tobytes() for row in random_rows(20)[0]]
    recipes = [recipe for recipe in known_recipes() if recipe]
    seeds = {view_seed(*key) for key in itertools.product(digests, recipes, range(1, 50))}
    assert len(seeds) == 20 * 6 * 49


def test_the_page_about_the_format_says_how_recipe_and_seed_are_computed():
    page = (Path(package.__file__).parent / "docs" / "cache-format.md").read_text()
    (program,) = [code for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "view_seed" in code]
    said: dict = {}
    exec(program, said)
    recipe = Views(2, "tutorial").recipe
    assert said["recipe"] == recipe and str(recipe) in page
    for view in (1, 7, 300):
        digest = os.urandom(32)
        assert said["view_seed"](digest, recipe, view) == view_seed(digest, recipe, view)


def test_view_0_is_the_plain_crop_of_every_recipe(few):
    path = next(few.rglob("*.jpg"))
    picture = np.asarray(Image.open(path).convert("RGB"))
    preprocess = Preprocess(**SMALL)
    for preset in DRAWN:
        image, _ = Views(2, preset).maker(preprocess)(picture, b"d" * 32, 0)
        np.testing.assert_array_equal(image, to_input(picture, preprocess)[0])
        keys = Views(3, preset).keys(random_rows(2)[0])
        assert keys.view.tolist() == [0, 1, 2] * 2
        assert keys.recipe.tolist() == [PLAIN_RECIPE, Views(2, preset).recipe, Views(3, preset).recipe] * 2


# What is computed


@pytest.fixture
def decoded(monkeypatch) -> list[bytes]:
    """Digests of the files that were decoded from now on."""
    counted, decode = [], Reader._decode
    monkeypatch.setattr(
        Reader, "_decode", lambda self, digest, data: counted.append(digest) or decode(self, digest, data)
    )
    return counted


def test_more_views_cost_only_what_is_new_and_one_decoding_of_each_image(few, tmp_path, pixels, decoded):
    plain = extract(few, tmp_path, 1)
    assert (plain.embedded, len(decoded)) == (36, 36)
    pixels.clear()
    decoded.clear()
    more = extract(few, tmp_path, 4)
    assert (more.embedded, more.reused, more.passed) == (36 * 3, 36, 36)
    assert len(decoded) == len(set(decoded)) == 36
    assert {view for _, view in pixels} == {1, 2, 3}
    decoded.clear()
    pixels.clear()
    other = extract(few, tmp_path, 3, "flip")
    assert (other.embedded, other.reused, len(decoded)) == (36 * 2, 36, 36)
    assert {view for _, view in pixels} == {1, 2}
    np.testing.assert_array_equal(all_views(other)[:, 0], all_views(more)[:, 0])
    decoded.clear()
    for again in (extract(few, tmp_path, 4), extract(few, tmp_path, 2), extract(few, tmp_path, 3, "flip")):
        assert (again.embedded, again.device, decoded) == (0, "none", [])


def test_each_image_is_decoded_once_for_several_layers_and_backbones(few, tmp_path, decoded):
    extract(few, tmp_path, 2, layer="_blocks.2")
    decoded.clear()
    done = package.extract(
        few, [BACKBONE, "mobilenet_v3_small"], layer=None, weights="none", cache=tmp_path, views=3, **SMALL
    )
    assert len(decoded) == 36
    assert done.summary()["spaces"][0]["embedded"] == done.summary()["spaces"][1]["embedded"] == 108
    decoded.clear()
    layers = extract(few, tmp_path, 3, layer=["_blocks.2", "fc.input"])
    assert len(decoded) == 36
    assert [space["embedded"] for space in layers.summary()["spaces"]] == [36, 108]


def listed(tmp_path: Path, lines: list[tuple[Path, str, str]]) -> Path:
    """Write a CSV of paths, labels and splits, in this order."""
    file = tmp_path / "list.csv"
    file.write_text("path,label,split\n" + "".join(f"{path},{label},{split}\n" for path, label, split in lines))
    return file


@pytest.fixture
def oddities(few, tmp_path) -> Path:
    """A CSV of 24 photographs in train and 12 in val, with broken files and copies within and between splits."""
    lines = [(path, path.parent.name, path.parent.parent.name) for path in sorted(few.rglob("*.jpg"))]
    for name in ("broken", "broken too"):
        (tmp_path / f"{name}.jpg").write_bytes(b"\xff\xd8\xff no picture")
    train = [line for line in lines if line[2] == "train"]
    val = [line for line in lines if line[2] == "val"]
    first = [copied(train[3], tmp_path / "a.jpg", "val"), (tmp_path / "broken.jpg", "ants", "val")]
    last = [
        copied(val[2], tmp_path / "b.jpg", "train"),
        copied(train[5], tmp_path / "c.jpg", "train"),
        copied(train[5], tmp_path / "d.jpg", "val"),
        (tmp_path / "broken too.jpg", "bees", "train"),
    ]
    return listed(tmp_path, [*first, *val, *train, *last])


def copied(line: tuple[Path, str, str], to: Path, split: str) -> tuple[Path, str, str]:
    shutil.copy(line[0], to)
    return to, line[1], split


@pytest.mark.parametrize("split", ["all", "train", "val"])
def test_counts_add_up_with_broken_images_and_copies(oddities, tmp_path, split, monkeypatch):
    monkeypatch.setattr("headstart.cache.listing.RACY_NS", -(10**12))  # files of this moment are old enough
    options = {"layer": ["_blocks.2", "fc.input"], "views_split": split}
    # 42 images, 36 different ones that can be read: 24 of train, of which 2 are in val too, 12 of val, of which 1 in train.
    in_train, in_val = 24 + 3, 12 + 2
    assert in_train + in_val + 1 == 42
    different = {"all": 36, "train": 24 + 1, "val": 12 + 2}[split]
    many = {"all": 42, "train": 24 + 3, "val": 12 + 3}[split]
    for cache, before in (("new", 0), ("grown", 36)):
        if before:
            extract(oddities, tmp_path / cache, 1, layer=options["layer"])
        foreseen = plan_extract(oddities, BACKBONE, cache=tmp_path / cache, views=3, augment="flip", **options, **SMALL)
        done = extract(oddities, tmp_path / cache, 3, "flip", **options)
        found = done.summary()
        embedded = 36 - before + 2 * different
        assert [(space["embedded"], space["reused"]) for space in found["spaces"]] == [
            (embedded, 42 + 2 * many - found["failed"] - embedded)
        ] * 2
        assert found["failed"] == {"all": 6, "train": 4, "val": 4}[split]
        assert (found["images"], len(found["failures"])) == (42, 2)
        assert (found["views"], found["augment"], found["views_split"]) == (3, "flip", split)
        if before:
            assert (foreseen.missing, foreseen.to_read, foreseen.failed) == (found["embedded"], 0, 2)
            assert foreseen.reused == found["reused"]
        else:
            assert (foreseen.missing, foreseen.to_read, foreseen.reused, foreseen.failed) == (0, 42, 0, 0)
        again = plan_extract(oddities, BACKBONE, cache=tmp_path / cache, views=3, augment="flip", **options, **SMALL)
        assert (again.missing, again.to_read, again.failed) == (0, 0, 2)
        assert again.reused == found["reused"] + found["embedded"]
        index, _ = FeatureStore(tmp_path / cache).index(done.space.id)
        assert len(index) == 36 + 2 * different
        mine = np.flatnonzero(done.split == split) if split != "all" else np.arange(40)
        assert done.of_views(mine).shape[:2] == (len(mine), 3), "copies have all views that their split has"


def test_an_image_without_a_split_counts_as_train():
    split = np.array([SPLITS.index(name) for name in ("", "train", "val", "test")])
    counts = {name: Views(5, "flip", name).counts(split).tolist() for name in ("all", "train", "val", "test")}
    assert counts == {"all": [5, 5, 5, 5], "train": [5, 5, 1, 1], "val": [1, 1, 5, 1], "test": [1, 1, 1, 5]}


# What goes wrong


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ((0, None, None), "views must be a whole number from 1 to 1,000; got 0"),
        ((MOST_VIEWS + 1, None, None), "views must be a whole number from 1 to 1,000; got 1001"),
        ((True, None, None), "views must be a whole number"),
        ((4, "none", None), "views of the preset none would all be the same; choose another with --augment"),
        ((4, "wild", None), "augment must be one of none, flip"),
        ((None, "flip", None), "one view is the plain crop, and --augment flip has no effect: pass --views 2"),
        ((None, None, "train"), "every image has one view, and --views-split train has no effect: pass --views 2"),
        ((4, None, "dev"), "views-split must be one of all, train, val, test; got 'dev'"),
    ],
)
def test_views_that_mean_nothing_are_refused(asked, said):
    with pytest.raises(UsageError) as caught:
        Views.asked(*asked)
    assert str(caught.value).startswith(said)


def test_what_options_ask_for():
    assert Views.asked(None, None) == Views.asked(1, None) == Views.asked(1, "none") == PLAIN
    assert Views.asked(3, None) == Views(3, "tutorial")
    for asked in (PLAIN, Views(3, "flip"), Views(2, "strong", "train")):
        assert Views.of_request(asked.request()) == asked
    assert Views.of_request({"views": 4, "augment": "of a later version"}) == PLAIN


def test_views_of_pictures_without_labels_or_of_a_split_that_is_not_there_are_refused(few, tmp_path):
    (tmp_path / "flat").mkdir()
    shutil.copy(next(few.rglob("*.jpg")), tmp_path / "flat")
    with pytest.raises(DataError, match="has no labels, and views serve to train a head"):
        extract(tmp_path / "flat", tmp_path / "cache")
    with pytest.raises(DataError, match="has no image of the split test, so all would have the plain crop alone"):
        extract(few, tmp_path / "cache", views_split="test")
    assert not (tmp_path / "cache").exists(), "nothing was begun"


@pytest.fixture
def spoilt(monkeypatch):
    """Choose a view of an image, by digest, whose embedding is not finite."""
    chosen: set[tuple[bytes, int]] = set()
    make, forward = views.Maker.__call__, Embedder._forward

    def made(self, pixels, digest, view):
        image, enlarged = make(self, pixels, digest, view)
        if (digest, view) in chosen:
            image = np.full_like(image, 255)
        return image, enlarged

    def spoil(self, pixels):
        rows = forward(self, pixels).clone()
        rows[[bool(one.min() == 255) for one in pixels], 3] = np.nan
        return rows

    monkeypatch.setattr(views.Maker, "__call__", made)
    monkeypatch.setattr(Embedder, "_forward", spoil)
    return chosen


@pytest.mark.parametrize("batch_size", [2, 500])
@pytest.mark.parametrize("val_first", [True, False])
def test_a_view_that_is_not_finite_fails_the_images_that_have_it(few, tmp_path, spoilt, val_first, batch_size):
    lines = [(path, path.parent.name, "train") for path in sorted(few.rglob("train/*/*.jpg"))]
    victim, copies = lines[7][0], [tmp_path / name for name in ("in val.jpg", "in train.jpg")]
    for copy in copies:
        shutil.copy(victim, copy)
    outside = [(copies[0], "ants", "val")]
    lines.append((copies[1], "ants", "train"))
    data = listed(tmp_path, outside + lines if val_first else lines + outside)
    spoilt.update((hashlib.sha256(victim.read_bytes()).digest(), view) for view in (2, 3))
    options = {"views_split": "train", "batch_size": batch_size}

    done = extract(data, tmp_path / "cache", 4, **options)
    reason = "its embedding is not finite, that of view 2"
    assert sorted(done.failures) == sorted((str(path), reason) for path in (victim, copies[1]))
    assert done.summary()["failed"] == 8 and (done.embedded, done.reused) == (23 * 4 + 1, 0)
    assert str(copies[0]) in done.paths, "it has the plain crop alone, which is good"
    again = extract(data, tmp_path / "cache", 4, **options)
    assert again.failures == done.failures and again.embedded == 0, "nothing has changed"

    fewer = extract(data, tmp_path / "cache", 2, **options)
    assert (fewer.failures, fewer.embedded) == ([], 0), "of other views, which the run before has stored"
    assert len(fewer.of_views(fewer.split == "train")) == 25
    spoilt.clear()
    mended = extract(data, tmp_path / "cache", 4, **options)
    assert (mended.failures, mended.embedded) == ([], 2)


class Counting:
    """A reader that counts the inputs of networks that are read ahead."""

    def __init__(self, count: int) -> None:
        self.count, self.held = count, 0

    def read(self, number: int, name: bytes) -> Item:
        self.held += self.count
        return Item(number, views=self.count)


@pytest.mark.parametrize("workers", [1, 2, 16])
@pytest.mark.parametrize("count", [1, 2, 4, 8, 16, 100])
def test_what_is_read_ahead_does_not_grow_with_the_number_of_views(count, workers):
    bound = max(4 * workers + 64, 2 * workers * count)  # the latter so that each thread has a picture to work on
    source = Counting(count)
    with ThreadPoolExecutor(workers) as pool:
        items = Ahead(pool, source, [b""] * 500, np.arange(500), workers, quiet=64, views=count)
        for _ in items:
            source.held -= count
            items.wait(60)
            assert source.held <= bound


# What looks after them


def test_a_sample_draws_views_and_names_one_that_is_wrong(few, tmp_path):
    cache = tmp_path / "cache"
    done = extract(few, cache, 3, "flip")
    assert verify(cache, 36).bad == []
    store, keys = FeatureStore(cache), Views(3, "flip").keys(done.digest)
    rows = store.gather(done.space.id, keys)
    rows[keys.view == 2] *= 1.01
    for path in store.parts(done.space.id):
        path.unlink()
    with store.writer(done.space, recipes=Views(3, "flip").recipes()) as writer:
        writer.add(keys, rows)
    found = verify(cache, 36)
    assert (found.sampled, found.status) == (36, 1)
    assert 0 < len(found.bad) < 36, "of three views each is drawn now and then"
    pattern = rf"the row of view 2 \(flip\) of {re.escape(str(few))}/\S+ differs by (9.9e-03|1.0e-02) from its image"
    assert [error for _, error in found.bad if not re.fullmatch(pattern, error)] == []
    assert len({len(verify(cache, 36, seed=seed).bad) for seed in range(3)}) > 1, "other views with another seed"


@pytest.fixture
def later(monkeypatch):
    """The version of this program that draws the preset flip in another way."""
    views._recipe_id.cache_clear()
    monkeypatch.setitem(views.RECIPE_VERSIONS, "flip", 99)
    yield
    monkeypatch.undo()
    views._recipe_id.cache_clear()


def test_views_of_another_version_are_shown_and_passed_over(few, tmp_path, request, caplog):
    extract(few, tmp_path, 3, "flip")
    extract(few, tmp_path, 2, "crop", limit=10)
    ((flip, crop),) = [sorted(space.views, key=lambda one: -one.rows) for space in info(tmp_path).spaces]
    request.getfixturevalue("later")
    caplog.clear()
    assert verify(tmp_path, 10).bad == []
    said = [record.getMessage() for record in caplog.records if "not sampled" in record.getMessage()]
    assert said == [f"views of flip (version {flip.version}) are not sampled: this version does not draw them"]
    assert (flip.augment, flip.images, flip.views, flip.rows) == ("flip", 36, 3, 72)
    assert (crop.augment, crop.images, crop.views, crop.rows) == ("crop", 10, 2, 10)
    new = extract(few, tmp_path, 3, "flip")
    assert (new.embedded, new.reused) == (72, 36)
    assert [(one.augment, one.version, one.rows) for one in info(tmp_path).spaces[0].views] == [
        ("crop", crop.version, 10), ("flip", flip.version, 72), ("flip", 99, 72)
    ]  # fmt: skip
