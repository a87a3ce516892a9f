"""The head of a saved model once more, for what is not kept with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .dataset import LabelledSet
from .fit import TrainingRows, head_for
from .model import SavedModel

if TYPE_CHECKING:
    from .head import Head

_SEARCHED = ("C", "k")


def refitted(model: SavedModel, data: LabelledSet, train: TrainingRows) -> Head | None:
    """Fit the head of a saved model to the training images of a dataset again, at the settings that were chosen.

    That is for what cross-validation says of each image, which is not kept. It costs one cross-validation without a
    search. A head that was searched over a path differs in the last digits, as the path's points start from each other.

    Parameters
    ----------
    model : SavedModel
        A fitted head, not a finetuned network.
    data : LabelledSet
        The dataset that it was trained on, as it is now.
    train : (X, y, groups)
        What `training_rows` returns of it.

    Returns
    -------
    Head or None
        None where the network came from `finetune`, whose last layer no cross-validation has seen.
    """
    settings = model.facts.get("settings")
    if settings is None or "mode" in model.facts:
        return None
    settings = settings | {name: model.facts[name] for name in _SEARCHED if name in model.facts}
    settings |= model.facts.get("setting", {})
    return head_for(data, train, model.kind, settings)
