"""Where an embedding is taken from a network, and how a map or a row of tokens becomes a vector.

A layer is named by its module: ``layer3`` is what that module gives, ``layer3.input`` what it receives. Several may be
taken in one pass, which ends at the last of them, so later layers cost nothing.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import BackboneError
from .weights import one_line

if TYPE_CHECKING:
    from torch import Tensor, nn

POOLS = ("avg", "max", "gem", "token", "none")
# Top-level modules that are the classifier, in the order of preference.
CLASSIFIER_NAMES = ("fc", "classifier", "heads", "head")
_INPUT = ".input"
# Generalised mean pooling, Radenovic et al. 2018: its power, and the floor that keeps roots defined.
_GEM_POWER = 3.0
_GEM_FLOOR = 1e-6
# What a network raises when it is given a size that it was not made for.
_REFUSALS = (RuntimeError, AssertionError, TypeError, IndexError)


@dataclass(frozen=True, slots=True)
class Point:
    """One place in a network.

    Attributes
    ----------
    module : str
        Name of the module.
    at_input : bool
        Whether what it receives is taken, or what it gives.
    in_classifier : bool
        Whether parameters of the classifier have a say in the value.
    """

    module: str
    at_input: bool
    in_classifier: bool

    @property
    def layer(self) -> str:
        """The point as the user names it."""
        return self.module + _INPUT if self.at_input else self.module


class _Reached(Exception):  # noqa: N818 - no error, but the way out of the forward pass
    def __init__(self) -> None:
        pass  # without super().__init__(), which torch 2.10 cannot compile


@dataclass(frozen=True, slots=True)
class Output:
    """What is taken at one point: the pooling as resolved, over which axes, and the width of the vector."""

    point: Point
    pool: str
    axes: tuple[int, ...]
    dim: int


class Tap:
    """A network that ends at the last of some layers and gives one vector per image for each of them.

    Calling it is a forward pass: normalised images, (N, 3, S, S) of the network's dtype, to (N, D) float32, the vectors
    of all layers side by side. The hooks that take the values and end the pass stay in the network until `release`;
    ``torch.compile`` traces through them into one graph.

    Parameters
    ----------
    network : Module
        The whole network, in eval mode.
    name : str
        Name of the backbone, for messages.
    points : sequence of Point
        Where to take values, at least one and all different. A module that is called several times counts the first
        time.
    pool : str or None, or a tuple of them
        One of `POOLS`, or None for what suits each value's shape; a tuple has one for each point.
    size : int
        Side in pixels of the input.

    Attributes
    ----------
    outputs : tuple of Output
        One a point. Their pooling is as resolved: "none" for a vector, "avg" for a map, for tokens "token" where the
        network has a class token and "avg" (over all of them) where not. Widths are measured by one pass of a blank
        image.
    dim : int
        Width D of all vectors together.

    Raises
    ------
    BackboneError
        A layer is never reached, gives no tensor with one row an image, or does not go with `pool`; or the network
        refuses images of this size.
    """

    def __init__(
        self,
        network: nn.Module,
        name: str,
        points: Sequence[Point],
        pool: str | tuple[str | None, ...] | None,
        size: int,
    ) -> None:
        self.network = network
        self.points = tuple(points)
        self._name = name
        self._values: dict[int, Any] = {}
        self.outputs: tuple[Output, ...] = ()
        self._handles = [self._hook(place, point) for place, point in enumerate(self.points)]
        try:
            pools = pool if isinstance(pool, tuple) else (pool,) * len(self.points)
            self.outputs = self._measure(pools, size)
        except Exception:
            self.release()
            raise
        self.dim = sum(output.dim for output in self.outputs)

    def __call__(self, images: Tensor) -> Tensor:
        """Return (N, D) float32 for normalised `images`."""
        import torch

        rows = self._run(images)
        return rows[0] if len(self.outputs) == 1 else torch.cat([rows[i] for i in range(len(self.outputs))], dim=1)

    def release(self) -> nn.Module:
        """Take the hooks out and return the network, whole again; the tap is of no use afterwards."""
        for handle in self._handles:
            handle.remove()
        return self.network

    def _hook(self, place: int, point: Point) -> Any:
        module = self.network.get_submodule(point.module)
        if point.at_input:
            return module.register_forward_pre_hook(
                lambda _, args, kwargs: self._take(place, args[0] if args else next(iter(kwargs.values()), None)),
                with_kwargs=True,
            )
        return module.register_forward_hook(lambda _module, _args, output: self._take(place, output))

    def _take(self, place: int, value: Any) -> None:
        if place in self._values:
            return
        if not self.outputs:  # they are being measured: shapes are wanted alone
            self._values[place] = value
        else:
            # At once, and by a copy: the next layer may work in the same memory (ReLU does, often, and residual sums).
            output = self.outputs[place]
            row = _pooled(value.float(), output.pool, output.axes)
            self._values[place] = row.clone() if output.pool in ("token", "none") else row
        if len(self._values) == len(self.points):
            raise _Reached

    def _measure(self, pools: Sequence[str | None], size: int) -> tuple[Output, ...]:
        import torch

        parameter = next(self.network.parameters())
        blank = torch.zeros(1, 3, size, size, device=parameter.device, dtype=parameter.dtype)
        with torch.inference_mode():
            try:
                values = self._run(blank)
            except _REFUSALS as error:
                raise BackboneError(
                    f"{self._name} does not take images of {size} x {size} pixels: {one_line(error)};"
                    " leave --crop out for the size of its weights"
                ) from error
            return tuple(self._output(point, values[place], pools[place]) for place, point in enumerate(self.points))

    def _output(self, point: Point, value: Any, pool: str | None) -> Output:
        from torch import Tensor

        where = f"{point.layer} of {self._name}"
        if not isinstance(value, Tensor):
            found = f"{len(value)} values" if isinstance(value, (tuple, list, dict)) else type(value).__name__
            raise BackboneError(f"{where} is {found}, wanted one tensor; choose another layer")
        pool, axes = _resolve_pool(where, pool, tuple(value.shape), self.network)
        return Output(point, pool, axes, int(_pooled(value.float(), pool, axes).shape[1]))

    def _run(self, images: Tensor) -> dict[int, Any]:
        self._values = {}
        try:
            self.network(images)
        except _Reached:
            values, self._values = self._values, {}
            return values
        missed = next(point for place, point in enumerate(self.points) if place not in self._values)
        raise BackboneError(f"{self._name} never calls {missed.module} by itself; choose the layer around it")


def drift(before: Tensor, after: Tensor, widths: Sequence[int]) -> float:
    """Return how far rows moved: the largest difference over the row's largest number, each layer by itself.

    Parameters
    ----------
    before, after : Tensor, (N, D)
        Vectors of several layers side by side.
    widths : sequence of int
        Width of each.
    """
    moved = 0.0
    ends = list(itertools.accumulate(widths))
    for start, end in zip([0, *ends], ends, strict=False):
        old, new = before[:, start:end], after[:, start:end]
        share = (new - old).abs().amax(1) / old.abs().amax(1).clamp(min=1e-12)
        moved = max(moved, float(share.max()))
        if not bool(share.isfinite().all()):
            return float("inf")
    return moved


def find_classifier(network: nn.Module, name: str) -> str:
    """Return the name of the top-level module that classifies.

    Raises
    ------
    BackboneError
        The network has none of `CLASSIFIER_NAMES`.
    """
    children = dict(network.named_children())
    for wanted in CLASSIFIER_NAMES:
        if wanted in children:
            return wanted
    raise BackboneError(f"{name} has no module named {' or '.join(CLASSIFIER_NAMES)}; choose another backbone")


def find_point(network: nn.Module, name: str, classifier: str, layer: str | None) -> Point:
    """Return the place that `layer` names; None is the input of the classifier.

    Parameters
    ----------
    network : Module
        The whole network.
    name : str
        Name of the backbone, for messages.
    classifier : str
        Name of its classifier.
    layer : str or None
        Name of a module, or that and ``.input``.

    Raises
    ------
    BackboneError
        No such module; the nearest names and the outermost modules are listed.
    """
    module, at_input = find_module(network, name, classifier + _INPUT if layer is None else layer)
    inside = module.startswith(classifier + ".") or (module == classifier and not at_input)
    return Point(module, at_input, inside)


def find_module(network: nn.Module, name: str, layer: str) -> tuple[str, bool]:
    """Return the name of the module that `layer` names, and whether its input is meant.

    Raises
    ------
    BackboneError
        No such module; the nearest names and the outermost modules are listed.
    """
    modules = [module for module, _ in network.named_modules() if module]
    at_input = layer not in modules and layer.endswith(_INPUT)
    module = layer.removesuffix(_INPUT) if at_input else layer
    if module not in modules:
        raise BackboneError(_unknown_layer(network, name, layer, modules))
    return module, at_input


def _unknown_layer(network: nn.Module, name: str, layer: str, modules: Sequence[str]) -> str:
    near = difflib.get_close_matches(layer.removesuffix(_INPUT), modules, n=3)
    nearest = f"; nearest: {', '.join(near)}" if near else ""
    outermost = ", ".join(child for child, _ in network.named_children())
    return (
        f"no layer {layer!r} in {name}{nearest}; layers of {name}: {outermost}"
        " (add .0, .1 or a name to go inside, .input for what a layer receives)"
    )


def _resolve_pool(
    where: str, pool: str | None, shape: tuple[int, ...], network: nn.Module
) -> tuple[str, tuple[int, ...]]:
    if len(shape) < 2 or shape[0] != 1:
        raise BackboneError(f"{where} is {_times(shape)} for one image, wanted one row an image; choose another layer")
    token = len(shape) == 3 and _has_class_token(network)
    allowed = {2: ("none",), 3: ("avg", "max", "gem", "token", "none"), 4: ("avg", "max", "gem", "none")}
    choices = [kind for kind in allowed.get(len(shape), ("none",)) if kind != "token" or token]
    if pool is None:
        pool = "token" if token else choices[0]
    if pool not in choices:
        raise BackboneError(
            f"pool {pool} does not go with {where}, which is {_times(shape[1:])} an image;"
            f" choose from {', '.join(choices)}"
        )
    return pool, {3: (1,), 4: _map_axes(shape)}.get(len(shape), ())


def _map_axes(shape: tuple[int, ...]) -> tuple[int, int]:
    # Inputs are square, so the two equal sides are height and width; Swin keeps its channels last.
    channels_last = len(shape) == 4 and shape[1] == shape[2] != shape[3]
    return (1, 2) if channels_last else (2, 3)


def _has_class_token(network: nn.Module) -> bool:
    names = ("class_token", "cls_token")
    return any(getattr(module, name, None) is not None for module in network.modules() for name in names)


def _pooled(value: Tensor, pool: str, axes: tuple[int, ...]) -> Tensor:
    if pool == "avg":
        return value.mean(axes)
    if pool == "max":
        return value.amax(axes)
    if pool == "gem":
        return value.clamp(min=_GEM_FLOOR).pow(_GEM_POWER).mean(axes).pow(1 / _GEM_POWER)
    return value[:, 0] if pool == "token" else value.flatten(1)


def _times(shape: Sequence[int]) -> str:
    return " x ".join(str(length) for length in shape)
