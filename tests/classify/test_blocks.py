"""Heads on rows that are never in memory at once: the same fits, scores and models, and the memory that was promised."""

import logging
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cached_datasets import classes_made, labels_made

import headstart
from headstart.cache.part import Keys
from headstart.cache.store import FeatureStore
from headstart.classify import block_fit, budget, scratch, shard
from headstart.classify.block_fit import BlockFit, BlockPlan
from headstart.classify.block_scores import ScoredRows, scores_in_blocks
from headstart.classify.budget import parse_memory
from headstart.classify.dataset import labelled_set
from headstart.classify.fit import InMemoryFit
from headstart.classify.heads import make_head
from headstart.classify.model import SavedModel
from headstart.classify.network import Network
from headstart.classify.preparation import Preparation
from headstart.classify.scores import scores_of
from headstart.classify.scratch import ScratchError, Table
from headstart.classify.several import labels_head
from headstart.errors import CacheMissError, TrainingError, UsageError
from headstart.extract.features import Features
from headstart.extract.views import Views
from support import flip

LIMIT = 300_000_000


@pytest.fixture
def _small_blocks(monkeypatch):
    """Let rows lie in a scratch file, in blocks of a few, however few there are; in parts of a few, too."""
    monkeypatch.setattr(shard, "evaluation_bytes", lambda *_: 1 << 50)
    monkeypatch.setattr(budget, "_SMALLEST_BLOCK", 20_000)
    monkeypatch.setenv("HEADSTART_PART_SECONDS", "1000")


def both_ways(data, kind, **options):
    """Return a head fitted in memory and one fitted by blocks, and the model and the scores of each."""
    found = []
    for way in (InMemoryFit, BlockFit):
        head = labels_head(kind, **options) if data.Y is not None else make_head(kind, **options)
        more = (BlockPlan(LIMIT),) if way is BlockFit else ()
        with way(data, head, *more, 0) as trained:
            model = model_of(data, trained)
            found.append((trained.head, model, trained.measured(model), trained.told()))
    return found


def model_of(data, trained):
    several = data.Y is not None
    return SavedModel(
        kind=trained.head.kind,
        classes=data.features.classes,
        spaces=[space.as_dict() for space in data.features.spaces],
        network=trained.head.network_,
        temperature=trained.head.temperature_,
        multi_label=several,
        thresholds=trained.head.thresholds_.tolist() if several else [],
        true_probabilities=trained.true_probabilities(),
        novelty=trained.novelty,
    )


def assert_close(one, other, tolerance, where=""):
    """Compare results as JSON has them, numbers to a tolerance."""
    assert type(one) is type(other) or {type(one), type(other)} <= {int, float}, where
    if isinstance(one, dict):
        assert set(one) == set(other), where
        for name in one:
            assert_close(one[name], other[name], tolerance, f"{where}/{name}")
    elif isinstance(one, list):
        assert len(one) == len(other), where
        for number, pair in enumerate(zip(one, other, strict=True)):
            assert_close(*pair, tolerance, f"{where}/{number}")
    elif isinstance(one, float):
        assert abs(one - other) <= tolerance, (where, one, other)
    else:
        assert one == other, where


def in_parts(made, cache: Path, columns: slice = slice(None), backbone: str = "resnet18", views: Views | None = None):
    """Write embeddings into several parts, in an order that is nobody's; return the space."""
    space = replace(made.space, dim=len(range(*columns.indices(made.X.shape[1]))), backbone=backbone)
    store = FeatureStore(cache)
    store.prepare(space)
    rng = np.random.default_rng(len(backbone))
    rows = made.X[:, columns] if views is None else viewed(made.X, views.count)
    keys = Keys.plain(made.digest) if views is None else views.keys(made.digest)
    for some in np.array_split(rng.permutation(len(keys)), 5):
        with store.writer(space, recipes={} if views is None else views.recipes()) as writer:
            writer.add(keys[some], rows[some])
    return space


def viewed(X, count):
    rng = np.random.default_rng(5)
    noise = rng.standard_normal((len(X), count, X.shape[1]), dtype=np.float32)
    noise[:, 0] = 0
    return (X[:, None] + 0.5 * noise).reshape(-1, X.shape[1])


def dataset(made, cache, spaces=None, views=None, val_fraction=0.2):
    spaces = (in_parts(made, cache, views=views),) if spaces is None else spaces
    more = {} if views is None else {"views": views}
    return labelled_set(Features(made.listing(), spaces, FeatureStore(cache), **more), val_fraction)


CASES = {
    "softmax": (lambda: classes_made(1500, 4, 24, spread=5.0), "logistic", {}),
    "softmax, classes alike": (lambda: classes_made(1500, 4, 24, spread=5.0), "logistic", {"class_weight": "balanced"}),
    "two classes": (lambda: classes_made(1500, 2, 16, spread=5.0), "logistic", {}),
    "one C without folds": (lambda: classes_made(1500, 4, 24, spread=5.0), "logistic", {"C": 0.05, "cv": 1}),
    "labels": (lambda: labels_made(1500, 4, 16), "logistic", {}),
    "labels alike": (lambda: labels_made(1500, 4, 16), "logistic", {"class_weight": "balanced", "cv": 3}),
    "components": (lambda: classes_made(1500, 4, 24, spread=5.0), "logistic", {"pca": 0.9, "l2_norm": True}),
    "means": (lambda: classes_made(1500, 4, 24, spread=5.0), "ncm", {}),
    "means without folds": (lambda: classes_made(1500, 2, 24, spread=5.0), "ncm", {"cv": 1}),
}


@pytest.mark.usefixtures("_small_blocks")
@pytest.mark.parametrize("case", CASES)
def test_blocks_lead_to_the_same_head_scores_and_model(case, tmp_path):
    make, kind, options = CASES[case]
    made = make()
    data = dataset(made, tmp_path / "cache")
    (one, model, scores, _), (other, model_2, scores_2, told) = both_ways(data, kind, **options)
    assert told.blocks > 3
    assert told.put_aside == 4 * int((data.split == "train").sum()) * (one.preparation_.n_outputs)
    np.testing.assert_allclose(one.predict_proba(made.X), other.predict_proba(made.X), atol=1e-5)
    assert_close(scores, scores_2, 1e-4)
    assert one.choice() == other.choice()
    np.testing.assert_allclose(model.novelty.distances, model_2.novelty.distances, rtol=1e-6)
    np.testing.assert_allclose(model.true_probabilities, model_2.true_probabilities, atol=1e-5)


@pytest.mark.usefixtures("_small_blocks")
@pytest.mark.parametrize("kind", ["logistic", "ncm"])
def test_views_count_as_one_image_by_blocks_too(kind, tmp_path):
    made = classes_made(900, 3, 16, spread=5.0)
    data = dataset(made, tmp_path / "cache", views=Views(3, "flip"))
    (one, _, scores, _), (other, _, scores_2, told) = both_ways(data, kind)
    assert told.rows_bytes == 4 * 3 * 16 * int((data.split == "train").sum())
    np.testing.assert_allclose(one.predict_proba(made.X), other.predict_proba(made.X), atol=1e-5)
    assert_close(scores, scores_2, 1e-4)


@pytest.mark.usefixtures("_small_blocks")
@pytest.mark.parametrize("options", [{}, {"l2_norm": True, "pca": 10}])
def test_spaces_side_by_side_are_joined_row_by_row(options, tmp_path):
    made = classes_made(1200, 4, 24, spread=5.0)
    spaces = [
        in_parts(made, tmp_path / "cache", part, name) for part, name in ((slice(0, 8), "a"), (slice(8, 24), "bb"))
    ]
    data = dataset(made, tmp_path / "cache", tuple(spaces))
    (one, _, scores, _), (other, _, scores_2, _) = both_ways(data, "logistic", **options)
    np.testing.assert_allclose(one.predict_proba(made.X), other.predict_proba(made.X), atol=1e-5)
    assert_close(scores, scores_2, 1e-4)


@pytest.mark.usefixtures("_small_blocks")
def test_real_photographs_reach_the_same_objective(photographs, tmp_path):
    found = photographs["hymenoptera"]
    rng = np.random.default_rng(0)
    taken = rng.integers(0, len(found.train), 3000)
    made = replace(
        classes_made(3000, 2, 8),
        X=(found.train[taken] + 0.5 * rng.standard_normal((3000, 1280))).astype(np.float32)[:, ::4],
        y=found.y[taken],
    )
    data = dataset(made, tmp_path / "cache")
    (one, *_), (other, *_) = both_ways(data, "logistic", C=0.01, cv=1)
    train = data.split == "train"
    values = [objective(head, made.X[train], data.y[train], 0.01) for head in (one, other)]
    assert abs(values[1] / values[0] - 1) < 1e-6


def objective(head, X, y, C):
    logits = head.decision_function(X)
    weight = head.network_.weights[0].astype(np.float64)
    # Of two classes the rows are half of one difference, with either sign.
    square = 2 * np.square(weight).sum() if len(weight) == 2 else np.square(weight).sum()
    losses = np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(y)), y]
    return float(C * losses.sum() + 0.5 * square)


@pytest.mark.usefixtures("_small_blocks")
def test_a_linear_head_from_blocks_is_as_good_and_repeats_itself(tmp_path):
    made = classes_made(2000, 3, 16, spread=5.0)
    data = dataset(made, tmp_path / "cache")
    options = {"lr": (0.003, 0.01), "epochs": 15, "cv": 3, "class_weight": "balanced"}
    (one, _, scores, _), (other, _, scores_2, told) = both_ways(data, "linear", **options)
    assert told.passes > 15
    assert abs(scores["cv"]["log_loss"] - scores_2["cv"]["log_loss"]) < 0.01
    assert (one.predict(made.X) == other.predict(made.X)).mean() > 0.97
    with BlockFit(data, make_head("linear", **options), BlockPlan(LIMIT), 0) as again:
        np.testing.assert_array_equal(again.head.network_.weights[0], other.network_.weights[0])
    assert len(other.history_) >= other.epochs_ > 0


@pytest.mark.usefixtures("_small_blocks")
@pytest.mark.parametrize(("optimizer", "lr", "pca"), [("sgd", 0.05, None), ("adamw", 0.003, None), ("adamw", 0.003, 9)])
def test_batches_of_all_rows_take_a_linear_head_where_those_in_memory_take_it(optimizer, lr, pca, tmp_path):
    made = classes_made(2000, 3, 16, spread=5.0)
    data = dataset(made, tmp_path / "cache")
    options = {"optimizer": optimizer, "lr": lr, "batch_size": 10_000, "epochs": 30, "cv": 3, "label_smoothing": 0.1}
    options |= {"class_weight": "balanced", "pca": pca}
    (one, _, scores, _), (other, _, scores_2, _) = both_ways(data, "linear", **options)
    np.testing.assert_allclose(one.predict_proba(made.X), other.predict_proba(made.X), atol=1e-3)
    assert scores["cv"]["log_loss"] == pytest.approx(scores_2["cv"]["log_loss"], abs=1e-4)
    assert one.epochs_ == other.epochs_
    for row, row_2 in zip(one.history_, other.history_, strict=True):
        assert row == pytest.approx(row_2, abs=2e-3)


@pytest.mark.usefixtures("_small_blocks")
def test_a_large_grid_of_a_linear_head_is_tried_some_settings_at_a_time(tmp_path):
    data = dataset(classes_made(600, 3, 16, spread=5.0), tmp_path / "cache")
    options = {"lr": (0.003, 0.01, 0.03), "weight_decay": (0.0, 0.01), "epochs": 4, "cv": 3}
    (one, *_), (other, *_) = both_ways(data, "linear", **options)
    assert len(other.cv_["grid"]) == len(one.cv_["grid"]) == 6
    assert [each["lr"] for each in other.cv_["grid"]] == [each["lr"] for each in one.cv_["grid"]]
    losses = [each["log_loss"] for each in other.cv_["grid"]]
    assert other.cv_["grid"][losses.index(min(losses))]["lr"] == other.setting_["lr"]
    assert other.cv_["log_loss"] == pytest.approx(min(losses), abs=1e-3)


def test_scores_by_blocks_and_columns_are_those_of_all_at_once():
    rng = np.random.default_rng(1)
    for n_classes, several in ((2, False), (7, False), (5, True)):
        logits = 3 * rng.standard_normal((800, n_classes))
        y = rng.integers(0, n_classes, 800)
        target = logits + rng.standard_normal(logits.shape) > 1 if several else y
        logits[np.arange(800), y] += 2 * (not several)
        model = SavedModel(
            kind="logistic",
            classes=tuple("abcdefg"[:n_classes]),
            spaces=[],
            network=Network(
                Preparation(np.zeros(1), np.ones(1), np.zeros(0, int)), (np.zeros((1, 1)),), (np.zeros(1),)
            ),
            temperature=1.4,
            multi_label=several,
            thresholds=[0.4] * n_classes if several else [],
            true_probabilities=np.zeros(0) if several else np.sort(rng.random(200)),
        )
        whole = scores_of(model, logits, (np.zeros((800, 1)), target), None)
        whole.pop("baseline")
        for in_memory in (True, False):
            table = Table(800, n_classes, in_memory=in_memory, dtype=np.float64)
            table.put(0, logits)
            for memory in (1, 1 << 30):  # a column at a time, and all of them
                assert_close(whole, scores_in_blocks(model, ScoredRows(table, target, None), memory), 1e-9)


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_table_gives_back_what_was_put_into_it(in_memory):
    rng = np.random.default_rng(0)
    expected = rng.standard_normal((1000, 6)).astype(np.float32)
    table = Table(1000, 6, in_memory=in_memory)
    table.put(0, expected[:700])
    order = 700 + rng.permutation(300)
    table.put_columns(order, 0, expected[order, :2])
    table.put_columns(np.arange(700, 1000), 2, expected[700:, 2:])
    seen = np.concatenate([rows.copy() for _, rows in table.blocks(64)])
    np.testing.assert_array_equal(seen, expected)
    assert [start for start, _ in table.blocks(300)] == [0, 300, 600, 900]
    np.testing.assert_array_equal(table.columns(1, 4, 90), expected[:, 1:4])
    table.close()


def test_reading_ahead_tells_of_what_went_wrong_and_ends_when_nobody_listens():
    def broken():
        yield 1
        raise OSError("the disk is gone")

    items = scratch.ahead(broken())
    assert next(items) == 1
    with pytest.raises(OSError, match="the disk is gone"):
        next(items)
    endless = scratch.ahead(iter(int, 1))
    next(endless)
    endless.close()


def test_a_disk_without_room_is_told_of_before_and_while_it_is_written(monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with pytest.raises(ScratchError, match=r"puts 1000000\.0 GB aside in .*TMPDIR"):
        Table(1 << 20, 238_418_580, in_memory=False)
    table = Table(1000, 1000, in_memory=False)

    class Full:
        def seek(self, _):
            pass

        def write(self, _):
            raise OSError(28, "No space left on device")

        def close(self):
            pass

    table._file = Full()
    with pytest.raises(ScratchError, match="No space left on device"):
        table.put(0, np.zeros((10, 1000), np.float32))


# The process that fits: what it takes, and what it leaves behind.

FIT = """
import sys
from pathlib import Path
import headstart.classify.fit
from headstart.classify import shard
def peak():
    return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
before = peak()
{more}
fit = headstart.classify.fit.fit_head(cache=sys.argv[1], out=sys.argv[2], memory=sys.argv[3], C=0.01, cv=1)
print(peak() - before, fit.blocks.put_aside, fit.blocks.blocks)
"""


def started(cache, out, memory, more="", **environment):
    words = [sys.executable, "-c", FIT.format(more=more), str(cache), str(out), memory]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment})


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> tuple[Path, int, int]:
    """A cache of 160,000 rows of 256 numbers, 164 MB."""
    cache, rng = tmp_path_factory.mktemp("large") / "cache", np.random.default_rng(0)
    count, dim = 160_000, 256
    y = rng.integers(0, 3, count)
    X = rng.standard_normal((count, dim), dtype=np.float32)
    X[np.arange(count), y] += 1
    digest = rng.integers(0, 256, (count, 32), dtype=np.uint8)
    split = np.where(np.arange(count) % 20, "train", "val")
    made = replace(classes_made(8, 3, dim), X=X, y=y, digest=digest, split=split, phash=np.zeros(count, np.uint64))
    store = FeatureStore(cache)
    store.prepare(made.space)
    with store.writer(made.space) as writer:
        for start in range(0, count, 8192):
            writer.add(Keys.plain(digest[start : start + 8192]), X[start : start + 8192])
    from headstart.cache.listing import save_listing

    save_listing(cache, made.listing())
    return cache, count, X.nbytes


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells the peak of memory in this way")
def test_memory_stays_below_what_was_given_however_many_rows_there_are(large, tmp_path):
    cache, count, nbytes = large
    limit, columns = 150_000_000, 500  # bytes an image
    child = started(cache, tmp_path / "model", f"{limit // 1_000_000}MB", OMP_NUM_THREADS="1")
    taken, put_aside, blocks = map(int, child.communicate(timeout=300)[0].split())
    assert child.returncode == 0
    assert put_aside == nbytes * 19 // 20
    assert blocks > 3
    assert taken < limit + columns * count
    assert budget.COPIES * nbytes > 2 * (limit + columns * count)  # what a fit in memory takes is far beyond that


@pytest.mark.skipif(sys.platform != "linux", reason="looks at another process's open files")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_of_a_fit_that_is_ended(number, large, tmp_path):
    cache, _, nbytes = large
    folder = tmp_path / "scratch"
    folder.mkdir()
    wait = "shard.Shard.begin = lambda *_: (print('aside', flush=True), __import__('time').sleep(60))"
    child = started(cache, tmp_path / "model", "150MB", wait, TMPDIR=str(folder))
    assert child.stdout.readline() == "aside\n"
    opened = [path.stat() for path in Path(f"/proc/{child.pid}/fd").iterdir()]
    assert max(status.st_size for status in opened) > 0.9 * nbytes  # the scratch file is there, and has no name
    assert not list(folder.iterdir())
    child.send_signal(number)
    child.wait(timeout=30)
    assert not list(folder.iterdir())
    assert not (tmp_path / "model").exists()


# What people say and see.


def test_sizes_are_read_as_people_write_them():
    assert parse_memory("auto") is None
    assert parse_memory("2GiB") == 2 << 30
    assert parse_memory(" 1.5 gb") == 1_500_000_000
    assert parse_memory("500MB") == 500_000_000
    assert parse_memory(4096) == 4096
    for wrong in ("", "much", "2 parsecs", "-1GB", "0", "1e9"):
        with pytest.raises(UsageError, match="--memory takes a size such as 500MB or 2GiB"):
            parse_memory(wrong)


@pytest.fixture
def few(tmp_path) -> Path:
    return classes_made(200, 3, 12).put(tmp_path / "cache")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"head": "knn"}, "--head knn needs all rows in memory"),
        ({"head": "mlp"}, "--head mlp needs all rows in memory"),
        ({"curve": True}, "--curve takes all embeddings at once"),
        ({"shots": 4}, "--shots takes all embeddings at once"),
        ({"near_copies": "all"}, "--near-copies all takes all embeddings at once"),
        ({"memory": "1MB"}, r"--memory 1\.0 MB is less than this fit takes .* give it [0-9.]+ MB or more"),
        ({"engine": "dask"}, "--engine dask needs --address"),
        ({"engine": "ray"}, "--engine ray needs --address"),
        ({"engine": "spark", "address": "x"}, "engine must be one of local, dask, ray"),
        ({"address": "tcp://localhost:1"}, "--address tcp://localhost:1 names a cluster"),
        ({"cv": 1}, "--cv 1 makes no folds by which C could be chosen"),
        ({"head": "linear", "cv": 1}, "--cv 1 makes no folds by which one of 3 settings"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_read(given, message, few, tmp_path, monkeypatch):
    monkeypatch.setattr(block_fit, "COPIES", 1e9)
    monkeypatch.setattr(FeatureStore, "gather", lambda *_, **__: pytest.fail("rows were read"))
    with pytest.raises(UsageError, match=message):
        headstart.fit_head(cache=few, out=tmp_path / "model", **{"memory": "1GB", **given})


def test_json_and_text_say_how_memory_was_kept(few, tmp_path, monkeypatch, caplog):
    within = headstart.fit_head(cache=few, out=tmp_path / "a", near_copies="none")
    assert within.summary()["memory"] == {"limit": None, "blocks": 0, "passes": None, "put_aside": 0}
    assert within.summary()["engine"] == "local"
    monkeypatch.setattr(block_fit, "COPIES", 1e12)
    with caplog.at_level(logging.INFO, "headstart"):
        logging.getLogger("headstart").propagate = True
        found = headstart.fit_head(cache=few, out=tmp_path / "b", details=True)
    assert "going by blocks (--memory)" in caplog.text
    assert "not looked for in a fit by blocks" in caplog.text
    memory = found.summary()["memory"]
    assert memory["limit"] > 0
    assert memory["blocks"] == 1
    assert memory["passes"] > 20
    assert [line for line in found.lines() if line.startswith("by blocks: ")]
    assert headstart.load(found.out).model.scores["cv"]["accuracy"] == pytest.approx(
        within.model.scores["cv"]["accuracy"]
    )


def test_without_folds_nothing_is_cross_validated_and_all_else_is_told(few, tmp_path):
    fit = headstart.fit_head(cache=few, out=tmp_path / "model", C=0.1, cv=1, details=True)
    assert fit.summary()["cv"] is None
    assert fit.summary()["temperature"] == 1.0
    assert fit.summary()["conformal"] is None
    assert "cross-validation: none, so probabilities are taken as they come" in fit.lines()
    assert headstart.load(fit.out).model.true_probabilities.size == 0


@pytest.mark.usefixtures("_small_blocks")
def test_a_flipped_bit_in_a_part_is_seen_and_named(tmp_path):
    made = classes_made(400, 3, 12)
    data = dataset(made, tmp_path / "cache")
    part = sorted((tmp_path / "cache").glob("spaces/*/*.h5"))[2]
    flip(part, part.stat().st_size - 4000)
    with (
        pytest.raises(CacheMissError, match="run `headstart extract"),
        BlockFit(data, make_head("logistic"), BlockPlan(LIMIT), 0),
    ):
        pass
    assert not part.exists()


@pytest.mark.usefixtures("_small_blocks")
def test_numbers_that_are_none_are_refused(tmp_path):
    made = classes_made(400, 3, 12)
    made.X[8, 3] = np.nan
    data = dataset(made, tmp_path / "cache", val_fraction=0)
    with (
        pytest.raises(TrainingError, match="NaN or infinity"),
        BlockFit(data, make_head("logistic"), BlockPlan(LIMIT), 0),
    ):
        pass
