"""A head that was fitted before, as a start that can be compared with what training makes of it.

`fit-head` trains on all of train. Here a part of train is held out as dev to choose the epoch by, and a head that has
seen it would win there against anything. So it is fitted anew without dev, with its own settings. Where no epoch
improves on that start, the head as it was given is the one to keep.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ...errors import TrainingError
from ..heads import make_head
from ..model import SavedModel
from .pictures import DEV, Pictures
from .scoring import Scored
from .start import layers_of

if TYPE_CHECKING:
    from .modules import TrainableNetwork

logger = logging.getLogger("headstart.finetune")


def has_seen_dev(model: SavedModel, pictures: Pictures) -> bool:
    """Tell whether a head was fitted on the dataset whose dev images are to choose the epoch."""
    data = pictures.data
    return bool((data.split == DEV).any()) and model.training["source"] == data.features.listing.source


def fitted_anew(model: SavedModel, train: Scored, classes: Sequence[str], groups: np.ndarray) -> SavedModel:
    """Fit a head with its own settings on the training images without dev.

    Parameters
    ----------
    model : SavedModel
    train : Scored
        Embeddings and labels.
    classes : sequence of str
    groups : ndarray of shape (n,), dtype int
        Equal for copies.

    Returns
    -------
    SavedModel
        The same, with a head that has not seen dev; unchanged, with a warning, where too few images are left for a fit.
    """
    settings = dict(model.facts["settings"])
    settings["cv"] = min(settings["cv"], int(np.bincount(train.y[np.unique(groups, return_index=True)[1]]).min()))
    kind = model.kind
    try:
        head = make_head(kind, **settings).fit(train.X, train.y, classes, groups=groups)
    except (TrainingError, ValueError) as error:
        logger.warning(
            "the head to start from has seen the dev images and cannot be fitted anew without them (%s): "
            "its score there says little, and no epoch may improve on it",
            error,
        )
        return model
    logger.info("the %s head is fitted anew without the dev images, by which the epoch is chosen", kind)
    return replace(model, network=head.network_, temperature=head.temperature_)


def put_into(network: TrainableNetwork, model: SavedModel) -> None:
    """Give the head of a network the layers of a saved one, of the same widths."""
    import torch

    from .modules import linear_layers

    weights, biases = layers_of(model)
    with torch.no_grad():
        for layer, weight, bias in zip(linear_layers(network.head), weights, biases, strict=True):
            layer.weight.copy_(torch.from_numpy(weight))
            layer.bias.copy_(torch.from_numpy(bias))
