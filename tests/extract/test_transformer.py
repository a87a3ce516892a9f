"""FrozenBackbone as scikit-learn has it: pipelines, searches and clones; and each picture is embedded once."""

import os
import pickle
import shutil
import subprocess
import sys
import time
from pathlib import Path

import joblib
import numpy as np
import pytest
from networks import random, save
from PIL import Image
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from headstart import FrozenBackbone, HeadstartError, LogisticRegressionPath, extract
from headstart.cache import listing as listings
from headstart.cache.store import FeatureStore
from headstart.cache.verify import verify
from headstart.errors import BackboneError, DataError, UsageError
from headstart.extract import access, embedder, known_files, pictures
from support import flip

BACKBONE = "efficientnet_lite0"
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def photos(few, tmp_path) -> Path:
    return Path(shutil.copytree(few, tmp_path / "photos"))


@pytest.fixture
def paths(photos) -> list[str]:
    return sorted(map(str, (photos / "train").rglob("*.jpg")))[6:18]  # six ants, six bees


@pytest.fixture
def y() -> np.ndarray:
    return np.repeat(["ants", "bees"], 6)


@pytest.fixture
def small(tmp_path) -> FrozenBackbone:
    """Embeds small pictures, each in a batch of its own size, so that every row is computed by the same kernels."""
    return FrozenBackbone(BACKBONE, crop=64, resize=64, batch_size=4, cache=tmp_path / "cache")


@pytest.fixture
def forwards(monkeypatch) -> list[int]:
    """How many pictures each forward pass had."""
    counts, begin = [], embedder.Embedder.begin
    monkeypatch.setattr(
        embedder.Embedder, "begin", lambda self, pixels: counts.append(len(pixels)) or begin(self, pixels)
    )
    return counts


@pytest.fixture
def reads(monkeypatch) -> list[bytes]:
    """Which files were read."""
    names, read = [], access.read_with_stat
    monkeypatch.setattr(access, "read_with_stat", lambda path: names.append(path) or read(path))
    return names


@pytest.fixture
def settled(monkeypatch) -> None:
    """Take files that were just written for old."""
    monkeypatch.setattr(listings, "RACY_NS", -(10**18))


@parametrize_with_checks([FrozenBackbone(BACKBONE)])
def test_it_is_an_estimator_of_scikit_learn(estimator, check):
    check(estimator)


def test_its_rows_are_those_of_extract_and_are_embedded_once(photos, paths, tmp_path, forwards):
    extracted = extract(photos, BACKBONE, cache=tmp_path / "cache", batch_size=4)
    assert sum(forwards) == len(extracted.paths)
    forwards.clear()
    mixed = [paths[3], paths[0], paths[3], *paths[::-1]]
    rows = FrozenBackbone(BACKBONE, cache=tmp_path / "cache").fit_transform(mixed)
    of = dict(zip(extracted.paths, extracted.X, strict=True))
    np.testing.assert_array_equal(rows, [of[path] for path in mixed])
    assert rows.dtype == np.float32
    assert not forwards


def test_what_it_embeds_extract_need_not(photos, tmp_path, forwards):
    paths = [path for path in photos.rglob("*.jpg") if "val" not in path.parts]
    FrozenBackbone(BACKBONE, cache=tmp_path / "cache").transform(paths)
    assert sum(forwards) == len(paths)
    extraction = extract(photos, BACKBONE, cache=tmp_path / "cache")
    assert (extraction.embedded, extraction.reused) == (12, len(paths))


class Column:
    """A table's column, as far as scikit-learn and others agree on one; iterated, it gives its labels."""

    def __init__(self, values):
        self.values = values

    def to_numpy(self):
        return np.array(self.values, dtype=object)

    def __iter__(self):
        return iter(range(len(self.values)))


@pytest.mark.parametrize(
    "form",
    [
        tuple, iter, np.array, Column,
        lambda paths: [Path(path) for path in paths],
        lambda paths: [os.fsencode(path) for path in paths],
        lambda paths: np.array(paths, dtype=object),
        lambda paths: np.array(paths)[:, None],
        lambda paths: np.array([Path(path) for path in paths], dtype=object)[:, None],
        lambda paths: Column([[path] for path in paths]),
        lambda paths: [os.path.relpath(path) for path in paths],
        lambda paths: (path for path in [paths[0], Path(paths[1]), os.fsencode(paths[2])]),
    ],
)  # fmt: skip
def test_pictures_come_in_many_forms(form, paths, small):
    np.testing.assert_array_equal(small.fit_transform(form(paths[:3])), small.transform(paths[:3]))


@pytest.mark.parametrize(
    ("X", "told"),
    [
        ("a.jpg", "is one picture: a.jpg; put it into a list"),
        (Path("a.jpg"), "put it into a list"),
        (Image.new("RGB", (4, 4)), "is one picture: a Image; put it into a list"),
        (np.zeros((4, 4, 3), np.uint8), "an array of uint8 of shape (4, 4, 3)"),
        (np.zeros((4, 20)), "an array of float64 of shape (4, 20)"),
        (np.array([["a", "b"]]), "of shape (1, 2)"),
        ([np.zeros((4, 4, 3))], "X[0] is an array of float64 of shape (4, 4, 3)"),
        (np.zeros((2, 4, 4, 4), np.uint8), "X[0] is an array of uint8 of shape (4, 4, 4)"),
        (["a.jpg", float("nan")], "X[1] is a float"),
        ([None], "X[0] is a NoneType"),
        (7, "is a int"),
        (None, "is a NoneType"),
    ],
)
def test_what_is_no_pictures_is_refused(X, told, small):
    with pytest.raises(UsageError) as raised:
        small.transform(X)
    assert told in str(raised.value)
    assert "\n" not in str(raised.value)


def test_nothing_gives_no_rows(small):
    assert small.transform([]).shape == (0, 1280)
    assert small.transform(np.array([])).shape == (0, 1280)


def test_a_picture_in_memory_is_what_its_file_is(paths, small, forwards):
    png = str(Path(paths[0]).with_suffix(".png"))
    with Image.open(paths[0]) as photograph:
        photograph.save(png)
        pixels = np.array(photograph)
    rows = small.transform([png, Image.fromarray(pixels), pixels, Image.open(png), Image.open(paths[0]), paths[0]])
    assert (rows == rows[0]).all()
    assert sum(forwards) == 3, "the PNG, the JPEG, and what is in memory once"
    forwards.clear()
    np.testing.assert_array_equal(small.transform(pixels[None]), rows[:1])
    assert not forwards
    pixels[:9] = 0
    assert (small.transform([pixels]) != rows[0]).any(), "other pixels are another picture"


def test_grey_arrays_are_grey_pictures(paths, small):
    with Image.open(paths[0]) as photograph:
        grey = photograph.convert("L")
    np.testing.assert_array_equal(*small.transform([grey, np.array(grey)]))


def test_pictures_in_memory_leave_no_files(paths, small, monkeypatch, tmp_path):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(pictures.tempfile, "tempdir", str(tmp_path / "temporary"))
    whole = small.transform([Image.open(path) for path in paths])
    monkeypatch.setattr(pictures, "SPOOLED_BYTES", 1_000_000)  # about two photographs
    seen, embed_files = [], pictures.embed_files
    monkeypatch.setattr(pictures, "embed_files", lambda *given: seen.append(len(given[2])) or embed_files(*given))
    small.set_params(cache=tmp_path / "other")
    np.testing.assert_array_equal(
        small.transform([Image.open(path) for path in paths + paths]), whole[[*range(12)] * 2]
    )
    assert sum(seen) == len(paths)
    assert max(seen) < 5
    assert not list((tmp_path / "temporary").iterdir())


def test_a_folder_for_temporary_files_that_cannot_be_had_is_one_line(small, monkeypatch, tmp_path):
    monkeypatch.setattr(pictures.tempfile, "tempdir", str(tmp_path / "absent"))
    with pytest.raises(HeadstartError, match=r"cannot be written \(not found\); set TMPDIR"):
        small.transform([Image.new("RGB", (40, 40))])


def bad(folder: Path, photograph: str) -> dict[str | bytes, str]:
    """Return paths of what cannot be read, and the reasons."""
    (folder / "empty.jpg").touch()
    (folder / "page.jpg").write_text("<html>not found</html>")
    (folder / "cut.jpg").write_bytes(Path(photograph).read_bytes()[:9000])
    os.mkfifo(folder / "fifo.jpg")
    (folder / "loop.jpg").symlink_to("loop.jpg")
    return {
        str(folder / "absent.jpg"): "not found",
        str(folder): "is a directory",
        str(folder / "empty.jpg"): "empty file",
        str(folder / "page.jpg"): "not an image (looks like HTML; failed download?)",
        str(folder / "cut.jpg"): "truncated",
        str(folder / "fifo.jpg"): "not a regular file",
        str(folder / "loop.jpg"): "symlink loop",
        str(folder / "nul\0.jpg"): "not found",
        "\ud800.jpg": "not found",
        b"\xff\n.jpg": "not found",
        "": "is a directory",
        str(folder / ("long" * 100)): "name too long",
    }


def test_a_picture_that_cannot_be_read_is_named(paths, small, tmp_path):
    for path, reason in bad(tmp_path, paths[0]).items():
        with pytest.raises(DataError) as raised:
            small.transform([paths[0], path])
        assert f"1 of 2 pictures cannot be read: {pictures.name_of(path, 1)} ({reason}); leave" in str(raised.value)
        assert str(raised.value).isprintable()


def test_rows_of_nan_where_asked_for(paths, small, tmp_path):
    good = small.transform(paths[:2])
    wrong = list(bad(tmp_path, paths[0]))
    rows = small.set_params(on_error="nan").transform([paths[0], *wrong, paths[1], wrong[0]])
    assert np.isnan(rows).all(axis=1).tolist() == [False] + [True] * len(wrong) + [False, True]
    np.testing.assert_array_equal(rows[[0, -2]], good)
    assert np.isnan(small.transform(wrong[:1])).all()


def test_several_that_cannot_be_read_are_counted(small):
    with pytest.raises(DataError, match=r"^5 of 5 pictures cannot be read: a \(not found\), b .*, c .* and 2 more; "):
        small.transform(list("abcde"))


@pytest.mark.parametrize("in_memory", [False, True])
def test_larger_pictures_than_wanted_cannot_be_read(in_memory, small, tmp_path):
    Image.new("RGB", (300, 200)).save(tmp_path / "large.png")
    X = [Image.open(tmp_path / "large.png") if in_memory else tmp_path / "large.png"]
    with pytest.raises(DataError, match=r"large.png\)? \(60000 pixels exceed the limit of 50000"):
        small.set_params(max_pixels=50_000).transform(X)
    assert small.set_params(max_pixels=None).transform(X).shape == (1, 1280)


def test_an_image_whose_file_is_cut_or_closed_is_named(paths, small, tmp_path):
    bad(tmp_path, paths[0])
    with pytest.raises(DataError, match=r"X\[0\] \(.*cut.jpg\) \(truncated\)"):
        small.transform([Image.open(tmp_path / "cut.jpg")])
    with Image.open(paths[0]) as image:
        pass
    with pytest.raises(DataError, match=r"X\[0\] \(.*\) \(broken JPEG"):
        small.transform([image])
    with pytest.raises(DataError, match=r"X\[1\] \(it has no pixels\)"):
        small.transform([paths[0], np.zeros((0, 5, 3), np.uint8)])


@pytest.mark.usefixtures("settled")
def test_a_file_that_has_not_changed_is_not_read_again(paths, small, reads, tmp_path):
    first = small.transform(paths)
    assert len(reads) == len(paths)
    np.testing.assert_array_equal(clone(small).transform(paths[::-1]), first[::-1])
    np.testing.assert_array_equal(small.set_params(cache=tmp_path / "other").transform(paths), first)
    assert len(reads) == 2 * len(paths), "another cache has no embeddings: they are read for their pixels"


@pytest.mark.usefixtures("settled")
def test_a_file_that_has_changed_is_another_picture(paths, small, tmp_path):
    first = small.transform(paths)
    before = Path(paths[0]).stat()
    data = Path(paths[1]).read_bytes()
    Path(paths[0]).write_bytes(data + bytes(max(0, before.st_size - len(data))))
    os.utime(paths[0], ns=(before.st_atime_ns, before.st_mtime_ns))
    np.testing.assert_array_equal(small.transform(paths), first[[1, 1, *range(2, 12)]])


def test_a_file_that_was_just_written_is_read_again(small, reads, tmp_path):
    Image.new("RGB", (30, 30), "red").save(tmp_path / "new.bmp")
    red = small.transform([tmp_path / "new.bmp"])
    Image.new("RGB", (30, 30), "blue").save(tmp_path / "new.bmp")
    assert (small.transform([tmp_path / "new.bmp"]) != red).any()
    assert len(reads) == 2


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("as_csv", [False, True])
def test_datasets_of_the_cache_know_their_files(photos, paths, tmp_path, reads, as_csv, monkeypatch):
    data = photos
    if as_csv:
        data = tmp_path / "list.csv"
        data.write_text("path,label\n" + "".join(f"{os.path.relpath(path, tmp_path)},x\n" for path in paths))
    extract(data, BACKBONE, cache=tmp_path / "cache", resize=64, crop=64)
    monkeypatch.setattr(known_files, "_read", {})  # another process
    reads.clear()
    FrozenBackbone(BACKBONE, cache=tmp_path / "cache", resize=64, crop=64).transform(paths)
    assert not reads
    with Image.open(paths[0]) as image:
        image.rotate(90).save(paths[0])
    monkeypatch.setattr(known_files, "_read", {})
    FrozenBackbone(BACKBONE, cache=tmp_path / "cache", resize=64, crop=64).transform(paths)
    assert reads == [os.fsencode(paths[0])]


@pytest.mark.usefixtures("settled")
def test_a_damaged_listing_is_no_hindrance(photos, paths, tmp_path, small, monkeypatch):
    extract(photos, BACKBONE, cache=small.cache, resize=64, crop=64, batch_size=4)
    first = small.transform(paths)
    for path in (tmp_path / "cache" / "datasets").rglob("*.h5"):
        flip(path, 700)
    monkeypatch.setattr(known_files, "_read", {})
    np.testing.assert_array_equal(small.transform(paths), first)


def test_what_is_remembered_is_bounded(paths, small, monkeypatch):
    monkeypatch.setattr(listings, "RACY_NS", -(10**18))
    monkeypatch.setattr(known_files, "_read", {})
    monkeypatch.setattr(known_files, "MOST_FILES", 5)
    for start in range(0, 12, 4):
        small.transform(paths[start : start + 4])
    assert len(known_files._read) == 4


def model(backbone: FrozenBackbone, head=None):
    return make_pipeline(backbone, StandardScaler(), head or LogisticRegression())


@pytest.mark.parametrize(
    ("form", "head"),
    [
        (list, LogisticRegressionPath(3, cv=2)),
        (lambda paths: np.array(paths, dtype=object), LogisticRegression()),
        (lambda paths: np.array(paths)[:, None], LogisticRegression()),
    ],
)
def test_cross_validation_embeds_each_picture_once(form, head, paths, y, small, forwards):
    scores = cross_val_score(model(small, head), form(paths), y, cv=3, error_score="raise")
    assert sum(forwards) == len(paths)
    plain = make_pipeline(StandardScaler(), head)
    np.testing.assert_array_equal(scores, cross_val_score(plain, small.transform(paths), y, cv=3))


def test_a_search_over_its_parameters(paths, y, small, forwards):
    grid = {"frozenbackbone__crop": [32, 64], "logisticregression__C": [0.01, 1.0]}
    search = GridSearchCV(model(small), grid, cv=3, error_score="raise").fit(paths, y)
    assert sum(forwards) == 2 * len(paths)
    each = [
        cross_val_score(
            make_pipeline(StandardScaler(), LogisticRegression(C=row["logisticregression__C"])),
            clone(small).set_params(crop=row["frozenbackbone__crop"]).transform(paths), y, cv=3,
        ).mean()
        for row in search.cv_results_["params"]
    ]  # fmt: skip
    np.testing.assert_allclose(search.cv_results_["mean_test_score"], each)
    assert search.predict(paths[:3]).shape == (3,)
    assert sum(forwards) == 2 * len(paths)


def test_processes_share_a_cache(paths, y, small):
    """Both processes begin with an empty cache, and with the estimator as it was pickled for them."""
    grid = {"frozenbackbone__backbone": [BACKBONE, "efficientnet_lite1"], "frozenbackbone__weights": ["none"]}
    splits = list(StratifiedKFold(2).split(paths, y))
    with joblib.parallel_config("loky", n_jobs=2):
        shared = GridSearchCV(model(small), grid, cv=splits, error_score="raise").fit(paths, y)
    found = verify(small.cache)
    assert not found.bad
    assert {space.backbone for space in FeatureStore(small.cache).spaces().values()} == {BACKBONE, "efficientnet_lite1"}
    alone = GridSearchCV(model(small), grid, cv=splits).fit(paths, y)
    np.testing.assert_array_equal(shared.cv_results_["mean_test_score"], alone.cv_results_["mean_test_score"])


def test_threads_share_a_cache(paths, y, small):
    with joblib.parallel_config("threading", n_jobs=2):
        threads = cross_val_score(model(small), paths, y, cv=3, error_score="raise")
    np.testing.assert_array_equal(threads, cross_val_score(model(small), paths, y, cv=3))


def test_parameters_that_are_set_later_count(paths, small):
    plain = small.transform(paths[:2])
    other = small.set_params(resize=80).transform(paths[:2])
    assert (plain != other).any()
    assert small.set_params(backbone="mobilenet_v3_small", weights="none").transform(paths[:2]).shape == (2, 576)
    assert small.n_features_out_ == 576
    np.testing.assert_array_equal(
        small.set_params(backbone=BACKBONE, weights="default", resize=64).transform(paths[:2]), plain
    )


def test_weights_that_change_are_noticed(paths, small, tmp_path):
    small.set_params(backbone="mobilenet_v3_small", weights=tmp_path / "weights.safetensors")
    rows = []
    for seed in (0, 1):
        save(random("mobilenet_v3_small", seed=seed).release().state_dict(), small.weights)
        rows.append(small.transform(paths[:2]))
    assert (rows[0] != rows[1]).any(axis=1).all()
    small.weights.unlink()
    with pytest.raises(BackboneError, match=r"weights\.safetensors"):
        small.transform(paths[:2])


def test_copies_are_equal_and_carry_no_network(paths, small):
    rows = small.transform(paths[:2])
    small.transform([Image.new("RGB", (30, 30))])  # which loads the network
    for copy in (clone(small), pickle.loads(pickle.dumps(small))):
        assert copy.get_params() == small.get_params()
        assert "_held" not in vars(copy)
        np.testing.assert_array_equal(copy.transform(paths[:2]), rows)
    assert len(pickle.dumps(small)) < 2000
    assert small._held is not None, "the estimator itself keeps its network"


def test_one_network_serves_all_calls(paths, small, monkeypatch):
    loaded, ready = [], embedder.ready
    monkeypatch.setattr(embedder, "ready", lambda *given: loaded.append(1) or ready(*given))
    monkeypatch.setattr("headstart.extract.resolve.ready", lambda *given: loaded.append(1) or ready(*given))
    for path in paths[:3]:
        small.transform([path])
    assert len(loaded) == 1


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"on_error": "skip"}, "on_error must be one of raise, nan"),
        ({"precision": "int4"}, "precision must be one of"),
        ({"batch_size": 0}, "batch_size must be a whole number"),
        ({"max_pixels": -1}, "max_pixels must be"),
        ({"mean": (0.5, 0.5)}, "mean and std take three numbers"),
        ({"std": 0.5}, "mean and std take three numbers"),
        ({"device": "abacus"}, "device must be one of"),
    ],
)
def test_wrong_parameters_are_told_by_fit(wrong, told, small):
    with pytest.raises(UsageError, match=told):
        small.set_params(**wrong).fit(["a.jpg"])


def test_an_unknown_backbone_is_one_line(paths, small):
    with pytest.raises(BackboneError, match="reznet18"):
        small.set_params(backbone="reznet18").transform(paths)


def test_columns_have_names(small):
    assert small.get_feature_names_out().tolist() == [f"frozenbackbone{column}" for column in range(1280)]
    assert small.n_features_out_ == 1280
    pipeline = make_pipeline(small, StandardScaler())
    with pytest.raises(AttributeError):  # the scaler is not fitted
        pipeline.get_feature_names_out().tolist()


def test_tables_are_scikit_learns_business(paths, small):
    try:
        import pandas
    except ImportError:
        with pytest.raises(ImportError, match="pandas"):
            small.set_output(transform="pandas").transform(paths[:2])
        return
    column = pandas.Series(paths[:2], index=[7, 3])
    table = small.set_output(transform="pandas").transform(column)
    assert table.index.tolist() == [7, 3]


def test_damaged_rows_are_embedded_again(paths, small, caplog):
    rows = small.transform(paths)
    [part] = (small.cache / "spaces").rglob("*.h5")
    flip(part, part.stat().st_size - 100)
    np.testing.assert_array_equal(small.transform(paths), rows)
    assert "is damaged" in caplog.text


def test_the_cache_stays_where_it_was_named(paths, small, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "named"))
    small.set_params(cache=None).transform(paths[:2])
    assert (tmp_path / "named" / "spaces").is_dir()
    monkeypatch.delenv("HEADSTART_CACHE")
    monkeypatch.chdir(tmp_path / "elsewhere")
    small.transform(paths[:2])
    assert (tmp_path / "elsewhere" / ".headstart" / "spaces").is_dir()


def test_a_warm_process_does_without_torch(paths, small, tmp_path):
    rows = small.transform(paths)
    program = (
        "import sys, numpy as np, headstart\n"
        f"model = headstart.FrozenBackbone({BACKBONE!r}, crop=64, resize=64, cache={str(small.cache)!r})\n"
        "np.save('rows.npy', model.fit_transform(sys.argv[1:]))\n"
        "model.get_feature_names_out()\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program, *paths], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    np.testing.assert_array_equal(np.load(tmp_path / "rows.npy"), rows)


@pytest.mark.usefixtures("settled")
def test_thousands_of_paths_take_a_moment(tmp_path, small, reads):
    """A reading, or a search through all names, for each file would be seen here."""
    data = Path(tmp_path / "picture.bmp")
    Image.new("RGB", (8, 8), "red").save(data)
    paths = []
    for number in range(3000):
        os.link(data, tmp_path / f"{number}.bmp")
        paths.append(str(tmp_path / f"{number}.bmp"))
    first = small.transform(paths)
    reads.clear()
    begin = time.process_time()
    np.testing.assert_array_equal(small.transform(paths), first)
    assert time.process_time() - begin < 1.0
    assert not reads
