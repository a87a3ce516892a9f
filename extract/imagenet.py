"""The classes of ImageNet: their names, and the rows of a backbone's own classifier that tell them.

A row is the weights and the bias of one class in the classifier's last linear layer. It is worth something to a head
that takes the same numbers as that layer: then the head's logit for a label is the one for the class of ImageNet.
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..errors import BackboneError, UsageError, printable
from .backbone import DEFAULT_WEIGHTS, NO_WEIGHTS, Backbone
from .registry import find

if TYPE_CHECKING:
    from torch import nn

IMAGENET_CLASSES = 1000
_SHOWN = 3
_NUMBER = re.compile(r"[+-]?[0-9]+")
_LONGEST_NUMBER = 9  # digits; what is longer is out of range anyway, and Python refuses to read thousands of them


def imagenet_names() -> tuple[str, ...]:
    """Return the names of ImageNet's 1,000 classes by index, as torchvision lists them with its weights."""
    from torchvision import models

    return tuple(models.get_model_weights("resnet18").DEFAULT.meta["categories"])


def imagenet_index(text: str, outputs: int = IMAGENET_CLASSES) -> int:
    """Return the index of the class that `text` names.

    Parameters
    ----------
    text : str
        An index, or a name as `imagenet_names` has it, in upper or lower case, with ``_`` for a space where wanted.
    outputs : int, default 1000
        How many classes the classifier knows; names are those of the usual 1,000 and mean nothing to another number.

    Raises
    ------
    UsageError
        An index out of range, a name of no class (the nearest are named) or of two (their indices are given).
    """
    wanted = text.strip()
    if _NUMBER.fullmatch(wanted):
        index = int(wanted) if len(wanted) <= _LONGEST_NUMBER else -1
        return check_index(index, outputs, wanted)
    if outputs != IMAGENET_CLASSES:
        raise UsageError(
            f"{printable(wanted)!r} names a class of ImageNet's {IMAGENET_CLASSES}, and this classifier has {outputs};"
            f" give an index from 0 to {outputs - 1}"
        )
    names = imagenet_names()
    places = [place for place, name in enumerate(names) if _folded(name) == _folded(wanted)]
    if len(places) > 1:
        found = " and ".join(f"{place} ({names[place]})" for place in places)
        raise UsageError(f"ImageNet has several classes called {printable(wanted)!r}; give the index of one: {found}")
    if not places:
        raise UsageError(_unknown(wanted, names))
    return places[0]


def check_index(index: int, outputs: int, text: str = "") -> int:
    """Return `index` where a classifier of so many `outputs` has it.

    Raises
    ------
    UsageError
    """
    if not 0 <= index < outputs:
        raise UsageError(
            f"there is no ImageNet class {text or str(index):.20}: this classifier's go from 0 to {outputs - 1};"
            " give another index, or a name"
        )
    return index


def last_linear(backbone: Backbone) -> tuple[str, nn.Linear]:
    """Return the layer that gives a backbone's own logits, and its name in the whole network.

    Raises
    ------
    BackboneError
        The classifier does not end in a linear layer: it is a convolution in SqueezeNet.
    """
    from torch import nn

    classifier = find(backbone.name).classifier(backbone.module)
    modules = backbone.module.get_submodule(classifier).named_modules(prefix=classifier)
    owners = [(name, module) for name, module in modules if any(True for _ in module.parameters(recurse=False))]
    name, last = owners[-1] if owners else (classifier, backbone.module.get_submodule(classifier))
    if not isinstance(last, nn.Linear):
        raise BackboneError(
            f"the classifier of {backbone.name} ends in {name}, a {type(last).__name__} and no linear layer, so it has"
            " no rows for a head; leave --init-head out, or choose another backbone"
        )
    return name, last


def imagenet_rows(backbone: Backbone, weights: str, indices: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return rows of a backbone's own classifier.

    To be taken before any of the classifier's weights are trained or initialised anew.

    Parameters
    ----------
    backbone : Backbone
        With the head's layer as its first output.
    weights : str
        What was asked for: "default", "none" or a file.
    indices : sequence of int
        Which rows; m of them.

    Returns
    -------
    weight : ndarray of shape (m, D), dtype float32
    bias : ndarray of shape (m,), dtype float32
        Zeros where the classifier has no biases.

    Raises
    ------
    UsageError
        Weights that nobody trained, an index that the classifier lacks, or a layer at which the rows do not fit: that
        where they do is named.
    BackboneError
        As from `last_linear`, or a file of weights without the classifier.
    """
    if weights == NO_WEIGHTS:
        raise UsageError(
            "--init-head imagenet takes rows of a trained classifier, and with --weights none nothing is trained;"
            " leave one of the two out"
        )
    name, linear = last_linear(backbone)
    _check_place(backbone, name, linear)
    if not bool(linear.weight.any()):  # as `load_into` leaves a classifier that a file lacks
        source = "the default weights" if weights == DEFAULT_WEIGHTS else printable(weights)
        raise BackboneError(
            f"{source} of {backbone.name} came without its classifier ({name}), so there are no rows to start from;"
            " give --weights with it, or leave --init-head out"
        )
    chosen = [check_index(index, linear.out_features) for index in indices]
    numbers = {key: value.detach()[chosen].float().cpu().numpy() for key, value in linear.named_parameters()}
    return numbers["weight"], numbers.get("bias", np.zeros(len(chosen), np.float32))


def _check_place(backbone: Backbone, name: str, linear: nn.Linear) -> None:
    # Equal widths alone do not do: VGG's last two layers both take 4,096 numbers, and ConvNeXt normalises its 768
    # between where its classifier begins and its linear layer.
    output = backbone.outputs[0]
    if output.dim == linear.in_features and _nothing_between(backbone, name):
        return
    same = "other numbers, though as many" if output.dim == linear.in_features else f"{output.dim}"
    raise UsageError(
        f"ImageNet's rows of {backbone.name} take the {linear.in_features} numbers that go into {name}, and a head at"
        f" {output.point.layer} takes {same}; pass --layer {name}.input, or leave --init-head out"
    )


def _nothing_between(backbone: Backbone, name: str) -> bool:
    """Tell whether what the first output takes reaches the module `name` unchanged, in eval mode."""
    from torch import nn

    point = backbone.outputs[0].point
    if not point.at_input or not f"{name}.".startswith(f"{point.module}."):
        return False
    inner = backbone.module.get_submodule(point.module).named_modules(prefix=point.module)
    leaves = [(path, module) for path, module in inner if not any(True for _ in module.children())]
    before = itertools.takewhile(lambda leaf: leaf[0] != name, leaves)
    return all(isinstance(module, nn.Dropout | nn.Identity | nn.Flatten) for _, module in before)


def _folded(name: str) -> str:
    return " ".join(name.replace("_", " ").split()).casefold()


def _unknown(wanted: str, names: Sequence[str]) -> str:
    by_folded = {_folded(name): name for name in names}
    word = re.compile(rf"\b{re.escape(_folded(wanted))}\b") if _folded(wanted) else None
    near = [key for key in by_folded if word and word.search(key)]
    near += [key for key in difflib.get_close_matches(_folded(wanted), by_folded, n=_SHOWN) if key not in near]
    nearest = f"; nearest: {', '.join(by_folded[key] for key in near[:_SHOWN])}" if near else ""
    return (
        f"ImageNet has no class {printable(wanted)!r}{nearest}; give a name as torchvision lists them, or an index"
        f" from 0 to {IMAGENET_CLASSES - 1}"
    )
