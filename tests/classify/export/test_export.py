"""Exported files say what `predict` says, whatever the number and the size of the pictures; or there is no file."""

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

import headstart
from headstart.classify.export import job, network, onnx_graph
from headstart.classify.export.network import Geometry
from headstart.classify.export.torch_graph import METADATA_FILE, torch_runner
from headstart.cli import main
from headstart.errors import HeadstartError, MissingExtraError, ModelError, OutputError, UsageError
from headstart.extract.preprocess import to_input

# (height, width): landscape, portrait, tiny and smaller than the crop, of one pixel, a strip that is cut.
NEAR = 2e-4  # in 32 x 32 pixels, a level in one of them is 1e-4 of a probability
SHAPES = ((375, 500), (500, 333), (9, 14), (1, 1), (3, 400))


def read_onnx_metadata(data):
    return {each.key: each.value for each in onnx.load_model_from_string(data).metadata_props}


def read_torch_metadata(data):
    extra = {METADATA_FILE: ""}
    torch.export.load(io.BytesIO(data), extra_files=extra)
    return json.loads(extra[METADATA_FILE])


def predicted(model: Path, folder: Path, images: np.ndarray) -> np.ndarray:
    """Return what `predict` says of pictures (n, H, W, 3), (n, K)."""
    paths = [folder / f"{images.shape[1]}x{images.shape[2]}-{number}.png" for number in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    classifier = headstart.load(model, cache=folder / "cache")
    found = {Path(row.path).name: row.probabilities for row in classifier.predict(paths)}
    return np.array([[found[path.name][name] for name in classifier.classes] for path in paths])


def picture(high: int, wide: int, count: int) -> np.ndarray:
    rng = np.random.default_rng([high, wide])
    small = rng.integers(0, 256, (count, 4, 5, 3), dtype=np.uint8)
    return np.stack(
        [np.asarray(Image.fromarray(image).resize((wide, high), Image.Resampling.BICUBIC)) for image in small]
    )


def onnx_session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


@pytest.mark.usefixtures("traced_once")
def test_onnx_says_what_predict_says(models, logistic, tmp_path):
    made = models.exported(logistic)
    session = onnx_session(made.out)
    assert [(each.name, each.type, each.shape) for each in session.get_inputs()] == [
        ("image", "tensor(uint8)", ["N", "H", "W", 3])
    ]
    assert [(each.name, each.type) for each in session.get_outputs()] == [("probabilities", "tensor(float)")]
    for shape in SHAPES:
        images = picture(*shape, 3)
        expected = predicted(logistic, tmp_path, images)
        together = session.run(None, {"image": images})[0]
        assert together.dtype == np.float32
        assert np.allclose(together, expected, atol=NEAR)
        assert np.allclose(session.run(None, {"image": images[1:2]})[0], expected[1:2], atol=NEAR)
    assert made.max_difference < NEAR
    assert (made.format, made.resize, made.pictures, made.bytes) == ("onnx", "in the graph", 6, made.out.stat().st_size)


@pytest.mark.usefixtures("traced_once")
def test_torch_says_what_predict_says(models, logistic, tmp_path):
    made = models.exported(logistic, format="torch")
    run = torch_runner(made.out.read_bytes())
    for shape in SHAPES:
        images = picture(*shape, 3)
        expected = predicted(logistic, tmp_path, images)
        assert np.allclose(run(images), expected, atol=NEAR)
        assert np.allclose(run(images[1:2]), expected[1:2], atol=NEAR)
    assert made.max_difference < NEAR
    assert read_torch_metadata(made.out.read_bytes())["headstart.resize"] == "in the graph"


@pytest.mark.usefixtures("traced_once")
def test_a_graph_may_begin_after_the_resize(models, logistic, tmp_path):
    made = models.exported(logistic, input="crop")
    assert (made.resize, made.input) == ("before the graph", ("N", 32, 32, 3))
    images = picture(375, 500, 3)
    geometry = Geometry(40, 32, "bicubic", antialias=True)
    crops = np.stack([to_input(image, geometry.preprocess())[0] for image in images])
    found = onnx_session(made.out).run(None, {"image": crops})[0]
    assert np.allclose(found, predicted(logistic, tmp_path, images), atol=NEAR)
    about = read_onnx_metadata(made.out.read_bytes())
    assert json.loads(about["headstart.before"]) == {"resize": 40, "crop": 32, "filter": "BICUBIC"}
    assert about["headstart.resize"] == "before the graph"
    assert "resize to 40 pixels" in about["headstart.caller"]


@pytest.mark.usefixtures("traced_once")
def test_what_is_written_beside_the_graph(models, logistic):
    about = read_onnx_metadata(models.exported(logistic).out.read_bytes())
    assert json.loads(about["classes"]) == ["ants", "bees"]
    assert json.loads(about["headstart.format"]) == job.EXPORT_FORMAT
    assert about["headstart.version"] == headstart.__version__
    assert json.loads(about["headstart.spaces"])[0]["backbone"] == "efficientnet_lite0"
    assert json.loads(about["headstart.input_size"]) == [32]
    assert json.loads(about["headstart.temperature"]) == pytest.approx(headstart.load(logistic).model.temperature)
    assert json.loads(about["headstart.multi_label"]) is False
    assert json.loads(about["headstart.before"]) == {}


@pytest.mark.usefixtures("traced_once")
def test_nothing_of_this_machine_is_in_the_file(models, logistic):
    data = models.exported(logistic).out.read_bytes()
    for path in (Path(headstart.__file__).parent, Path(onnx.__file__).parent.parent, models.folder, Path.home()):
        assert str(path).encode() not in data


@pytest.mark.slow
def test_the_same_model_gives_the_same_bytes(models, logistic, tmp_path):
    again = headstart.export(logistic, out=tmp_path / "again.onnx", cache=models.cache, pictures=1)
    assert again.out.read_bytes() == models.exported(logistic).out.read_bytes()


def spoilt(monkeypatch: pytest.MonkeyPatch, module: object, name: str) -> None:
    """Let a way to run files answer 2e-3 beside the truth."""
    real = getattr(module, name)

    def wrong(data):
        run = real(data)
        return lambda images: run(images) + np.array([2e-3, -2e-3], np.float32)

    monkeypatch.setattr(module, name, wrong)


@pytest.mark.usefixtures("traced_once")
def test_a_graph_that_says_something_else_is_not_written(models, logistic, tmp_path, monkeypatch):
    spoilt(monkeypatch, job, "onnx_runner")
    out = tmp_path / "wrong.onnx"
    with pytest.raises(HeadstartError, match=r"differ by 2\.0e-03, and 0\.001 is allowed; nothing was written"):
        headstart.export(logistic, out=out, cache=models.cache, pictures=2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("traced_once")
def test_where_the_resize_fails_the_graph_begins_after_it(models, logistic, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(
        onnx_graph.Nodes, "_middle", lambda self, _length, _side: self.whole(0)
    )  # a corner instead of the centre
    with caplog.at_level("WARNING", "headstart"):
        made = headstart.export(logistic, out=tmp_path / "after.onnx", cache=models.cache, pictures=6)
    assert made.resize == "before the graph"
    assert made.max_difference < NEAR
    assert "the resize is not in the graph" in caplog.text


def test_what_no_node_can_resize_begins_after_it(logistic, monkeypatch):
    blunt = replace(Geometry(40, 32, "bilinear", antialias=True), antialias=False)
    whole = network.Whole(None, (blunt,), 0)
    monkeypatch.setattr(job, "network_graph", lambda _: None)
    assert not job._Maker("onnx", None, whole).can_resize()
    assert job._Maker("torch", None, whole).can_resize()


@pytest.mark.usefixtures("traced_once")
def test_pictures_of_data_are_compared(models, logistic, few, tmp_path):
    made = headstart.export(logistic, few / "val" / "ants", out=tmp_path / "a.onnx", cache=models.cache, pictures=3)
    assert (made.pictures, made.compared_on) == (3, str(few / "val" / "ants"))


@pytest.mark.usefixtures("traced_once")
def test_without_pictures_synthetic_ones_are_taken_and_that_is_said(models, logistic, tmp_path, caplog):
    moved = tmp_path / "model"
    shutil.copytree(logistic, moved)
    content = json.loads((moved / "model.json").read_text())
    content["training"]["source"] = str(tmp_path / "gone")
    (moved / "model.json").write_text(json.dumps(content))
    with caplog.at_level("WARNING", "headstart"):
        made = headstart.export(moved, out=tmp_path / "a.onnx", cache=models.cache)
    assert made.compared_on == "synthetic pictures"
    assert made.sizes == made.pictures == 8
    assert made.max_difference < 1e-3
    assert "taking synthetic ones" in caplog.text


def test_a_file_that_is_there_is_replaced_only_when_asked(models, logistic, tmp_path):
    out = tmp_path / "mine.onnx"
    out.write_bytes(b"mine")
    with pytest.raises(OutputError, match="pass --overwrite"):
        headstart.export(logistic, out=out, cache=models.cache)
    assert out.read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"out": "model.pb"}, "ends in .onnx"),
        ({"format": "torch", "out": "model.onnx"}, "ends in .pt2"),
        ({"format": "tflite"}, "format must be one of onnx, torch"),
        ({"input": "pixels"}, "input must be one of picture, crop"),
        ({"pictures": 0}, "above 0"),
    ],
    ids=str,
)
def test_wrong_words_are_told_before_the_work(logistic, options, message):
    with pytest.raises(UsageError, match=message):
        headstart.export(logistic, **options)


def test_a_missing_library_names_the_extra(logistic, monkeypatch):
    monkeypatch.setattr(onnx_graph.importlib.util, "find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(MissingExtraError, match=r'needs onnxscript; run `pip install "headstart\[onnx\]"`'):
        headstart.export(logistic, out="never.onnx")


def test_a_network_that_is_too_large_for_one_file_is_told(logistic, monkeypatch):
    monkeypatch.setattr(onnx_graph, "MOST_BYTES", 10_000_000)
    with pytest.raises(HeadstartError, match="an ONNX file holds 2 at most; pass --format torch"):
        headstart.export(logistic, out="never.onnx", pictures=1)


def test_networks_that_see_other_crops_share_no_crop(models, few, tmp_path):
    options = {"backbone": "mobilenet_v3_small", "weights": "none", "resize": 64, "crop": 64}
    headstart.extract(few, cache=models.cache, **options)
    model = models.fitted("joined", features=["efficientnet_lite0", "mobilenet_v3_small"], l2_norm=True, pca=10)
    with pytest.raises(ModelError, match="takes one crop for all networks"):
        headstart.export(model, input="crop", out=tmp_path / "a.onnx", cache=models.cache, pictures=1)


@pytest.mark.usefixtures("traced_once")
def test_the_command_prints_one_line_of_json_and_no_chatter(models, logistic, few, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    words = ["export", str(logistic), str(few), "--pictures", "2", "--cache", str(models.cache), "--json"]
    capfd.readouterr()
    assert main(words) == 0
    out, err = capfd.readouterr()
    answer = json.loads(out)
    assert answer["format"] == "onnx"
    assert answer["out"] == "logistic.onnx"
    assert answer["bytes"] == (tmp_path / "logistic.onnx").stat().st_size
    assert answer["max_difference"] < 1e-5
    assert {line.split()[0] for line in err.splitlines()} <= {"looking", "loading", "tracing", "writing"}


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "torch"])
def test_every_kind_of_model(models, few, tmp_path, format):
    headstart.extract(few, cache=models.cache, backbone="mobilenet_v3_small", weights="none", resize=64, crop=64)
    small = {"backbone": "efficientnet_lite0", "resize": 40, "crop": 32}
    headstart.extract(few, cache=models.cache, layer="_blocks.10", store_dtype="float16", **small)
    joined = ["efficientnet_lite0:_blocks.10", "mobilenet_v3_small"]
    tuned = tmp_path / "tuned"
    headstart.finetune(few, out=tuned, cache=models.cache, epochs=1, train="_blocks.15", select_on="last", **small)
    kinds = {
        "joined-wide": models.fitted("joined-wide", features=joined, l2_norm=True, pca=10),
        "knn": models.fitted("knn", features=["efficientnet_lite0:fc.input"], head="knn"),
        "mlp": models.fitted("mlp", features=["mobilenet_v3_small"], head="mlp"),
        "tuned": tuned,
    }
    for name, model in kinds.items():
        suffix = "onnx" if format == "onnx" else "pt2"
        made = headstart.export(model, few, format=format, out=tmp_path / f"{name}.{suffix}", cache=models.cache)
        assert made.max_difference < 1e-4, name


@pytest.mark.slow
def test_several_labels_an_image(models, few, tmp_path):
    lines = [
        f"{path},{'|'.join([path.parent.name, *(['first'] if number % 2 else [])])}"
        for number, path in enumerate(sorted(few.rglob("*.jpg")))
    ]
    (tmp_path / "labels.csv").write_text("\n".join(["path,labels", *lines, ""]))
    options = {"backbone": "resnet18", "weights": "none", "resize": 40, "crop": 32, "cache": models.cache}
    headstart.extract(tmp_path / "labels.csv", **options)
    fit = headstart.fit_head(tmp_path / "labels.csv", cache=models.cache, out=tmp_path / "model")
    made = headstart.export(fit.out, out=tmp_path / "several.onnx", cache=models.cache, pictures=4)
    assert made.max_difference < NEAR
    about = read_onnx_metadata(made.out.read_bytes())
    assert json.loads(about["headstart.multi_label"]) is True
    assert len(json.loads(about["headstart.thresholds"])) == len(json.loads(about["classes"])) == 3
