"""What is answered is what `predict` says, of every kind of picture and by every kind of model, however many ask."""

import io
import json
import signal
import time

import numpy as np
import pytest
import torch
from callers import call
from PIL import Image

import headstart
from headstart.classify.model import load_model
from headstart.classify.predict import Classifier
from headstart.classify.serve.model_runner import ModelRunner
from headstart.errors import DecodeError, UsageError
from headstart.extract.options import RunOptions

TOLERANCE = 1e-5


def saved(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def turned(image: Image.Image) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(image, "JPEG", exif=exif)


@pytest.fixture(scope="module")
def zoo(photograph, tmp_path_factory):
    """One photograph in many forms, as files."""
    image = Image.open(io.BytesIO(photograph)).convert("RGB")
    grey = np.asarray(image.convert("L")).astype(np.uint16) * 257
    alpha = image.copy()
    alpha.putalpha(image.convert("L"))
    folder = tmp_path_factory.mktemp("zoo")
    forms = {
        "plain.jpg": photograph,
        "turned.jpg": turned(image),
        "cmyk.jpg": saved(image.convert("CMYK"), "JPEG"),
        "grey.jpg": saved(image.convert("L"), "JPEG"),
        "deep.png": saved(Image.fromarray(grey), "PNG"),
        "clear.png": saved(alpha, "PNG"),
        "palette.gif": saved(image.convert("P"), "GIF"),
        "small.webp": saved(image.resize((40, 30)), "WEBP"),
        "strip.bmp": saved(image.resize((4000, 20)), "BMP"),
        "page.tiff": saved(image, "TIFF"),
    }
    for name, data in forms.items():
        (folder / name).write_bytes(data)
    return folder


def same(answered: list[dict], predicted: list) -> None:
    for mine, theirs in zip(answered, predicted, strict=True):
        wanted = theirs.as_dict()
        assert mine.keys() == wanted.keys()
        assert {k: mine[k] for k in ("label", "labels", "set", "error")} == {
            k: wanted[k] for k in ("label", "labels", "set", "error")
        }
        assert mine["probabilities"] == pytest.approx(wanted["probabilities"], abs=TOLERANCE)
        assert mine["novelty"] == pytest.approx(wanted["novelty"], abs=0.05) if mine["novelty"] else True


def test_every_form_of_a_picture_gets_the_answer_of_predict(server, model, zoo, tmp_path):
    paths = sorted(zoo.iterdir())
    predicted = headstart.load(model, cache=tmp_path / "cache").predict([zoo], coverage=0.9)
    assert len({row.probability for row in predicted}) > 5, "the forms differ, so that a mix-up is seen"
    answered = []
    for some in (paths[:5], paths[5:]):
        status, _, body = server.form(*((path.name, path.read_bytes()) for path in some))
        assert status == 200
        answered += body["predictions"]
    assert [row["path"] for row in answered] == [path.name for path in paths]
    same(answered, predicted)
    for path, wanted in zip(paths, predicted, strict=True):  # and alone, as the body
        status, _, body = server.post(path.read_bytes(), "application/octet-stream")
        assert (status, body["predictions"][0]["path"]) == (200, "picture")
        same(body["predictions"], [wanted])


def test_a_picture_that_cannot_be_read_among_others_says_why(server, photograph):
    status, _, body = server.form(("a.jpg", photograph), ("b.jpg", b"nothing"), ("c.jpg", photograph))
    assert status == 200
    assert [row["error"] for row in body["predictions"]] == [None, "not an image", None]
    assert body["predictions"][0]["probabilities"] == pytest.approx(body["predictions"][2]["probabilities"])


def test_what_a_client_may_know(server, model):
    status, headers, body = server.send(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert status == 200
    assert headers["x-content-type-options"] == "nosniff"
    assert body["ready"]
    assert (body["model"], body["classes"]) == (model.name, ["ants", "bees"])
    assert body["version"] == headstart.__version__
    assert body["limits"]["max_pictures"] == 8
    assert str(model.parent) not in json.dumps(body)


# Every kind of model, without a server between.


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Pictures of three shapes, embedded by two networks with random weights."""
    from command_line import SHAPES, draw

    folder = tmp_path_factory.mktemp("kinds")
    for shape in SHAPES:
        (folder / "photos" / shape).mkdir(parents=True)
        for seed in range(12):
            draw(shape, seed).save(folder / "photos" / shape / f"{seed:02d}.png")
    rows = [f"photos/{s}/{n:02d}.png,{s}{'|even' if n % 2 == 0 else ''}" for s in SHAPES for n in range(12)]
    (folder / "list.csv").write_text("\n".join(["path,labels", *rows, ""]))
    small = {"resize": 64, "crop": 64, "weights": "none", "cache": folder / "cache"}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    headstart.extract(folder / "list.csv", "resnet18", **small)
    headstart.extract(folder / "photos", "resnet18", store_dtype="float16", **small)
    headstart.extract(
        folder / "photos", "mobilenet_v3_small", layer=["features.8", "features.4"], **small | {"crop": 48}
    )
    yield folder
    torch.set_num_threads(threads)


JOINED = ("mobilenet_v3_small:features.4", "resnet18", "mobilenet_v3_small:features.8")


@pytest.mark.parametrize("kind", ["logistic", "knn", "ncm", "mlp", "joined", "several labels", "finetuned"])
def test_every_kind_of_model_answers_as_predict_does(kind, drawn, tmp_path):
    where = {"cache": drawn / "cache", "out": tmp_path / "model"}
    if kind == "finetuned":
        from finetuned import QUICK

        headstart.finetune(drawn / "photos", **QUICK, **where)
    elif kind == "several labels":
        headstart.fit_head(drawn / "list.csv", **where)
    elif kind == "joined":
        headstart.fit_head(drawn / "photos", features=JOINED, **where)
    else:
        options = {"epochs": 2} if kind == "mlp" else {}
        headstart.fit_head(drawn / "photos", head=kind, wanted={"backbone": "resnet18"}, **options, **where)
    paths = sorted((drawn / "photos" / "cross").iterdir())
    predicted = headstart.load(tmp_path / "model", cache=tmp_path / "fresh").predict(paths)
    runner = ModelRunner(Classifier(load_model(tmp_path / "model"), tmp_path / "unused"))
    runner.load(5)
    rows = runner.predict([runner.read(path.read_bytes()) for path in paths])
    same([row.as_dict() for row in rows], predicted)
    assert not (tmp_path / "unused").exists()


def test_coverage_that_the_model_cannot_give_is_said_before_it_listens(drawn, tmp_path):
    out = headstart.fit_head(drawn / "list.csv", cache=drawn / "cache", out=tmp_path / "model").out
    with pytest.raises(UsageError, match="several labels"):
        ModelRunner(Classifier(load_model(out)), coverage=0.9)


def test_a_row_that_is_not_finite_is_its_pictures_error_alone(model, photograph, tmp_path):
    class Broken(ModelRunner):
        def _embed(self, pictures):
            X = super()._embed(pictures)
            X[1:2] = np.nan
            return X

    runner = Broken(Classifier(load_model(model), tmp_path))
    runner.load(3)
    rows = runner.predict([runner.read(photograph)] * 3)
    assert [row.error for row in rows] == [None, "its embedding is not finite", None]


def test_the_pixel_limit_holds(model, photograph, tmp_path):
    runner = ModelRunner(Classifier(load_model(model), tmp_path, RunOptions(max_pixels=100)))
    with pytest.raises(DecodeError, match="exceed the limit of 100"):
        runner.read(photograph)


# Many at once.


def crowd(start, few, model, tmp_path, seconds):
    predicted = headstart.load(model, cache=tmp_path / "cache").predict([few / "val"])
    with start() as server:
        began = time.perf_counter()
        calls = call("127.0.0.1", server.port, 50, seconds, few / "val")
        print(f"{len(calls.seconds)} requests of 50 clients in {calls.wall:.1f} s, {calls.rate:.0f} a second, "
              f"p95 {calls.percentile(.95):.0f} ms, {len(calls.errors)} errors")  # fmt: skip
        status, said = server.stop(signal.SIGTERM)
    assert not calls.errors
    assert status == 0, said
    assert calls.wall < time.perf_counter() - began
    for row in predicted:
        for answer in calls.answers[row.path]:
            assert answer == pytest.approx(list(row.probabilities.values()), abs=TOLERANCE)
    assert sum(map(len, calls.answers.values())) >= len(predicted), "each picture was asked for"
    pictures, passes = (
        int(word) for word in (said.split(" pictures in")[0].split()[-1], said.split(" passes")[0].split()[-1])
    )
    assert pictures == len(calls.seconds)
    assert passes < pictures / 4, "they went through together"


def test_fifty_clients_at_once(start, few, model, tmp_path):
    crowd(start, few, model, tmp_path, 5)


@pytest.mark.slow
def test_fifty_clients_at_once_for_half_a_minute(start, few, model, tmp_path):
    crowd(start, few, model, tmp_path, 30)
