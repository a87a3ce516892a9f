"""How deep the layers of a network lie: the order in which it comes to its modules and parameters, up to the tap.

Neither the names nor the order of definition say so for certain, and a parameter is not always used by a module that is
called (`MultiheadAttention.out_proj` never is). So one forward pass is watched: when each module is entered, when each
parameter is first handed to a function of torch, and which parameters are in the graph behind the embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import BackboneError
from .taps import find_module

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .backbone import Backbone


@dataclass(frozen=True, slots=True)
class Depth:
    """The order in which a network comes to its modules and parameters.

    Attributes
    ----------
    modules : tuple of str
        Those that are called before the embedding is there, in the order in which each is first entered. The root,
        which all the others are inside of, is left out.
    parameters : tuple of str
        Those that have a say in the embedding, in the order in which each is first used. One that two modules share
        stands once, by the name that ``named_parameters`` gives it.
    """

    modules: tuple[str, ...]
    parameters: tuple[str, ...]
    _order: dict[str, int] = field(repr=False)
    _backbone: Backbone = field(repr=False)

    def parameters_from(self, layer: str) -> frozenset[str]:
        """Return the parameters that are first used after `layer` is first entered, its own included.

        Parameters
        ----------
        layer : str
            A module, or ``MODULE.input``, which is the same here. Of one that is never called by itself, as a list of
            modules is not, what is inside counts.

        Raises
        ------
        BackboneError
            No such module, with the nearest names; or the embedding is there before it is reached.
        """
        moment = self._moment(layer)
        return frozenset(name for name in self.parameters if self._order[name] >= moment)

    def modules_from(self, layer: str) -> frozenset[str]:
        """Return the modules that are first entered when `layer` is or later; errors as from `parameters_from`.

        These may be in train mode one by one. ``Module.train`` goes on to all modules inside, some of which may have
        been entered before because they are shared.
        """
        moment = self._moment(layer)
        return frozenset(name for name in self.modules if self._order[name] >= moment)

    def first_called(self, layer: str) -> str | None:
        """Return `layer` if it is called by itself, else the first module in it that is; None where there is none."""
        module, _ = find_module(self._backbone.module, self._backbone.name, layer)
        inside = (name for name in self.modules if name.startswith(module + "."))
        return module if module in self.modules else next(inside, None)

    def blocks(self) -> tuple[tuple[str, ...], ...]:
        """Group `parameters` by depth, shallow to deep, for learning rates that decay from layer to layer.

        A block is a module that is reached from the root through nothing but plain ``Sequential`` and ``ModuleList``
        containers and modules that hold more than half of all numbers, with other modules of their class beside them.
        Norms that stand between blocks, which hold only vectors, and what such containers own themselves (class
        tokens, position embeddings) join the block before, or the first block where there is none before.
        """
        values = dict(self._backbone.module.named_parameters())
        opened = _opened(self._backbone.module, {name: values[name].numel() for name in self.parameters})
        groups: dict[str, list[str]] = {}
        for name in self.parameters:
            groups.setdefault(_unit(name, opened), []).append(name)
        blocks: list[list[str]] = [[]]
        begun = False
        for unit, names in groups.items():
            joins = unit in values or all(values[name].numel() == max(values[name].shape) for name in names)
            if begun and not joins:
                blocks.append([])
            blocks[-1] += names
            begun = begun or not joins
        return tuple(tuple(block) for block in blocks)

    def _moment(self, layer: str) -> int:
        """Return when `layer`, or the first of what is inside of it, was reached."""
        called = self.first_called(layer)
        if called is not None:
            return self._order[called]
        module, _ = find_module(self._backbone.module, self._backbone.name, layer)
        used = [self._order[name] for name in self.parameters if name.startswith(module + ".")]
        if used:
            return min(used)
        name, end = self._backbone.name, self._backbone.tap.points[-1].layer
        raise BackboneError(
            f"{module} of {name} comes after {end}, where the head begins, or is never used;"
            f" choose a layer before it (the last are {', '.join(self.modules[-3:])})"
        )


def depth_of(backbone: Backbone) -> Depth:
    """Watch one forward pass of a blank image, in eval mode; the network is left as it was.

    Parameters
    ----------
    backbone : Backbone
        Its tap must not have been released.
    """
    import torch

    network, side = backbone.module, backbone.preprocess.crop
    values = dict(network.named_parameters())
    with torch.inference_mode(mode=False), _differentiable(network), _order(network) as order:
        blank = torch.zeros(1, 3, side, side, device=backbone.device, dtype=backbone.dtype)
        behind = leaves(backbone.tap(blank))
    modules = {name for name, _ in network.named_modules()} - {""}
    return Depth(
        modules=tuple(name for name in order if name in modules),
        parameters=tuple(name for name in order if name in values and id(values[name]) in behind),
        _order=order,
        _backbone=backbone,
    )


def leaves(value: Tensor) -> set[int]:
    """Return ids of the tensors that `value` was computed from and that a gradient would reach."""
    found: set[int] = set()
    seen, waiting = set(), [value.grad_fn]
    while waiting:
        node: Any = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        waiting += [before for before, _ in node.next_functions]
    return found


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Within it all modules are in eval mode; afterwards each is in its own again."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def _differentiable(network: nn.Module) -> Iterator[None]:
    """Within it the network is in eval mode, and a gradient would reach every parameter."""
    import torch

    wanted = [(value, value.requires_grad) for value in network.parameters()]
    with evaluating(network), torch.enable_grad():
        try:
            for value, _ in wanted:
                value.requires_grad_(value.is_floating_point())
            yield
        finally:
            for value, before in wanted:
                value.requires_grad_(before)


@contextmanager
def _order(network: nn.Module) -> Iterator[dict[str, int]]:
    """Note at which place each module is first entered and each parameter first used, while passes run within it."""
    order: dict[str, int] = {}

    def note(name: str) -> None:
        order.setdefault(name, len(order))

    def entry(name: str) -> Callable[..., None]:
        return lambda *_: note(name)

    # Behind the hooks of the tap, which end the pass: what it takes the input of is then not entered.
    handles = [module.register_forward_pre_hook(entry(name)) for name, module in network.named_modules()]
    try:
        with _uses({id(value): name for name, value in network.named_parameters()}, note):
            yield order
    finally:
        for handle in handles:
            handle.remove()


def _uses(names: dict[int, str], note: Callable[[str], None]) -> Any:
    """Return a mode of torch in which `note` learns the name of every tensor in `names` that a function receives."""
    from torch.overrides import TorchFunctionMode

    class Uses(TorchFunctionMode):
        def __torch_function__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if getattr(function, "__name__", "") != "__get__":  # a look at a shape is no use
                for value in _flat((args, kwargs)):
                    if id(value) in names:
                        note(names[id(value)])
            return function(*args, **kwargs)

    return Uses()


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, (tuple, list)):
        for each in value:
            yield from _flat(each)
    else:
        yield value


def _opened(network: nn.Module, sizes: dict[str, int]) -> set[str]:
    """Return the modules that blocks are looked for inside of."""
    from torch import nn

    def holds_more_than_half(path: str) -> bool:
        return 2 * sum(size for name, size in sizes.items() if name.startswith(path + ".")) > sum(sizes.values())

    opened = [""]
    for name in opened:  # which grows meanwhile
        children = network.get_submodule(name).named_children()
        inner = [(f"{name}.{child}".lstrip("."), module) for child, module in children if any(module.named_children())]
        heavy = {type(module) for path, module in inner if holds_more_than_half(path)}
        opened += [path for path, module in inner if type(module) in {nn.Sequential, nn.ModuleList, *heavy}]
    return set(opened)


def _unit(parameter: str, opened: set[str]) -> str:
    """Return the outermost module around `parameter` that is not opened; its own name where all are."""
    parts = parameter.split(".")
    paths = (".".join(parts[:end]) for end in range(1, len(parts) + 1))
    return next(path for path in paths if path not in opened)
