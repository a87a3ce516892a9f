"""A classifier as a graph of ONNX."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import HeadstartError, MissingExtraError
from .network import Whole, blank_crops
from .pixels import Nodes
from .tracing import quiet, traced

if TYPE_CHECKING:
    from onnx import ModelProto

OPSET, IR_VERSION = 18, 10  # the oldest that has what is needed, so that runtimes of 2023 and 2024 read the files
MOST_BYTES = 2_000_000_000  # of numbers, in the one file: protobuf ends at 2 GiB
INPUT, OUTPUT = "image", "probabilities"
_NEEDED = ("onnx", "onnxscript", "onnxruntime")


def require_onnx() -> None:
    """Raise where the libraries are not there.

    Raises
    ------
    MissingExtraError
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f'--format onnx needs {", ".join(missing)}; run `pip install "headstart[onnx]"`, or pass --format torch'
        )


def network_graph(whole: Whole) -> ModelProto:
    """Return the graph from crops on, with an input for each of the geometries.

    Raises
    ------
    HeadstartError
        It cannot be traced, or is too large for one file.
    """
    import torch
    from torch.export import Dim

    if whole.bytes > MOST_BYTES:
        raise HeadstartError(
            f"the network has {whole.bytes / 1e9:.1f} GB of numbers and an ONNX file holds 2 at most; "
            "pass --format torch"
        )
    crops = blank_crops(whole.geometries)
    batch = Dim("N")
    program = traced(whole.module, crops, (({0: batch},) * len(crops),))
    with quiet():
        made = torch.onnx.export(program, crops, dynamo=True, opset_version=OPSET, verbose=False, external_data=False)
    if made is None:
        raise HeadstartError("torch's exporter gave no graph for this network; pass --format torch")
    return _clean(made.model_proto)


def onnx_file(network: ModelProto, whole: Whole, metadata: dict[str, str], *, pictures: bool) -> bytes:
    """Return the bytes of an ONNX file with one input and one output.

    Parameters
    ----------
    network : ModelProto
        As `network_graph` gives it; it is left as it is.
    whole : Whole
    metadata : dict of str to str
    pictures : bool
        Whether the graph begins with whole pictures, (N, H, W, 3) uint8, or with crops, (N, S, S, 3) uint8.
    """
    import onnx
    from onnx import TensorProto, helper

    graph = network.graph
    names, side = [each.name for each in graph.input], whole.geometries[0].crop
    pixels = Nodes()
    if pictures:
        pixels.crops(INPUT, whole.geometries, names)
    else:
        pixels.add("Identity", INPUT, output=names[0])
    pixels_of: list[str | int | None] = ["N", "H", "W", 3] if pictures else ["N", side, side, 3]
    classes = graph.output[0].type.tensor_type.shape.dim[1].dim_value
    joined = helper.make_graph(
        [*pixels.nodes, *graph.node],
        "headstart",
        [helper.make_tensor_value_info(INPUT, TensorProto.UINT8, pixels_of)],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["N", classes])],
        [*pixels.constants, *graph.initializer],
    )
    _rename_output(joined, graph.output[0].name)
    opsets = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(
        joined, opset_imports=opsets, ir_version=IR_VERSION, producer_name="headstart", functions=network.functions
    )
    helper.set_model_props(model, metadata)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString(deterministic=True))


def onnx_runner(data: bytes) -> Callable[[np.ndarray], np.ndarray]:
    """Return what runs an exported file: images (N, H, W, 3) uint8 to probabilities (N, K) float32."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors alone
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return lambda images: np.asarray(session.run([OUTPUT], {INPUT: images})[0])


def _clean(model: ModelProto) -> ModelProto:
    """Take out what torch notes of where each node came from, which has paths of this machine in it."""
    for each in (*model.graph.node, *model.graph.initializer, *(n for f in model.functions for n in f.node)):
        each.doc_string = ""
        del each.metadata_props[:]
    return model


def _rename_output(graph: Any, name: str) -> None:
    for node in graph.node:
        for names in (node.input, node.output):
            for place, found in enumerate(names):
                if found == name:
                    names[place] = OUTPUT
