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

from ...errors import ModelError, TrainingError
from ..heads import make_head
from ..model import SavedModel
from .pictures import DEV, Pictures
from .scoring import Scored
from .start import layers_of

if TYPE_CHECKING:
    from .modules import TrainableNetwork

logger = logging.getLogger("headstart.finetune")


def has_seen_dev(model: SavedModel, pictures: Pictures, dev_fraction: float) -> bool:
    """Tell whether a head was fitted on the dataset whose dev images are to choose the epoch.

    A head that `finetune` trained has held the same images out, unless it is one that was given and never improved on.
    """
    data, facts = pictures.data, model.facts
    if not (data.split == DEV).any() or model.training["source"] != data.features.listing.source:
        return False
    if "mode" not in facts:
        return True
    held_out = facts["selected_on"] == DEV and facts["settings"]["dev_fraction"] >= dev_fraction
    return not (held_out and facts["best_epoch"] > 0)


def check_same_val(model: SavedModel, pictures: Pictures, val_fraction: float) -> None:
    """Raise where a head was fitted on images of the same dataset that are held out for validation now.

    Raises
    ------
    ModelError
    """
    data, training = pictures.data, model.training
    if training["source"] != data.features.listing.source or not data.held_out:
        return
    held = training.get("held_out") or 0.0
    if held < val_fraction:
        raise ModelError(
            f"the head to start from was fitted with --val-fraction {held:g}, on images that are for validation now; "
            f"pass the same, or fit it again with --val-fraction {val_fraction:g}"
        )


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
    if "mode" in model.facts:
        logger.warning(
            "the head to start from was trained by finetune and cannot be fitted anew: it may have seen the dev "
            "images, and then no epoch may improve on it"
        )
        return model
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
