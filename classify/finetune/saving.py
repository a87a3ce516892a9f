"""A trained network as a saved model: a feature space of its own where the backbone was trained, and a head on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...cache.space import FeatureSpace
from ...errors import TrainingError
from ...extract.backbone import digests_of
from ...extract.decode import DECODER_RULES
from ...extract.network import facts as backbone_facts
from ...extract.options import SpaceOptions
from ...extract.registry import find
from ..calibration import fit_temperature
from ..conformal import kept_probabilities
from ..model import SavedModel, save_model
from ..network import softmax
from ..novelty import fit_novelty
from ..provenance import training_facts
from ..scores import scores_of
from .pictures import DEV, Pictures
from .scoring import Scored

if TYPE_CHECKING:
    from ...extract.backbone import Backbone
    from .modules import TrainableNetwork


LEAST_DEV = 30  # images that a temperature is fitted on; what fewer say is mostly chance


def save_finetuned(
    out: Path,
    network: TrainableNetwork,
    pictures: Pictures,
    scored: Mapping[str, Scored],
    facts: dict[str, Any],
    *,
    space: SpaceOptions,
    val_fraction: float,
    trains_body: bool,
    overwrite: bool,
    write: bool = True,
    kept: SavedModel | None = None,
    seconds: float = 0.0,
) -> SavedModel:
    """Measure what a network says of the pictures, and save it.

    The temperature, and what sets of classes are drawn up by, come from dev, which the network was not trained on.

    Parameters
    ----------
    out : Path
    network : TrainableNetwork
        As it is to be saved.
    pictures : Pictures
    scored : dict of str to Scored
        "train", "dev" and "val"; any of the latter two may be empty.
    facts : dict
        What is known of the training.
    space : SpaceOptions
        What was asked of the backbone.
    val_fraction : float
    trains_body : bool
        Whether the backbone is another one than it was.
    overwrite : bool
    write : bool, default True
        Only describe the model where it is False.
    kept : SavedModel, optional
        The head whose layers the network still has: they hold its temperature, and dev was among its training images.
    seconds : float, default 0.0
        That the run took, for people to read.

    Raises
    ------
    TrainingError
        The network has diverged.
    ModelError
        As `save_model`.
    """
    from .modules import as_network

    if not all(np.isfinite(found.logits).all() for found in scored.values()):
        raise TrainingError("what the network says is not a number any more: nothing was saved; pass a smaller --lr")
    backbone = network.backbone
    body = _body(backbone) if trains_body else {}
    dev, train = scored[DEV], scored["train"]
    temperature = fit_temperature(dev.logits, dev.y) if kept is None and len(dev.y) >= LEAST_DEV else 1.0
    true = kept_probabilities(softmax(dev.logits / temperature), dev.y) if kept is None else kept.true_probabilities
    request = {**space.request(), **({"weights": "default"} if trains_body else {})}
    model = SavedModel(
        kind="finetuned" if trains_body else ("linear" if len(network.head_widths) == 2 else "mlp"),
        classes=pictures.classes,
        spaces=[_space(backbone).as_dict()],
        network=as_network(network.head),
        facts=facts,
        temperature=temperature,
        true_probabilities=true,
        novelty=_novelty(pictures, train, seed=space.seed),
        training=training_facts(
            pictures.data, [request], seed=space.seed, val_fraction=val_fraction, near_copies="none"
        )
        | {"seconds": round(seconds, 3)},
        body=body,
    )
    model = replace(model, scores=_scores(model, scored))
    if write:
        save_model(out, model, overwrite=overwrite)
    return model


def _scores(model: SavedModel, scored: Mapping[str, Scored]) -> dict[str, Any]:
    train, val = scored["train"], scored["val"]
    found: dict[str, Any] = {
        "train": {"n": len(train.y), "accuracy": train.accuracy},
        "temperature": model.temperature,
        "val": None,
        "baseline": None,
        "conformal": None,
        "per_class": [],
    }
    if not len(val.y):
        return found
    full = scores_of(model, val.logits, (val.X, val.y), (train.X, train.y))
    found["per_class"] = full.pop("per_class")
    full.pop("confusion")
    found |= {name: full.pop(name) for name in ("baseline", "conformal")}
    return found | {"val": full}


def _novelty(pictures: Pictures, train: Scored, *, seed: int) -> Any:
    groups = pictures.data.group[pictures.data.split == "train"]
    if len(np.unique(groups)) < 2:
        return None
    return fit_novelty(train.X, train.y, groups=groups, random_state=seed)


def _space(backbone: Backbone) -> FeatureSpace:
    """Return the feature space of a backbone as it is now."""
    points = [output.point for output in backbone.outputs]
    backbone.digests = digests_of(backbone.module, points, find(backbone.name).classifier(backbone.module))
    return FeatureSpace(backbone=backbone.name, **backbone_facts(backbone)[0], decoder=DECODER_RULES)


def _body(backbone: Backbone) -> dict[str, np.ndarray]:
    """Return the weights behind the embedding; those of the classifier where it begins within it."""
    classifier = find(backbone.name).classifier(backbone.module) + "."
    inside = backbone.outputs[0].point.in_classifier
    state = backbone.module.state_dict()
    return {name: value.cpu().numpy() for name, value in state.items() if inside or not name.startswith(classifier)}
