"""The part of a network behind the input of one layer, run by itself on activations kept from an earlier pass.

The network's own code runs, so nothing has to be known of how it joins its modules. But the modules that are through
before the layer begins do not compute: each returns zeros, without memory of their own, in the shape that it gave when
it was watched, and at the layer what was kept takes their place. That is the same function where everything behind the
layer depends on the images through this one value, which `Replay.exact` finds out.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import BackboneError
from .depth import evaluating, leaves
from .taps import drift, find_module
from .weights import one_line

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from .backbone import Backbone

logger = logging.getLogger("headstart.extract")

# Both ways run the same functions on the same numbers; what moves more than this came by another way.
TOLERANCE = 1e-5
# What a network raises that cannot work with zeros.
_FAILURES = (RuntimeError, AssertionError, TypeError, IndexError, ValueError, BackboneError)


class Replay:
    """A network from the input of one layer to its tap.

    Nothing is left in the network between calls: whole passes run as before, and there is nothing to close.

    Parameters
    ----------
    backbone : Backbone
        Its tap must not have been released. Blank passes show what runs before the layer; the network is left as it
        was.
    layer : str
        A module, which counts when it is first called, or ``MODULE.input``, which is the same here. For one that is
        never called by itself, as a list of modules is not, the first of what is inside stands. Where the tap takes the
        input of this very module, the activations are what the tap takes, before its pooling.

    Attributes
    ----------
    layer : str
        The module whose input is kept.

    Raises
    ------
    BackboneError
        No such module; the nearest names are given.
    """

    def __init__(self, backbone: Backbone, layer: str) -> None:
        self._backbone = backbone
        self.layer, _ = find_module(backbone.module, backbone.name, layer)
        self._skipped: list[_Skipped] = []
        self._refusal: str | None = None
        one, two = _watch(backbone, 1), _watch(backbone, 2)
        entry = _entry(one, self.layer)
        if entry is None:
            self._refusal = "is not called by itself before the embedding is there"
        elif [call.name for call in one] != [call.name for call in two]:
            self._refusal = "comes after other modules when there are more images"
        elif not _one_row_an_image(entry.received, two[one.index(entry)].received):
            self._refusal = "does not receive one tensor with one row an image"
        else:
            self.layer = entry.name
            self._skipped = [
                _Skipped(backbone.module.get_submodule(name), one[place].gave, two[place].gave)
                for place, name in _through_before(one, entry)
            ]
            self._refusal = self._rehearse(entry.received)

    def activations(self, images: Tensor) -> Tensor:
        """Return what the layer receives, (N, ...), without gradients; the pass ends there.

        Parameters
        ----------
        images : Tensor, (N, 3, S, S)
            Normalised, of the network's dtype. The modules before the layer should be in eval mode.

        Raises
        ------
        BackboneError
            The layer does not receive one tensor with one row an image.
        """
        import torch

        self._refuse()

        def end(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            raise _Reached(_first(args, kwargs))

        # Tensors of inference mode could not be trained on.
        with torch.inference_mode(mode=False), torch.no_grad(), self._at_layer(end):
            try:
                self._backbone.tap(images)
            except _Reached as reached:
                return reached.value.detach()
        raise BackboneError(self._says("is not reached"))

    def from_activations(self, activations: Tensor) -> Tensor:
        """Return the embeddings, (N, D) float32, differentiable with respect to the parameters behind the layer.

        Parameters
        ----------
        activations : Tensor, (N, ...)
            From `activations`, or rows of it in any order; they are not written to.

        Raises
        ------
        BackboneError
            As from `activations`.
        """
        import torch

        return self._replay(activations, torch.zeros((), device=activations.device))

    def exact(self, images: Tensor) -> bool:
        """Return whether a replay is the same function as a whole pass.

        It is not where something goes around the layer's input, as in a block whose sum comes later, and where the
        layer does not receive one tensor. This is seen twice: in the graph behind the embedding, which must not lead to
        anything that was skipped, and in the numbers, which must agree to `TOLERANCE` of each row's largest. All
        modules are in eval mode meanwhile.

        Parameters
        ----------
        images : Tensor, (N, 3, S, S)
            As for `activations`.
        """
        import torch

        if self._refusal is not None:
            logger.debug("%s", self._says(self._refusal))
            return False
        with torch.inference_mode(mode=False), evaluating(self._backbone.module):
            with torch.no_grad():
                plain = self._backbone.tap(images)
            probe = torch.zeros((), device=images.device, requires_grad=True)
            try:
                with torch.enable_grad():
                    rows = self._replay(self.activations(images), probe)
            except torch.OutOfMemoryError:
                raise
            except _FAILURES as error:
                logger.debug("%s", self._says(f"cannot be replayed: {one_line(error)}"))
                return False
            moved = drift(plain, rows.detach(), [output.dim for output in self._backbone.outputs])
        around = id(probe) in leaves(rows)
        if around or moved > TOLERANCE:
            logger.debug("%s", self._says(f"does not decide all behind it: moved by {moved:g}, around it: {around}"))
        return not around and moved <= TOLERANCE

    def _rehearse(self, received: _Shape) -> str | None:
        """Find out by one replay of a blank image which zeros are written into; return why it cannot be replayed."""
        import torch

        made: list[tuple[_Skipped, Any]] = []
        with torch.inference_mode(mode=False), torch.no_grad(), evaluating(self._backbone.module):
            probe = torch.zeros((), device=self._backbone.device)
            try:
                self._replay(torch.zeros(received.lengths, dtype=received.dtype, device=probe.device), probe, made)
            except torch.OutOfMemoryError:
                raise
            except _FAILURES as error:
                return f"cannot be replayed ({one_line(error)})"
        for call, zeros in made:
            call.written = any(value._version > 0 for value in _tensors(zeros))
        return None

    def _replay(self, activations: Tensor, probe: Tensor, made: list[tuple[_Skipped, Any]] | None = None) -> Tensor:
        """Run the network on zeros made of `probe`, with `activations` in their place from the layer on."""
        self._refuse()
        given: list[bool] = []

        def give(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if given:
                return None
            given.append(True)
            # The layer may work in the memory of what it receives, and these rows are wanted again.
            kept = activations.clone()
            if args:
                return (kept, *args[1:]), kwargs
            return args, {**kwargs, next(iter(kwargs)): kept}

        side, count = self._backbone.preprocess.crop, len(activations)
        blank = probe.to(self._backbone.dtype).expand(count, 3, side, side)
        with self._at_layer(give), _skipping(self._skipped, count, probe, made):
            rows = self._backbone.tap(blank)
        if not given:
            raise BackboneError(self._says("is not reached"))
        return rows

    @contextmanager
    def _at_layer(self, hook: Callable[..., Any]) -> Iterator[None]:
        """Call `hook` with what the layer receives, before any hook of the tap sees it."""
        module = self._backbone.module.get_submodule(self.layer)
        handle = module.register_forward_pre_hook(hook, prepend=True, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def _refuse(self) -> None:
        if self._refusal is not None:
            raise BackboneError(self._says(self._refusal) + "; choose another layer to keep the input of")

    def _says(self, what: str) -> str:
        return f"{self.layer} of {self._backbone.name} {what}"


class _Reached(Exception):  # noqa: N818 - no error, but the way out of the forward pass
    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value


@dataclass(slots=True)
class _Call:
    """One call of a module: when it began and ended by the count of all beginnings and ends; shapes in and out."""

    name: str
    began: int
    received: Any
    ended: int | None = None
    gave: Any = None


@dataclass(slots=True)
class _Skipped:
    """A call that need not be made, what it gives for one image and for two, and whether others write into that."""

    module: nn.Module
    one: Any
    two: Any
    written: bool = True


@dataclass(frozen=True, slots=True)
class _Shape:
    lengths: tuple[int, ...]
    dtype: torch.dtype


def _watch(backbone: Backbone, count: int) -> list[_Call]:
    """Return all calls of modules, in the order in which they begin, in a pass of `count` blank images."""
    import torch

    network, side = backbone.module, backbone.preprocess.crop
    calls: list[_Call] = []
    running: list[_Call] = []
    clock = iter(range(2**62))

    def enter(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls.append(_Call(name, next(clock), _shapes(_first(args, kwargs))))
            running.append(calls[-1])

        return hook

    def leave(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        call = running.pop()
        call.ended, call.gave = next(clock), _shapes(output)

    handles = []
    for name, module in network.named_modules():
        handles.append(module.register_forward_pre_hook(enter(name), prepend=True, with_kwargs=True))
        handles.append(module.register_forward_hook(leave))
    try:
        with torch.inference_mode(), evaluating(network):
            backbone.tap(torch.zeros(count, 3, side, side, device=backbone.device, dtype=backbone.dtype))
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _entry(calls: list[_Call], layer: str) -> _Call | None:
    """Return the first call of `layer`, or of what is inside where it is never called by itself."""
    own = (call for call in calls if call.name == layer)
    inside = (call for call in calls if call.name.startswith(layer + "."))
    return next(own, None) or next(inside, None)


def _through_before(calls: list[_Call], entry: _Call) -> Iterator[tuple[int, str]]:
    """Yield place and name of each call that ended before `entry` and was not made within another of them."""
    end = -1
    for place, call in enumerate(calls):
        if call.ended is not None and end < call.began and call.ended < entry.began:
            end = call.ended
            yield place, call.name


def _one_row_an_image(one: Any, two: Any) -> bool:
    if not isinstance(one, _Shape) or not isinstance(two, _Shape):
        return False
    return (one.lengths[:1], two.lengths[:1]) == ((1,), (2,)) and one.lengths[1:] == two.lengths[1:]


@contextmanager
def _skipping(
    skipped: list[_Skipped], count: int, probe: Tensor, made: list[tuple[_Skipped, Any]] | None
) -> Iterator[None]:
    """Within it the calls in `skipped`, in their order, give zeros made of `probe`, and all others run."""
    waiting = deque(skipped)

    def instead_of(module: nn.Module) -> Callable[..., Any]:
        forward = module.forward

        def give(*args: Any, **kwargs: Any) -> Any:
            if waiting and waiting[0].module is module:
                call = waiting.popleft()
                zeros = _zeros(call.one, call.two, count, probe, call.written)
                if made is not None:
                    made.append((call, zeros))
                return zeros
            return forward(*args, **kwargs)

        return give

    # In the instance's own dictionary, where it stands before the class's.
    before = {skip.module: vars(skip.module).get("forward") for skip in skipped}
    try:
        for module in before:
            vars(module)["forward"] = instead_of(module)
        yield
    finally:
        for module, forward in before.items():
            if forward is None:
                vars(module).pop("forward", None)
            else:
                vars(module)["forward"] = forward


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return args[0] if args else next(iter(kwargs.values()), None)


def _shapes(value: Any) -> Any:
    """Return `value` with shapes in the place of tensors."""
    from torch import Tensor

    if isinstance(value, Tensor):
        return _Shape(tuple(value.shape), value.dtype)
    if isinstance(value, dict):
        return {key: _shapes(each) for key, each in value.items()}
    return type(value)(map(_shapes, value)) if type(value) in (tuple, list) else value


def _zeros(one: Any, two: Any, count: int, probe: Tensor, written: bool) -> Any:
    """Return zeros in the shape that `count` images have, given those that one and two of them have.

    They have no memory of their own, unless they are `written` into: one number stands for all.
    """
    if isinstance(one, _Shape):
        pairs = zip(one.lengths, two.lengths, strict=True)
        zeros = probe.to(one.dtype).expand([first + (second - first) * (count - 1) for first, second in pairs])
        return zeros.clone() if written else zeros
    if isinstance(one, dict):
        return {key: _zeros(one[key], two[key], count, probe, written) for key in one}
    if type(one) in (tuple, list):
        return type(one)(_zeros(*pair, count, probe, written) for pair in zip(one, two, strict=True))
    return one


def _tensors(value: Any) -> Iterator[Tensor]:
    from torch import Tensor

    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (dict, tuple, list)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _tensors(each)
