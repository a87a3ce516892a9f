"""`predict` on the command line: lines as they come, pictures of which the model is unsure, copies by class."""

import csv
import io
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_line import BACKBONE, SHAPES, draw, parts

import headstart as package
from headstart.cache.info import info
from headstart.classify.model import load_model
from headstart.classify.predict import Classifier
from headstart.classify.prediction import Prediction
from headstart.cli import main
from headstart.errors import UsageError
from headstart.extract.options import RunOptions

PROGRAM = [sys.executable, "-c", "import sys; from headstart.cli import main; sys.exit(main())"]
FIELDS = {"path", "label", "probability", "probabilities", "error", "labels", "set", "novelty", "unsure"}


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    """A model of three shapes, and nothing else: its cache has gone."""
    folder = tmp_path_factory.mktemp("model")
    for shape, seed in itertools.product(SHAPES, range(12)):
        (folder / "data" / shape).mkdir(parents=True, exist_ok=True)
        draw(shape, seed).save(folder / "data" / shape / f"{seed}.jpg")
    words = ["--cache", str(folder / "cache")]
    assert main(["extract", str(folder / "data"), "--backbone", BACKBONE, *words, "-q"]) == 0
    assert main(["fit-head", str(folder / "data"), "--out", str(folder / "model"), *words, "-q"]) == 0
    shutil.rmtree(folder / "cache")
    return folder / "model"


@pytest.fixture
def new(tmp_path) -> Path:
    """Pictures at two depths; one cannot be read, and one has the bytes of another."""
    folder = tmp_path / "new"
    (folder / "deep").mkdir(parents=True)
    for shape in SHAPES:
        draw(shape, 500).save(folder / f"{shape}.png")
    (folder / "bad.jpg").write_bytes(b"\xff\xd8 no picture")
    shutil.copy(folder / "circle.png", folder / "deep" / "copy.png")
    return folder


def many(folder: Path, count: int) -> Path:
    folder.mkdir()
    for seed in range(count):
        draw("circle", seed).save(folder / f"{seed:04}.jpg")
    return folder


# What a line is


def test_every_form_says_the_same_in_the_same_order(model, new, headstart, headstart_json):
    rows = headstart_json("predict", model, new)["predictions"]
    assert [Path(row["path"]).name for row in rows] == ["bad.jpg", "circle.png", "cross.png", "copy.png", "stripes.png"]
    assert all(row.keys() == FIELDS for row in rows)
    assert rows[0]["error"] and rows[0]["label"] is None and rows[0]["unsure"] is False
    assert rows[1]["probabilities"] == pytest.approx(rows[3]["probabilities"])

    status, out, err = headstart("predict", model, new, "--jsonl")
    lines = [json.loads(line) for line in out.splitlines()]
    assert (status, [line["path"] for line in lines]) == (0, [row["path"] for row in rows])
    assert [line["probability"] for line in lines[1:]] == pytest.approx([row["probability"] for row in rows[1:]])
    assert "warning: 1 of 5 pictures could not be read" in err

    table = list(csv.DictReader(io.StringIO(headstart("predict", model, new, "--csv")[1])))
    assert [line["label"] for line in table] == [row["label"] or "" for row in rows]
    assert {line["unsure"] for line in table} == {"false"}
    assert len(headstart("predict", model, new)[1].splitlines()) == 5


def test_top_limits_the_classes_in_json_too(model, new, headstart):
    lines = headstart("predict", model, new / "cross.png", "--jsonl", "--top", 2)[1].splitlines()
    probabilities = json.loads(lines[0])["probabilities"]
    assert len(probabilities) == 2
    assert next(iter(probabilities)) == "cross"


@pytest.mark.parametrize("words", [("--csv", "--jsonl"), ("--jsonl", "--json"), ("--csv", "--json")])
def test_forms_exclude_each_other(model, new, headstart, words):
    status, out, err = headstart("predict", model, new, *words)
    assert status == 2
    assert f"{words[0]} and {words[1]} exclude each other; give one of them" in out + err


@pytest.mark.parametrize("separator", ["\n", "\0"])
def test_a_list_on_standard_input_by_line_or_by_nul(model, new, headstart, monkeypatch, separator):
    text = separator.join([str(new / "deep"), str(new / "cross.png"), ""])
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    status, out, err = headstart("predict", model, "-", "--jsonl")
    assert status == 0, err
    assert [Path(json.loads(line)["path"]).name for line in out.splitlines()] == ["cross.png", "copy.png"]


def test_a_long_list_is_taken(model, headstart, monkeypatch, tmp_path):
    folder = tmp_path / "empty"
    folder.mkdir()
    for number in range(5_000):
        (folder / f"{number}.jpg").touch()
    text = "\0".join(str(path) for path in folder.iterdir())
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode() + b"\0")))
    status, out, err = headstart("predict", model, "-", "--csv")
    assert status == 0
    assert len(out.splitlines()) == 5_001 and "warning: 5000 of 5000 pictures could not be read" in err


# Where the model is unsure


def test_a_picture_below_the_probability_has_no_label_and_keeps_its_probabilities(model, new, headstart):
    words = ("predict", model, new / "cross.png", "--min-probability", 1)
    row = json.loads(headstart(*words, "--jsonl")[1])
    assert (row["label"], row["unsure"], row["error"]) == (None, True, None)
    assert row["probability"] == row["probabilities"]["cross"] < 1
    table = list(csv.DictReader(io.StringIO(headstart(*words, "--csv")[1])))
    assert (table[0]["label"], table[0]["unsure"]) == ("", "true")
    assert float(table[0]["probability"]) == pytest.approx(row["probability"], abs=1e-6)
    assert ": unsure (cross " in headstart(*words)[1]


def test_a_picture_at_the_probability_has_its_label(model, new):
    classifier = package.load(model, cache=new / "cache")
    found = classifier.predict([new / "cross.png"])[0].probability
    assert classifier.predict([new / "cross.png"], min_probability=found)[0].label == "cross"
    assert classifier.predict([new / "cross.png"], min_probability=found + 1e-9)[0].unsure
    with pytest.raises(UsageError, match="between 0 and 1"):
        classifier.stream([new], min_probability=1.5)


# As they come


def test_answers_come_before_the_last_picture_is_read(model, tmp_path):
    folder = many(tmp_path / "many", 110)
    run = RunOptions(workers=1, batch_size=8)
    stream = Classifier(load_model(model), tmp_path / "cache", run).stream([folder])
    first = next(stream)
    assert first.path.endswith("0000.jpg")
    # 68 pictures are read ahead; one behind them may still change.
    draw("stripes", 1).save(folder / "0109.jpg")
    rest = list(stream)
    assert [row.label for row in (first, *rest[:-1])] == ["circle"] * 109
    assert rest[-1].label == "stripes"


def test_a_stream_that_is_left_keeps_what_was_embedded(model, tmp_path, monkeypatch):
    monkeypatch.setattr("headstart.extract.embed.STEP_SECONDS", 0.0)  # however fast this machine is
    folder = many(tmp_path / "many", 120)
    classifier = Classifier(load_model(model), tmp_path / "cache", RunOptions(batch_size=8))
    stream = classifier.stream([folder])
    assert isinstance(next(stream), Prediction)
    stream.close()
    kept = sum(space.rows for space in info(tmp_path / "cache").spaces)
    assert 32 <= kept < 120
    assert not list((tmp_path / "cache" / "running").glob("*")), "the run is not announced any more"
    assert len(classifier.predict([folder])) == 120


def test_one_run_makes_one_part_of_small_work_and_copies_cost_nothing(model, tmp_path, monkeypatch):
    monkeypatch.setattr("headstart.extract.embed.STEP_SECONDS", 0.0)
    monkeypatch.setattr("headstart.classify.predict.ANSWER_SHARE", 0.0)
    monkeypatch.setenv("HEADSTART_PART_SECONDS", "1000")
    folder = many(tmp_path / "many", 40)
    for number in range(10):
        shutil.copy(folder / f"{number:04}.jpg", folder / f"9{number:03}.jpg")
    classifier = package.load(model, cache=tmp_path / ".headstart")
    cold = classifier.predict([folder])
    assert len(parts(tmp_path)) == 1
    assert sum(space.rows for space in info(tmp_path / ".headstart").spaces) == 40
    assert [row.probability for row in cold[40:]] == pytest.approx([row.probability for row in cold[:10]])
    # What was handed on is what is kept: the next run, which reads it at another pace, says the same bit for bit.
    monkeypatch.setattr("headstart.classify.predict.ANSWER_SHARE", 1000.0)
    assert classifier.predict([folder]) == cold
    assert len(parts(tmp_path)) == 1


def test_a_copy_of_a_picture_whose_row_memory_let_go_is_read_back(model, tmp_path, monkeypatch):
    monkeypatch.setattr("headstart.extract.embed.STEP_SECONDS", 0.0)
    monkeypatch.setattr("headstart.classify.predict.ANSWER_SHARE", 0.0)
    monkeypatch.setattr("headstart.extract.recent.KEPT_BYTES", 1)
    monkeypatch.setattr("headstart.cache.writer.CUT_BYTES", 1)  # every batch is a part
    folder = many(tmp_path / "many", 24)
    shutil.copy(folder / "0000.jpg", folder / "0020-copy.jpg")
    found = Classifier(load_model(model), tmp_path / ".headstart", RunOptions(batch_size=4)).predict([folder])
    assert len(found) == 25
    assert found[20].probability == pytest.approx(found[0].probability)
    assert len(parts(tmp_path)) == 6


def test_a_reader_that_has_enough_ends_the_run_without_a_word(model, tmp_path):
    folder = many(tmp_path / "many", 200)
    with subprocess.Popen(
        [*PROGRAM, "predict", model, folder, "--jsonl", "-q", "--batch-size", "8"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout is not None and process.stderr is not None
        for _ in range(3):
            assert json.loads(process.stdout.readline())["label"] == "circle"
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 1
    assert sum(space.rows for space in info(tmp_path / ".headstart").spaces) < 200


def test_ctrl_c_leaves_whole_lines_and_the_next_run_goes_on(model, tmp_path):
    folder = many(tmp_path / "many", 200)
    process = subprocess.Popen(
        [*PROGRAM, "predict", model, folder, "--jsonl", "--batch-size", "8"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    first = process.stdout.readline()
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    # By the same file objects: `communicate` would pass by what the first read has taken ahead.
    assert process.stderr is not None
    out, err = process.stdout.read(), process.stderr.read()
    assert process.wait(timeout=60) == 130, err
    assert err.splitlines()[-1] == "interrupted; what was embedded is in the cache, run again to go on"
    assert out.endswith("\n") and "Traceback" not in err
    lines = [json.loads(line) for line in (first + out).splitlines()]
    assert 0 < len(lines) < 200
    assert [line["path"] for line in lines] == [str(folder / f"{number:04}.jpg") for number in range(len(lines))]
    assert sum(space.rows for space in info(tmp_path / ".headstart").spaces) >= len(lines)


# Copies by class


def test_pictures_are_sorted_into_class_folders_once(model, new, headstart, headstart_json, tmp_path):
    words = ("predict", model, new, "--sort-into", "sorted")
    done = headstart_json(*words)
    assert done["sorted"] == {
        "out": "sorted", "copied": 4, "there": 0, "unread": 1, "folders": {"circle": 2, "cross": 1, "stripes": 1},
    }  # fmt: skip
    found = sorted(str(path.relative_to(tmp_path / "sorted")) for path in (tmp_path / "sorted").rglob("*.png"))
    assert found == ["circle/circle.png", "circle/copy.png", "cross/cross.png", "stripes/stripes.png"]
    status, _, err = headstart(*words, "--jsonl")
    assert status == 0
    assert "copied 0 pictures into sorted" in err and "4 were there already" in err
    assert "1 were not copied, for they could not be read" in err
    unsure = [row for row in headstart_json(*words, "--min-probability", 1)["predictions"] if row["unsure"]]
    assert {path.name for path in (tmp_path / "sorted" / "_unsure").iterdir()} == {
        Path(row["path"]).name for row in unsure
    }
    assert unsure


def test_sorting_into_what_is_classified_is_refused_before_the_work(model, new, headstart):
    status, _, err = headstart("predict", model, new, "--sort-into", new / "sorted")
    assert status == 1
    assert "name a folder outside" in err
    assert not (new / "sorted").exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")  # noqa: PTH110
def test_output_that_cannot_be_written_is_one_line(model, new, tmp_path):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*PROGRAM, "predict", model, new, "--jsonl"], cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode != 0
    assert "Traceback" not in done.stderr and "No space left on device" in done.stderr


def test_a_csv_is_one_whatever_is_in_a_name(headstart, model, tmp_path):
    names = ["a\nb.jpg", "c\rd.jpg", 'e"f,g.jpg', "=h.jpg", " i.jpg"]
    (tmp_path / "odd").mkdir()
    for seed, name in enumerate(names):
        draw("circle", 500 + seed).save(tmp_path / "odd" / name, "JPEG")
    _, out, _ = headstart("predict", model, "odd", "--csv")
    rows = list(csv.reader(io.StringIO(out, newline="")))
    assert {len(row) for row in rows} == {len(rows[0])}
    assert sorted(Path(row[0]).name for row in rows[1:]) == sorted(names)
