"""The head of a saved model once more, for what is not kept with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .dataset import LabelledSet
from .heads import make_head
from .model import SavedModel
from .several import labels_head

if TYPE_CHECKING:
    from .head import Head

_SEARCHED = ("C", "k")


def refitted(model: SavedModel, data: LabelledSet) -> Head | None:
    """Fit the head of a saved model to the training images of a dataset again, at the settings that were chosen.

    That is for what cross-validation says of each image, which is not kept. It costs one cross-validation without a
    search. A head that was searched over a path differs in the last digits, as the path's points start from each other.

    Parameters
    ----------
    model : SavedModel
        A fitted head, not a finetuned network.
    data : LabelledSet
        The dataset that it was trained on, as it is now.

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
    X, y = data.part("train")
    head = labels_head(model.kind, **settings) if model.multi_label else make_head(model.kind, **settings)
    return head.fit(X, y, data.features.classes, groups=data.group[data.split == "train"], blocks=data.features.dims)
