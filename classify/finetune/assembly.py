"""The network of a run put together: backbone, head, what of them is trained, and what they start from."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import UsageError
from ...extract.backbone import NO_WEIGHTS, Backbone, load_backbone
from ...extract.depth import Depth, depth_of
from ...extract.device import Device, prepare
from ...extract.network import request_of
from ...extract.options import SpaceOptions
from ...extract.replay import Replay
from ..model import SavedModel, load_model
from .groups import freeze, trained_parts
from .options import ALL, HEAD, TrainOptions
from .probe import put_into
from .start import IMAGENET_PREFIX, check_init_head, hidden_widths, imagenet_start, reinitialise

if TYPE_CHECKING:
    import torch
    from torch import nn

    from .modules import TrainableNetwork

logger = logging.getLogger("headstart.finetune")


def load_for_training(space: SpaceOptions, device: Device) -> Backbone:
    """Load a backbone on the CPU, its batch norms as they are, and make the device ready."""
    prepare(device, "float32")  # which the passes that measure what is saved compute in
    logger.info("loading %s", space.backbone)
    return load_backbone(request_of(space), **space.overrides())


@dataclass(frozen=True, slots=True)
class Assembled:
    """A network as a run begins with it.

    Attributes
    ----------
    network : TrainableNetwork
    depth : Depth
        Of the backbone.
    start : SavedModel or None
        The head that was fitted before, its classes in the order of the dataset's.
    """

    network: TrainableNetwork
    depth: Depth
    start: SavedModel | None


def assemble(
    backbone: Backbone, classes: Sequence[str], options: TrainOptions, weights: str, at: torch.device
) -> Assembled:
    """Build the network that is trained, on its device, in the state that it starts from.

    Parameters
    ----------
    backbone : Backbone
    classes : sequence of str, K
    options : TrainOptions
    weights : str
        As the backbone was asked for.
    at : torch.device

    Raises
    ------
    BackboneError, ModelError, TrainingError, UsageError
        As `headstart.classify.finetune.start` and `groups.trained_parts` say.
    """
    from .modules import TrainableNetwork, make_head

    depth = depth_of(backbone)
    parameters, modules = trained_parts(depth, options)
    again = frozenset() if options.reinit is None else depth.parameters_from(options.reinit)
    if again - parameters:
        raise UsageError(
            f"--reinit {options.reinit} gives random weights to layers that --train {options.train} would leave so; "
            "train them too"
        )
    if again and weights == NO_WEIGHTS:
        raise UsageError("--reinit means nothing with --weights none: all weights are random; leave one of them out")
    if again:
        reinitialise(backbone, again, options.seed)
    start = None
    if options.init_head is not None and not options.init_head.startswith(IMAGENET_PREFIX):
        start = _saved_head(backbone, classes, options)
    hidden = options.hidden if options.head == "mlp" else ()
    if start is not None:
        hidden = hidden_widths(start)
    head = make_head((backbone.dim, *hidden, len(classes)), options.dropout, options.seed)
    network = TrainableNetwork(backbone, head, modules, freeze_norms=options.freeze_norms)
    if start is not None:
        put_into(network, start)
    elif options.init_head is not None:
        _take_rows(head, backbone, classes, options, weights)
    freeze(network, parameters, options)
    backbone.to(at)
    head.to(at)
    return Assembled(network, depth, start)


def frozen_part(network: TrainableNetwork, options: TrainOptions, images: torch.Tensor) -> bool:
    """Tell whether what the frozen layers make of an image can be kept, and set up the network for it.

    Parameters
    ----------
    network : TrainableNetwork
    options : TrainOptions
    images : Tensor, (n, S, S, 3) uint8
        On the network's device; the network must give the same for them either way.
    """
    if options.train == ALL:
        return False
    if options.train == HEAD:
        return True
    replay = Replay(network.backbone, options.train)
    if not replay.exact(network.backbone.normalise(images)):
        logger.info(
            "the frozen layers run in every epoch: what %s receives does not decide all that comes behind it",
            options.train,
        )
        return False
    network.replay = replay
    return True


def _saved_head(backbone: Backbone, classes: Sequence[str], options: TrainOptions) -> SavedModel:
    path = Path(str(options.init_head))
    model = check_init_head(load_model(path), path, classes, backbone)
    hidden = hidden_widths(model)
    if options.head == "mlp" and not hidden:
        raise UsageError(f"--init-head {path} has no hidden layer: leave --head mlp out, or fit a head with one")
    if options.hidden not in (hidden, TrainOptions().hidden):
        raise UsageError(f"--init-head {path} has hidden layers of {hidden}: leave --hidden out, or name the same")
    return model


def _take_rows(
    head: nn.Module, backbone: Backbone, classes: Sequence[str], options: TrainOptions, weights: str
) -> None:
    import torch

    from .modules import linear_layers

    if options.head != "linear":
        raise UsageError("--init-head imagenet:... gives rows of one linear layer; leave --head mlp out")
    rows = imagenet_start(str(options.init_head).removeprefix(IMAGENET_PREFIX), classes, backbone, weights)
    layer = linear_layers(head)[-1]
    with torch.no_grad():
        layer.weight[rows.places] = torch.from_numpy(rows.weight)
        layer.bias[rows.places] = torch.from_numpy(rows.bias)
