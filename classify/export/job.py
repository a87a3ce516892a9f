"""Export a saved model: one graph from pictures to probabilities, compared with `predict` before it is written."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ... import __version__
from ...cache.source import source_of
from ...errors import ModelError, OutputError, UsageError, printable
from ...extract.options import RunOptions
from ..model import SavedModel, load_model
from ..result_file import check_file, check_no_input, write_file
from .network import Geometry, Whole, geometries_of, whole_network
from .onnx_graph import network_graph, onnx_file, onnx_runner, require_onnx
from .parity import TOLERANCE, Comparison, Pictures, Runner, compare, pictures_for, pillow_filter
from .pixels import fits
from .torch_graph import torch_file, torch_runner

logger = logging.getLogger("headstart.classify")

EXPORT_FORMAT = 1
SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}
INPUTS = ("picture", "crop")
PICTURES = 32
IN_GRAPH, BEFORE_GRAPH = "in the graph", "before the graph"
_UPRIGHT = "RGB, upright (EXIF orientation applied), transparency on white"


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """A written file.

    Attributes
    ----------
    format : {"onnx", "torch"}
    out : Path
    bytes : int
        Its size.
    max_difference : float
        Largest difference of a probability from that of `predict`, over all pictures and classes.
    alone_difference : float
        The same where Pillow alone prepares the pictures, as the example does.
    compared_on : str
        The dataset, or "synthetic pictures".
    pictures, sizes : int
        How many were compared, of how many different sizes.
    resize : {"in the graph", "before the graph"}
    input : tuple of (int or str)
        Shape of the input; a letter for what may vary.
    classes : tuple of str
    seconds : float
    """

    format: str
    out: Path
    bytes: int
    max_difference: float
    alone_difference: float
    compared_on: str
    pictures: int
    sizes: int
    resize: str
    input: tuple[int | str, ...]
    classes: tuple[str, ...]
    seconds: float

    def summary(self) -> dict[str, Any]:
        """Return the fields of ``export --json``."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        return {**fields, "out": str(self.out), "input": list(self.input), "classes": list(self.classes)}

    def lines(self) -> list[str]:
        """Return the same for people."""
        shape = ", ".join(map(str, self.input))
        size = f"{self.bytes / 1e6:.1f} MB" if self.bytes >= 1e6 else f"{self.bytes // 1000 + 1} kB"
        sizes = f"{self.sizes} size{'s' if self.sizes > 1 else ''}"
        lines = [
            f"wrote {printable(self.out)}: {size}, {len(self.classes)} classes",
            f"input: image ({shape}) uint8, {_UPRIGHT}; the resize is {self.resize}",
            f"compared with predict on {self.pictures} pictures of {sizes} from {printable(self.compared_on)}: "
            f"probabilities differ by {self.max_difference:.1e} at most",
        ]
        if self.alone_difference > self.max_difference:
            lines.append(f"where Pillow alone prepares the pictures: by {self.alone_difference:.1e} at most")
        return lines


def export(
    model: str | os.PathLike[str],
    data: str | os.PathLike[str] | None = None,
    *,
    format: str = "onnx",
    out: str | os.PathLike[str] | None = None,
    input: str = "picture",
    pictures: int = PICTURES,
    overwrite: bool = False,
    cache: str | os.PathLike[str] | None = None,
    run: RunOptions | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Exported:
    """Write a saved model as one graph that runs without headstart.

    Parameters
    ----------
    model : path
        The model's folder.
    data : path, optional
        Pictures to compare on: a dataset as `extract` takes it. Those that the model was trained on where it is None,
        and synthetic ones where they are not there any more, which is said.
    format : {"onnx", "torch"}, default "onnx"
    out : path, optional
        The file; the name of the model's folder with ``.onnx`` or ``.pt2``, in the working directory, where it is None.
    input : {"picture", "crop"}, default "picture"
        What the graph begins with: whole pictures, (N, H, W, 3) uint8, or those that have been resized and cropped,
        (N, S, S, 3). Where the resize cannot be told in the graph it is the latter, which is said.
    pictures : int, default 32
        Compared at most, evenly chosen.
    overwrite : bool, default False
        Replace a file that is there.
    cache : path, optional
        Where `predict` looks for embeddings and keeps them.
    run : RunOptions, optional
        How `predict` computes what is compared with. The graph itself is of float32 always.
    stopped : callable, optional
        Asked between stages.

    Returns
    -------
    Exported

    Raises
    ------
    HeadstartError
        The model cannot be told as one graph, or the graph says something else than `predict` by more than 0.001;
        nothing is written then.
    KeyboardInterrupt
        `stopped` said True.
    """
    began = time.perf_counter()
    run = run or RunOptions()
    _check_words(format, input, pictures)
    out = Path(out) if out is not None else Path(Path(os.path.abspath(model)).name + SUFFIXES[format])  # noqa: PTH100
    check_file(out, SUFFIXES[format], overwrite=overwrite)
    if format == "onnx":
        require_onnx()
    saved = load_model(Path(model))
    _check_one_crop(geometries_of(saved), input)
    compared = pictures_for(saved, None if data is None else source_of(data), cache, run, pictures)
    check_no_input(out, [row.path for row in compared.rows])
    logger.info("tracing %s", ", ".join(dict.fromkeys(space["backbone"] for space in saved.spaces)))
    whole = whole_network(saved)
    maker = _Maker(format, saved, whole)
    _go_on(stopped)
    logger.info("writing the graph, and running it on %d pictures", len(compared.rows))
    file, crop, comparison = _best_file(maker, compared, input)
    _go_on(stopped)
    write_file(out, file)
    return Exported(
        format=format,
        out=out,
        bytes=len(file),
        max_difference=comparison.max_difference,
        alone_difference=comparison.alone_difference,
        compared_on=compared.name,
        pictures=len(compared.rows),
        sizes=len({row.pixels.shape for row in compared.rows}),
        resize=BEFORE_GRAPH if crop else IN_GRAPH,
        input=("N", crop.crop, crop.crop, 3) if crop else ("N", "H", "W", 3),
        classes=saved.classes,
        seconds=time.perf_counter() - began,
    )


def _go_on(stopped: Callable[[], bool]) -> None:
    if stopped():
        raise KeyboardInterrupt("interrupted: nothing was written")


class _Maker:
    """Makes files of one format, tracing the network once.

    Parameters
    ----------
    format : str
    model : SavedModel
    whole : Whole
    """

    def __init__(self, format: str, model: SavedModel, whole: Whole) -> None:
        self.format, self.model, self.whole = format, model, whole
        graph = network_graph(whole) if format == "onnx" else None
        self._make: Callable[..., bytes] = (
            torch_file if graph is None else lambda *given, **more: onnx_file(graph, *given, **more)
        )

    def file(self, crop: Geometry | None) -> tuple[bytes, Runner]:
        """Return the bytes of a file that begins with whole pictures or, where given, with crops; and how it runs."""
        data = self._make(self.whole, metadata_of(self.model, self.whole, crop), pictures=crop is None)
        return data, onnx_runner(data) if self.format == "onnx" else torch_runner(data)

    def can_resize(self) -> bool:
        """Tell whether the graph can begin with whole pictures."""
        return self.format == "torch" or all(map(fits, self.whole.geometries))


def _best_file(maker: _Maker, compared: Pictures, input: str) -> tuple[bytes, Geometry | None, Comparison]:
    """Return a file that passes the comparison: with the resize in it where that is wanted and can be."""
    geometries = maker.whole.geometries
    if input == "picture" and maker.can_resize():
        data, runner = maker.file(None)
        comparison = compare(runner, compared, None)
        if comparison.max_difference <= TOLERANCE:
            return data, None, comparison
        logger.debug("with the resize in the graph, probabilities differ by %g", comparison.max_difference)
    _check_one_crop(geometries, "crop")
    data, runner = maker.file(geometries[0])
    comparison = compare(runner, compared, geometries[0])
    if comparison.max_difference > TOLERANCE:
        raise OutputError(
            f"the exported graph says something else than predict: probabilities differ by "
            f"{comparison.max_difference:.1e}, and {TOLERANCE:g} is allowed; nothing was written"
        )
    if input == "picture":
        logger.warning("the resize is not in the graph: it begins with pictures that have been resized and cropped")
    return data, geometries[0], comparison


def _check_one_crop(geometries: tuple[Geometry, ...], input: str) -> None:
    if input == "crop" and len(geometries) > 1:
        raise ModelError(
            "a graph that begins after the resize takes one crop for all networks, and those of this model see "
            "different ones; give them the same --resize, --crop and --interpolation, or take --input picture"
        )


def metadata_of(model: SavedModel, whole: Whole, crop: Geometry | None) -> dict[str, str]:
    """Return what is written into a file beside the graph; all but the plain words are JSON.

    Parameters
    ----------
    model : SavedModel
    whole : Whole
    crop : Geometry or None
        Where the graph begins with pictures that were resized and cropped, how.
    """
    what = {
        "classes": list(model.classes),
        "headstart.format": EXPORT_FORMAT,
        "headstart.version": __version__,
        "headstart.kind": model.kind,
        "headstart.spaces": model.spaces,
        "headstart.multi_label": model.multi_label,
        "headstart.thresholds": model.thresholds,
        "headstart.temperature": model.temperature,
        "headstart.input_size": [each.crop for each in whole.geometries],
        "headstart.before": _before(crop) if crop else {},
    }
    written = {name: each if isinstance(each, str) else json.dumps(each, sort_keys=True) for name, each in what.items()}
    return {
        **written,
        "headstart.input": f"image, uint8, {_UPRIGHT}",
        "headstart.resize": BEFORE_GRAPH if crop else IN_GRAPH,
        "headstart.caller": _caller(crop),
    }


def _before(crop: Geometry) -> dict[str, Any]:
    """Return how pictures were resized and cut: the short side (or height and width), the side, Pillow's filter."""
    return {"resize": crop.resize, "crop": crop.crop, "filter": pillow_filter(crop)}


def _caller(crop: Geometry | None) -> str:
    """Return in words what a program must do before the graph."""
    if crop is None:
        return "decode; pictures of one call must have one size"
    resize = "" if crop.resize is None else f"resize to {crop.resize} pixels ({crop.interpolation}), "
    return f"decode, {resize}enlarge where a side is below {crop.crop}, cut the centre of {crop.crop} x {crop.crop}"


def _check_words(format: str, input: str, pictures: int) -> None:
    if format not in SUFFIXES:
        raise UsageError(f"format must be one of {', '.join(SUFFIXES)}; got {format!r}")
    if input not in INPUTS:
        raise UsageError(f"input must be one of {', '.join(INPUTS)}; got {input!r}")
    if not isinstance(pictures, int) or pictures < 1:
        raise UsageError(f"pictures must be a whole number above 0; got {pictures!r}")
