"""Networks without memory for their parameters, and state dicts into them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..errors import BackboneError
from .weights import one_line

if TYPE_CHECKING:
    from torch import Tensor, nn

_SHOWN = 3
_patching = threading.Lock()


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Within it, this thread's new modules have parameters of a shape but without memory or initial values.

    ``torch.device("meta")`` would do the same to every tensor, and some networks compute their widths with tensors.
    """
    from torch import nn

    register, owner = nn.Module.register_parameter, threading.get_ident()

    def on_meta(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
        register(module, name, param)
        if param is not None and threading.get_ident() == owner:
            module._parameters[name] = nn.Parameter(param.to("meta"), requires_grad=param.requires_grad)

    with _patching:
        setattr(nn.Module, "register_parameter", on_meta)  # noqa: B010  (an assignment would need the type checker off)
        try:
            yield
        finally:
            setattr(nn.Module, "register_parameter", register)  # noqa: B010


def load_into(network: nn.Module, state: Mapping[str, Tensor], *, origin: str, optional: str | None = None) -> None:
    """Put `state` into `network`, in float32; the tensors are taken over, not copied.

    Parameters
    ----------
    network : Module
        Its parameters may be on the meta device.
    state : mapping of str to Tensor
        A ``module.`` before every name, which training on several devices leaves, is dropped.
    origin : str
        Where `state` came from, for messages.
    optional : str, optional
        Name of a module (the classifier) that `state` may lack or hold in another shape: unless it fits as a whole
        it is left as zeros. By default everything must fit.

    Raises
    ------
    BackboneError
        Missing, unexpected or misshapen tensors; the first few are named.
    """
    state = _without_prefix(state)
    if optional is not None and not _fits(network, state, optional):
        state = {name: value for name, value in state.items() if not _inside(name, optional)}
    missing, unexpected = _assign(network, _float32(state), origin)
    missing = [name for name in missing if optional is None or not _inside(name, optional)]
    problems = [_listed("lacks", missing), _listed("has the unknown", unexpected)]
    _refuse(origin, [problem for problem in problems if problem])
    _zero_what_is_left(network)


def _assign(network: nn.Module, state: dict[str, Tensor], origin: str) -> tuple[list[str], list[str]]:
    own = network.state_dict()
    misshapen = [
        f"{name} {tuple(value.shape)} for {tuple(own[name].shape)}"
        for name, value in state.items()
        if name in own and own[name].shape != value.shape
    ]
    _refuse(origin, [_listed("has misshapen", misshapen)] if misshapen else [])
    try:
        result = network.load_state_dict(_versioned(network, state), strict=False, assign=True)
    except (RuntimeError, ValueError) as error:
        raise BackboneError(f"{origin} does not fit: {one_line(error)}; give weights of this backbone") from error
    return list(result.missing_keys), list(result.unexpected_keys)


def _versioned(network: nn.Module, state: dict[str, Tensor]) -> OrderedDict[str, Tensor]:
    # Modules take a state without version for an old one and rename what they once called otherwise (ViT's MLP, batch
    # norm's counter), which leaves current names alone. Only MNASNet insists on a version, at its root.
    versioned: Any = OrderedDict(state)
    versioned._metadata = {"": {"version": network._version}}
    result: OrderedDict[str, Tensor] = versioned
    return result


def _without_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if all(name.startswith("module.") for name in state):
        return {name.removeprefix("module."): value for name, value in state.items()}
    return dict(state)


def _float32(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.float() if value.is_floating_point() else value for name, value in state.items()}


def _fits(network: nn.Module, state: Mapping[str, Tensor], module: str) -> bool:
    own = {name: value.shape for name, value in network.state_dict().items() if _inside(name, module)}
    return own == {name: value.shape for name, value in state.items() if _inside(name, module)}


def _inside(name: str, module: str) -> bool:
    return name.startswith(module + ".")


def _zero_what_is_left(network: nn.Module) -> None:
    import torch
    from torch import nn

    for module in network.modules():
        for name, value in module._parameters.items():
            if value is not None and value.is_meta:
                module._parameters[name] = nn.Parameter(torch.zeros(value.shape), requires_grad=value.requires_grad)


def _listed(what: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{what} {', '.join(names[:_SHOWN])}{more}"


def _refuse(origin: str, problems: list[str]) -> None:
    if problems:
        raise BackboneError(f"{origin} does not fit: it {' and '.join(problems)}; give weights of this backbone")
