"""Resizing and cropping, as nodes of ONNX and as traced by torch, against what `extract` does with every picture."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from headstart.classify.export.network import Geometry
from headstart.classify.export.onnx_graph import IR_VERSION, OPSET
from headstart.classify.export.pixels import Nodes, fits
from headstart.classify.export.torch_graph import _crops
from headstart.classify.export.tracing import traced
from headstart.extract.preprocess import to_input

CROP = 56
RESIZES = (64, 56, 40, None, (50, 70), (70, 90))
# Landscape, portrait, as large as the crop, smaller, strips that are cut, odd differences, one side as wanted already.
SHAPES = (
    (100, 150),
    (151, 100),
    (56, 56),
    (13, 20),
    (20, 13),
    (1, 300),
    (300, 1),
    (7, 7),
    (333, 57),
    (64, 65),
    (200, 67),
)


def noise(high: int, wide: int, count: int = 2) -> np.ndarray:
    return np.random.default_rng([high, wide]).integers(0, 256, (count, high, wide, 3), dtype=np.uint8)


def expected(images: np.ndarray, geometry: Geometry) -> np.ndarray:
    return np.stack([to_input(image, geometry.preprocess())[0] for image in images])


def session(geometry: Geometry) -> onnxruntime.InferenceSession:
    nodes = Nodes()
    nodes.crops("image", [geometry], ["crop"])
    graph = helper.make_graph(
        nodes.nodes,
        "pixels",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", "H", "W", 3])],
        [helper.make_tensor_value_info("crop", TensorProto.UINT8, ["N", geometry.crop, geometry.crop, 3])],
        nodes.constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("resize", RESIZES, ids=str)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest", "nearest-exact"])
def test_nodes_give_the_pixels_that_extract_gives(interpolation, resize):
    geometry = Geometry(resize, CROP, interpolation, antialias=True)
    run = session(geometry)
    apart = values = 0
    for shape in SHAPES:
        images = noise(*shape)
        found, wanted = run.run(None, {"image": images})[0], expected(images, geometry)
        assert found.shape == wanted.shape
        difference = np.abs(found.astype(int) - wanted)
        assert difference.max() <= 1, shape
        apart, values = apart + int((difference > 0).sum()), values + difference.size
    assert apart <= values / 20_000  # sums that lie between two levels, but for the rounding of float32


def test_nodes_differ_where_the_filter_does():
    images = noise(100, 150)
    bilinear, bicubic = (Geometry(64, CROP, name, antialias=True) for name in ("bilinear", "bicubic"))
    found = session(bilinear).run(None, {"image": images})[0]
    assert np.abs(found.astype(int) - expected(images, bicubic)).max() > 1


def test_a_large_photograph_is_resized_alike(few):
    from PIL import Image

    path = sorted(few.rglob("*.jpg"))[0]
    image = np.asarray(Image.open(path).convert("RGB").resize((2016, 1512)))[None]
    geometry = Geometry(256, 224, "bicubic", antialias=True)
    difference = np.abs(session(geometry).run(None, {"image": image})[0].astype(int) - expected(image, geometry))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-4


def test_smooth_resizing_without_a_filter_is_not_for_nodes():
    assert not fits(Geometry(64, CROP, "bilinear", antialias=False))
    assert fits(Geometry(64, CROP, "nearest", antialias=False))


@pytest.mark.parametrize(
    "geometry",
    [
        Geometry(64, CROP, "bilinear", antialias=True),
        Geometry(40, CROP, "bicubic", antialias=True),
        Geometry(None, CROP, "bilinear", antialias=False),
        Geometry((50, 70), CROP, "nearest", antialias=True),
    ],
    ids=lambda geometry: f"{geometry.resize}-{geometry.interpolation}",
)
def test_a_traced_program_gives_the_pixels_that_extract_gives(geometry):
    class Pixels(torch.nn.Module):
        def forward(self, image):
            return _crops(image, (geometry,))[0]

    sizes = ({0: torch.export.Dim("N"), 1: torch.export.Dim("H"), 2: torch.export.Dim("W")},)
    program = traced(Pixels(), (torch.zeros(2, 301, 467, 3, dtype=torch.uint8),), sizes).module()
    for shape in SHAPES:
        for count in (1, 3):
            images = noise(*shape, count)
            assert np.array_equal(program(torch.from_numpy(images)).numpy(), expected(images, geometry)), shape
