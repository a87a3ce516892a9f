"""Which backbones there are, by name, and what can be said of each without its weights."""

from __future__ import annotations

import difflib
import fnmatch
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import BackboneError, MissingExtraError
from .sources import LITE_NAMES, LiteSource, Source, TorchvisionSource
from .taps import Tap, find_point
from .timm_source import PREFIX, TimmSource

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class BackboneInfo:
    """What ``headstart backbones`` says of one backbone, at its default layer and preprocessing.

    Attributes
    ----------
    name, library : str
        As `find` takes it, and where it comes from.
    dim : int
        Width of the embedding.
    parameters : int
        Of the network without its classifier.
    input_size : int
        Side in pixels of the input.
    licence : str
        Of the default weights.
    weights_here : bool
        Whether the default weights are on this machine.
    """

    name: str
    library: str
    dim: int
    parameters: int
    input_size: int
    licence: str
    weights_here: bool


def names(pattern: str = "") -> list[str]:
    """Return the backbones whose name contains or, with ``*`` and ``?``, matches `pattern`.

    Those of torchvision and EfficientNet-Lite in order, or, where `pattern` starts with ``timm``, those of timm that
    have weights.

    Raises
    ------
    MissingExtraError
        timm is asked for and not installed.
    """
    if pattern.startswith(PREFIX.rstrip("/")):
        _require_timm()
        return _matching(_timm_names(), pattern)
    return _matching(sorted([*_torchvision_names(), *LITE_NAMES]), pattern)


def find(name: str) -> Source:
    """Return the backbone called `name`.

    Raises
    ------
    BackboneError
        There is none; the nearest names are in the message.
    MissingExtraError
        A name of timm, and timm is not installed.
    """
    if name in LITE_NAMES:
        return LiteSource(name)
    if name.startswith(PREFIX):
        _require_timm()
        if _is_timm(name.removeprefix(PREFIX)):
            return TimmSource(name)
        raise _unknown(name, _timm_names(), f"headstart backbones {PREFIX}")
    if name in _torchvision_names():
        return TorchvisionSource(name)
    raise _unknown(name, [*_torchvision_names(), *LITE_NAMES], "headstart backbones")


def describe(name: str) -> BackboneInfo:
    """Return what can be known of a backbone by its structure alone: nothing is downloaded or initialised.

    Raises
    ------
    BackboneError, MissingExtraError
        As from `find`.
    """
    source = find(name)
    size = source.preprocess().crop
    network = source.empty().eval().to("meta")
    _skip_norms(network)
    classifier = source.classifier(network)
    tap = Tap(network, name, [find_point(network, name, classifier, None)], None, size)
    return BackboneInfo(
        name=name,
        library=source.library,
        dim=tap.dim,
        parameters=sum(p.numel() for key, p in network.named_parameters() if not key.startswith(classifier + ".")),
        input_size=size,
        licence=source.licence(),
        weights_here=source.weights_here(),
    )


def download(name: str) -> Path:
    """Return the file of a backbone's default weights, fetching it where it is not on this machine.

    Raises
    ------
    WeightsNotFoundError
        Not here and not to be had.
    BackboneError, MissingExtraError
        As from `find`.
    """
    return find(name).download()


def _skip_norms(network: nn.Module) -> None:
    # They leave shapes alone, and on the meta device they are half of the time.
    from torch import nn

    norms = (nn.BatchNorm2d, nn.LayerNorm)
    for module in network.modules():
        if isinstance(module, norms):
            object.__setattr__(module, "forward", _unchanged)


def _unchanged(value: Tensor) -> Tensor:
    return value


def _matching(found: list[str], pattern: str) -> list[str]:
    glob = pattern if any(mark in pattern for mark in "*?") else f"*{pattern}*"
    return [name for name in found if fnmatch.fnmatchcase(name.lower(), glob.lower())]


def _torchvision_names() -> list[str]:
    from torchvision import models

    # Models outside this namespace segment, detect or take video.
    return list(models.list_models(module=models))


def _timm_names() -> list[str]:
    import timm

    return [PREFIX + name for name in timm.list_models(pretrained=True)]


def _is_timm(model: str) -> bool:
    import timm

    # A name with a tag stands for one set of weights; a bare one may have none and still be built.
    return model in timm.list_models(pretrained=True) if "." in model else bool(timm.is_model(model))


def _require_timm() -> None:
    if importlib.util.find_spec("timm") is None:
        raise MissingExtraError(
            'backbones of timm need timm, which is not installed; run `pip install "headstart[timm]"`'
        )


def _unknown(name: str, known: list[str], command: str) -> BackboneError:
    near = difflib.get_close_matches(name, known, n=3)
    nearest = f"; nearest: {', '.join(near)}" if near else ""
    return BackboneError(f"no backbone {name!r}{nearest}; `{command}` lists them")
