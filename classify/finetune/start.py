"""What finetuning starts from: a head that was fitted before, rows of ImageNet's classifier, weights made anew.

A saved head comes down to linear layers with ReLU between them: what was done to embeddings first is folded into them,
so that a network of those layers gives the saved head's logits, and training goes on from there.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ...cache.space import FeatureSpace, canonical_json
from ...errors import ModelError, UsageError, printable
from ...extract.backbone import NO_WEIGHTS, Backbone, digests_of, seeded_network
from ...extract.imagenet import IMAGENET_CLASSES, imagenet_index, imagenet_rows, last_linear
from ...extract.options import as_words
from ...extract.preprocess import Preprocess
from ...extract.registry import find
from ..model import SavedModel
from ..network import Network

if TYPE_CHECKING:
    from torch import nn

logger = logging.getLogger("headstart.finetune")

IMAGENET_PREFIX = "imagenet:"
_SHOWN = 3
_LABELS = 20  # of a dataset, in a message about one that it lacks
_DIGITS = 12  # of a digest, in messages


class ImageNetRows(NamedTuple):
    """Rows of ImageNet's classifier for some of a head's classes.

    Attributes
    ----------
    places : ndarray of shape (m,), dtype int64
        Rows of the head, ascending.
    weight : ndarray of shape (m, D), dtype float32
    bias : ndarray of shape (m,), dtype float32
    """

    places: np.ndarray
    weight: np.ndarray
    bias: np.ndarray


def layers_of(model: SavedModel) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return linear layers that give a saved head's logits, divided by its temperature, of embeddings as they come.

    With the first layer ``W z + b`` of ``z = P'((x - mean) / scale)``, the folded one is ``V x + b - V mean`` with
    ``V = W P' / scale``. It is computed in float64 and rounded once.

    Parameters
    ----------
    model : SavedModel
        Of any kind but "knn", fitted without ``--l2-norm``.

    Returns
    -------
    weights : list of ndarray of shape (width, width before), dtype float32
        The first takes D numbers, the last has a row a class; between two of them is ReLU.
    biases : list of ndarray of shape (width,), dtype float32

    Raises
    ------
    ModelError
        The head is none of linear layers.
    """
    network = _foldable(model, "this head")
    prepared = network.preparation
    weights = [weight.astype(np.float64) for weight in network.weights]
    biases = [bias.astype(np.float64) for bias in network.biases]
    if prepared.projection is not None:
        weights[0] = weights[0] @ prepared.projection.astype(np.float64).T
    weights[0] = weights[0] / prepared.scale.astype(np.float64)
    biases[0] = biases[0] - weights[0] @ prepared.mean.astype(np.float64)
    weights[-1], biases[-1] = weights[-1] / model.temperature, biases[-1] / model.temperature
    return [weight.astype(np.float32) for weight in weights], [bias.astype(np.float32) for bias in biases]


def hidden_widths(model: SavedModel) -> tuple[int, ...]:
    """Return the widths of a saved head's hidden layers; errors as from `layers_of`."""
    return tuple(len(bias) for bias in _foldable(model, "this head").biases[:-1])


def check_init_head(model: SavedModel, path: Path, classes: Sequence[str], backbone: Backbone) -> SavedModel:
    """Check that a network can be trained on from a saved head, and bring its classes into order.

    Other preprocessing is let pass with a warning: the head still fits, if less well.

    Parameters
    ----------
    model : SavedModel
    path : Path
        Where it lies, for messages.
    classes : sequence of str
        Those of the dataset, in the order in which its labels count them.
    backbone : Backbone
        With the head's layer as its first output.

    Returns
    -------
    SavedModel
        The same head with `classes` in their order; its facts and scores are left as they were.

    Raises
    ------
    ModelError
        Other classes, several labels an image, several feature spaces, a head that is none of linear layers, another
        backbone, layer, pooling or width, or other weights. Those of a finetuned model are its own.
    """
    where = printable(path)
    if model.multi_label:
        raise ModelError(f"{where} gives each image several labels, finetune gives it one; leave --init-head out")
    network = _foldable(model, where)
    _check_classes(where, model.classes, classes)
    if len(model.spaces) > 1:
        spaces = [FeatureSpace.from_dict(space) for space in model.spaces]
        names = printable(" and ".join(f"{space.backbone}'s {space.layer}" for space in spaces))
        raise ModelError(
            f"{where} was fitted on the joined embeddings of {names}, finetune trains {backbone.name} alone;"
            f" {_other_head(backbone)}"
        )
    _check_space(where, model, backbone)
    _warn_of_preprocessing(where, FeatureSpace.from_dict(model.spaces[0]), backbone.preprocess)
    order = [model.classes.index(name) for name in classes]
    weights = (*network.weights[:-1], network.weights[-1][order])
    biases = (*network.biases[:-1], network.biases[-1][order])
    return replace(model, classes=tuple(classes), network=replace(network, weights=weights, biases=biases))


def parse_imagenet(text: str, classes: Sequence[str], outputs: int = IMAGENET_CLASSES) -> dict[int, int]:
    """Return which class of ImageNet each label starts from, as ``LABEL=INDEX`` or ``LABEL=NAME`` say it.

    Commas part the pairs, and the last ``=`` of a pair its label from the class. Names of ImageNet's classes hold
    neither, so a label may hold either: what is before a comma and has no ``=`` belongs to the label after it. Only a
    label with a ``=`` and after that a comma cannot be named.

    Parameters
    ----------
    text : str
        As ``hotdog=934,not_hotdog=hen``, with or without ``imagenet:`` before it.
    classes : sequence of str
        The labels there are.
    outputs : int, default 1000
        How many classes the backbone's own classifier knows.

    Returns
    -------
    dict of int to int
        By the label's place in `classes`. Not every label need be there, and two may start from one class.

    Raises
    ------
    UsageError
        No pair, an unknown label, a label given twice, or a class that ImageNet lacks.
    """
    found: dict[int, int] = {}
    for label, value in _pairs(text.removeprefix(IMAGENET_PREFIX)):
        place = _label_place(label, classes)
        if place in found:
            raise UsageError(f"--init-head names the label {printable(classes[place])!r} twice; leave one out")
        found[place] = imagenet_index(value, outputs)
    return found


def imagenet_start(text: str, classes: Sequence[str], backbone: Backbone, weights: str) -> ImageNetRows:
    """Return the rows that ``--init-head imagenet:...`` asks for; labels that it does not name have none.

    Parameters
    ----------
    text, classes
        As for `parse_imagenet`.
    backbone, weights
        As for `imagenet_rows`.

    Raises
    ------
    UsageError, BackboneError
        As from `parse_imagenet` and `imagenet_rows`.
    """
    wanted = parse_imagenet(text, classes, last_linear(backbone)[1].out_features)
    places = sorted(wanted)
    weight, bias = imagenet_rows(backbone, weights, [wanted[place] for place in places])
    return ImageNetRows(np.array(places, np.int64), weight, bias)


def reinitialise(backbone: Backbone, names: Collection[str], seed: int) -> None:
    """Give some of a network's parameters the values of a freshly initialised one, in place.

    The running statistics (and other buffers) of the modules that own them are made anew too, and the digests of the
    backbone are those of what it is now. All parameters together are what ``--weights none`` gives with this seed.

    Parameters
    ----------
    backbone : Backbone
    names : collection of str
        As ``backbone.module.named_parameters()`` has them.
    seed : int

    Raises
    ------
    KeyError
        The network has no parameter of such a name.
    """
    import torch

    source, network = find(backbone.name), backbone.module
    fresh = seeded_network(source, seed)
    mine, theirs = dict(network.named_parameters()), dict(fresh.named_parameters())
    with torch.no_grad():
        for name in names:
            mine[name].copy_(theirs[name])
        for owner in {name.rpartition(".")[0] for name in names}:
            _copy_buffers(fresh.get_submodule(owner), network.get_submodule(owner))
    points = [output.point for output in backbone.outputs]
    backbone.digests = digests_of(network, points, source.classifier(network))


def _copy_buffers(origin: nn.Module, target: nn.Module) -> None:
    values = dict(origin.named_buffers(recurse=False))
    for name, buffer in target.named_buffers(recurse=False):
        buffer.copy_(values[name])


def _foldable(model: SavedModel, where: str) -> Network:
    if not isinstance(model.network, Network):
        raise ModelError(
            f"{where} is a {model.kind} head, which keeps its training rows and has no layers to train on from;"
            " fit one of logistic, linear, mlp, ncm, or leave --init-head out"
        )
    if model.network.preparation.blocks.size:
        raise ModelError(
            f"{where} was fitted with --l2-norm, which divides each embedding by its length, as no linear layer does;"
            " fit the head without it, or leave --init-head out"
        )
    return model.network


def _check_classes(where: str, theirs: Sequence[str], ours: Sequence[str]) -> None:
    mine, others = set(ours), set(theirs)
    lacking = [name for name in ours if name not in others]
    further = [name for name in theirs if name not in mine]
    if lacking or further:
        differing = " and ".join(filter(None, [_listed("lacks", lacking), _listed("also tells", further)]))
        raise ModelError(
            f"{where} tells other classes than the {len(ours)} of this dataset: it {differing}; fit a head on this"
            " dataset (`headstart extract`, then `headstart fit-head`), or leave --init-head out"
        )


def _listed(what: str, names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{what} {', '.join(map(printable, names[:_SHOWN]))}{more}" if names else ""


def _check_space(where: str, model: SavedModel, backbone: Backbone) -> None:
    space, output = FeatureSpace.from_dict(model.spaces[0]), backbone.outputs[0]
    names = (space.backbone, backbone.name)
    layers, pools = (space.layer, output.point.layer), (space.pool, output.pool)
    widths, weights = (space.dim, output.dim), (space.weights, backbone.digests[0])
    crop = f"--crop {space.preprocess.get('crop')}"
    # A width alone differs where a map is taken whole from images of another size. Weights differ in all else that a
    # network can be: a finetuned model, which brings a network of its own, is refused by them.
    sides = [
        (*names, names[0], names[1], f"--backbone {names[0]}"),
        (*layers, f"{layers[0]} of {names[0]}", layers[1], f"--layer {layers[0]}"),
        (*pools, f"{layers[0]} pooled by {pools[0]}", f"pooled by {pools[1]}", f"--pool {pools[0]}"),
        (*widths, f"{layers[0]} with {widths[0]} numbers", f"of {widths[1]} numbers", crop),
        (*weights, f"{names[0]} with the weights {weights[0][:_DIGITS]}", weights[1][:_DIGITS], _weights_option(model)),
    ]
    for theirs, ours, fitted_on, trained, option in sides:
        if theirs != ours:
            raise ModelError(
                f"{where} was fitted on embeddings of {printable(fitted_on)}, and what is trained here is {trained};"
                f" pass {printable(option)}, or {_other_head(backbone)}"
            )


def _weights_option(model: SavedModel) -> str:
    requests = model.training.get("requests") or [{}]
    request: dict[str, Any] = requests[0]
    given: dict[str, Any] = {name: request[name] for name in ("weights", "seed") if name in request}
    if not given:
        return "the --weights that it was fitted with"
    if given.get("weights") != NO_WEIGHTS:
        given.pop("seed", None)
    return f"{as_words(given)} and no --reinit"


def _other_head(backbone: Backbone) -> str:
    output = backbone.outputs[0]
    words = as_words({"backbone": backbone.name, "layer": output.point.layer, "pool": output.pool})
    return (
        f"fit a head for this network (`headstart extract {words}` with these weights, then `headstart fit-head`),"
        " or leave --init-head out"
    )


def _warn_of_preprocessing(where: str, space: FeatureSpace, ours: Preprocess) -> None:
    mine = json.loads(canonical_json(ours.as_dict()))
    differing = [name for name in sorted({*mine, *space.preprocess}) if mine.get(name) != space.preprocess.get(name)]
    if differing:
        theirs = ", ".join(f"{name} {_shown(space.preprocess.get(name))}" for name in differing)
        here = ", ".join(f"{name} {_shown(mine.get(name))}" for name in differing)
        logger.warning(
            "%s was fitted on pictures prepared with %s, and here it is %s; it starts from less than it scored",
            where, printable(theirs), here,
        )  # fmt: skip


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(f"{number:g}" if isinstance(number, float) else str(number) for number in value)
    return "none" if value is None else str(value)


def _pairs(text: str) -> list[tuple[str, str]]:
    pairs, waiting = [], ""
    for part in text.split(","):
        label, equals, value = (waiting + part).rpartition("=")
        if equals:
            pairs.append((label, value))
        waiting = "" if equals else f"{waiting}{part},"
    if waiting or not pairs:
        raise UsageError(
            f"--init-head imagenet: says no class of ImageNet for {printable(waiting.removesuffix(','))!r}; give"
            " LABEL=INDEX or LABEL=NAME, with a comma between two"
        )
    return pairs


def _label_place(label: str, classes: Sequence[str]) -> int:
    for wanted in (label, label.strip()):
        if wanted in classes:
            return classes.index(wanted)
    known = ", ".join(map(printable, classes[:_LABELS])) + (", ..." if len(classes) > _LABELS else "")
    raise UsageError(f"--init-head names the label {printable(label.strip())!r}; those of this dataset are {known}")
