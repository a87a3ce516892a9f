"""Saved models: a folder with the numbers as safetensors and everything else as JSON, the old model or the new one.

Nothing in it is a pickle. ``model.json`` is put in place last and names the file of the numbers, which carries its own
SHA-256 in its name, so a folder that is interrupted at any moment still holds a whole model.
"""

from __future__ import annotations

import dataclasses
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..cache.publish import make_folder
from ..cache.space import FeatureSpace
from ..errors import CacheError, HeadstartError, ModelError
from ..extract.augment import PRESETS
from ..extract.views import PLAIN, Views
from .folder import (
    checked_name,
    is_numbers,
    only_numbers,
    read_numbers,
    read_object,
    remove_numbers,
    write_numbers,
    write_object,
)
from .knn import KNNHead
from .network import Network, sigmoid, softmax
from .novelty import Novelty
from .views import as_rows
from .voters import Neighbours

MODEL_FORMAT = 1
MODEL_FILE = "model.json"
MAX_CLASSES = 100_000
MAX_CLASS_NAME = 1_000
_IN_TENSORS = ("network", "true_probabilities", "novelty", "body")
_TRUE, _NOVELTY = "true_probabilities", "novelty."
_TENSORS, _BACKBONE = "tensors", "backbone"
_ADVICE = "fit the head again"


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedModel:
    """All that prediction needs, but for the backbones, which the feature spaces name.

    Attributes
    ----------
    kind : str
        "logistic", "linear", "mlp", "knn" or "ncm"; "finetuned" where the backbone was trained too.
    classes : tuple of str
    spaces : list of dict
        The feature spaces that it was trained in, as `FeatureSpace.as_dict` gives them, in the order in which the
        embeddings of an image stand side by side.
    network : Network or Neighbours
        Neighbours where the kind is "knn".
    facts : dict
        What is known of the fit: settings, cross-validation, history.
    temperature : float, default 1.0
        Logits are divided by it.
    multi_label : bool, default False
        An image may have several of the classes, or none: each has a probability of its own.
    thresholds : list of float, K
        From which probability on a label is given; empty where there is one class an image.
    true_probabilities : ndarray of shape (c,), dtype float64
        What cross-validation gave the true class of training images, ascending: sets of classes are drawn up by it.
    novelty : Novelty or None
        What training pictures look like.
    training : dict
        Where the data lay, how it was divided, ``requests``, what was kept with each feature space, and where it was
        trained on several views, ``views``, ``augment``, ``views_split`` and ``recipes``, as parts describe them.
    scores : dict
        Measured when it was fitted.
    body : dict of str to ndarray
        Weights of the backbone, where they were trained too, to be saved; a model that is loaded has none here: where
        they are is in ``training["requests"]``.
    """

    kind: str
    classes: tuple[str, ...]
    spaces: list[dict[str, Any]]
    network: Network | Neighbours
    facts: dict[str, Any] = field(default_factory=dict)
    temperature: float = 1.0
    multi_label: bool = False
    thresholds: list[float] = field(default_factory=list)
    true_probabilities: np.ndarray = field(default_factory=lambda: np.zeros(0))
    novelty: Novelty | None = None
    training: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, Any] = field(default_factory=dict)
    body: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def views(self) -> Views:
        """Of each image, on which it was trained."""
        return Views.of_request(self.training)

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """Return probabilities (n, K) float64 of embeddings (n, D) float32; those of several labels do not sum to 1.

        Of embeddings (n, V, D) of V views of each image, they are averaged over views.
        """
        return self.probabilities(self.logits(X))

    def logits(self, X: np.ndarray) -> np.ndarray:
        """Return logits (n, K) float64 of embeddings (n, D) float32, or (n, V, K) of those of V views (n, V, D)."""
        logits = self.network.logits(as_rows(X))
        return logits.reshape(*X.shape[:-1], logits.shape[1])

    def probabilities(self, logits: np.ndarray, temperature: float | None = None) -> np.ndarray:
        """Return probabilities (n, K) float64 of logits (n, K), or (n, V, K) of V views, over which they are averaged.

        Logits are divided by the model's own temperature, unless another one is given.
        """
        scaled = as_rows(logits) / (self.temperature if temperature is None else temperature)
        proba = (sigmoid if self.multi_label else softmax)(scaled)
        return proba if logits.ndim == 2 else proba.reshape(logits.shape).mean(axis=1)


def check_target(out: Path, *, overwrite: bool = False) -> None:
    """Raise where a model must not be written: over another one without `overwrite`, or into any other folder.

    Also where it cannot be, as far as permissions tell: known before hours of training, not after them.

    Raises
    ------
    ModelError
    """
    if out.is_dir():
        if not (out / MODEL_FILE).is_file() and not only_numbers(out):
            raise ModelError(f"{out} is a folder of something else; name another one with --out")
        if (out / MODEL_FILE).is_file() and not overwrite:
            raise ModelError(f"{out} holds a model already; pass --overwrite to replace it, or --out to keep both")
    elif out.exists():
        raise ModelError(f"{out} is a file; name a folder with --out")
    above = next(folder for folder in (out.absolute(), *out.absolute().parents) if os.path.lexists(folder))
    if not above.is_dir():
        raise ModelError(f"{out} cannot be made, for {above} is a file; name another folder with --out")
    if not os.access(above, os.W_OK):
        raise ModelError(f"{out} cannot be written: no permission to write into {above}; name another one with --out")


def save_model(out: Path, model: SavedModel, *, overwrite: bool = False) -> Path:
    """Write a model into the folder `out`, whole or not at all.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    ModelError
        As `check_target`, or the disk could not be written.
    """
    check_target(out, overwrite=overwrite)
    content: dict[str, Any] = {"format": MODEL_FORMAT}
    content |= {name: getattr(model, name) for name in _in_json()}
    try:
        make_folder(out)
        content["tensors"] = write_numbers(out, _TENSORS, _arrays(model))
        if model.body:
            content["backbone"] = write_numbers(out, _BACKBONE, model.body)
        write_object(out / MODEL_FILE, content)
    except CacheError as error:
        raise ModelError(f"the model was not saved: {str(error).replace('--cache', '--out')}") from error
    remove_numbers(out, (content["tensors"], content.get("backbone")))
    return out


def _in_json() -> list[str]:
    return [item.name for item in dataclasses.fields(SavedModel) if item.name not in _IN_TENSORS]


def _arrays(model: SavedModel) -> dict[str, np.ndarray]:
    novelty = model.novelty.arrays() if model.novelty else {}
    others = {_TRUE: model.true_probabilities} if model.true_probabilities.size else {}
    return model.network.arrays() | others | {f"{_NOVELTY}{name}": array for name, array in novelty.items()}


def load_model(path: Path) -> SavedModel:
    """Read a saved model, every byte of its numbers checked.

    Raises
    ------
    ModelError
        There is none, it is damaged or incomplete, or a newer version wrote it.
    """
    content = read_object(path / MODEL_FILE, what="model", maker="headstart fit-head", advice=_ADVICE)
    found = content.get("format")
    if isinstance(found, int) and found > MODEL_FORMAT:
        raise ModelError(f"{path} was written by format {found}, this reads up to {MODEL_FORMAT}; upgrade headstart")
    try:
        content = _with_body(path, _with_spaces(content))
        classes = _checked_classes(path, content["classes"])
        stored = Neighbours if content["kind"] == KNNHead.kind else Network
        arrays = read_numbers(path / MODEL_FILE, _TENSORS, content["tensors"], advice=_ADVICE)
        true, novelty = _taken_out(arrays)
        network = stored.from_arrays(arrays)
        # Models of the first development versions say nothing of several labels.
        content = {"multi_label": False, "thresholds": [], **content}
        given = {name: content[name] for name in _in_json() if name != "classes"}
        model = SavedModel(classes=classes, network=network, true_probabilities=true, novelty=novelty, **given)
        _check_fields(model)
        _check_thresholds(model)
        _check_views(path, model)
        if novelty is not None and novelty.reference.shape[1] != network.n_features:
            raise ModelError("its training pictures are not of its width")
        width = sum(FeatureSpace.from_dict(space).dim for space in model.spaces)
    except HeadstartError as error:
        raise ModelError(str(error) if str(path) in str(error) else f"{path} is damaged: {error}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{path / MODEL_FILE} is damaged: {error!r}; fit the head again") from error
    if network.n_classes != len(classes) or network.n_features != width:
        raise ModelError(f"{path} is damaged: its numbers do not fit its classes and its feature spaces")
    return model


def _taken_out(arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, Novelty | None]:
    """Take what is not the network's out of the arrays of a model."""
    true = arrays.pop(_TRUE, np.zeros(0))
    ascending = true.ndim == 1 and true.dtype == np.float64 and not (np.diff(true) < 0).any()
    if not ascending or not ((true >= 0) & (true <= 1)).all():
        raise ModelError("its cross-validated probabilities are none")
    found = {name.removeprefix(_NOVELTY): arrays.pop(name) for name in list(arrays) if name.startswith(_NOVELTY)}
    return true, Novelty.from_arrays(found) if found else None


def _check_fields(model: SavedModel) -> None:
    types = {"kind": str, "multi_label": bool, "temperature": float, "facts": dict, "training": dict, "scores": dict}
    for name, wanted in types.items():
        if not isinstance(getattr(model, name), wanted):
            raise ModelError(f"its {name} is {getattr(model, name)!r:.40}")
    if not 0 < model.temperature < math.inf:
        raise ModelError(f"its temperature is {model.temperature}")


def _check_thresholds(model: SavedModel) -> None:
    wanted = len(model.classes) if model.multi_label else 0
    numbers = all(isinstance(value, float) and math.isfinite(value) for value in model.thresholds)
    if len(model.thresholds) != wanted or not numbers:
        raise ModelError("it has not one threshold for each label")


def _check_views(path: Path, model: SavedModel) -> None:
    """Raise where it was trained on views that are none, or of a preset that a newer version may have."""
    kept = {"views": PLAIN.count, "augment": PLAIN.augment, "views_split": PLAIN.split}
    count, preset, split = (model.training.get(name, default) for name, default in kept.items())
    if isinstance(preset, str) and preset not in PRESETS:
        raise ModelError(
            f"{path} was trained on views of the preset {preset!r:.40}, which this headstart does not have; upgrade "
            "it, or fit the head again"
        )
    try:
        Views(count, preset, split)
    except HeadstartError as error:
        found = f"{count!r:.20} of {preset!r:.20}, split {split!r:.20}"
        raise ModelError(f"{path / MODEL_FILE} is damaged: there are no views {found}; {_ADVICE}") from error


def _with_spaces(content: dict[str, Any]) -> dict[str, Any]:
    """Read a model of the first development versions, which knew one feature space, as one of today."""
    if "space" not in content:
        return content
    training = {**content["training"], "requests": [content["training"].get("request", {})]}
    return {**content, "spaces": [content["space"]], "training": training}


def _with_body(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    """Let the weights of a backbone that was trained be found where the model is now.

    They are read when a picture must be embedded, and checked by their digest then.
    """
    if content.get("backbone") is None:
        return content
    weights = str(path / checked_name(path / MODEL_FILE, _BACKBONE, content["backbone"]))
    requests = [{**request, "weights": weights} for request in content["training"]["requests"]]
    return {**content, "training": {**content["training"], "requests": requests}}


def check_bodies(model: SavedModel) -> None:
    """Raise where the weights of a backbone that was trained are not beside the model any more, or are damaged.

    Raises
    ------
    ModelError
    """
    for request in model.training.get("requests", []):
        file = Path(str(request.get("weights", "")))
        if is_numbers(file.name, _BACKBONE):
            advice = "copy the model again, or train it anew"
            read_numbers(file.parent / MODEL_FILE, _BACKBONE, file.name, advice=advice)


def _checked_classes(path: Path, classes: Any) -> tuple[str, ...]:
    good = isinstance(classes, list) and all(isinstance(name, str) and len(name) <= MAX_CLASS_NAME for name in classes)
    if not good or not 0 < len(classes) <= MAX_CLASSES:
        raise ModelError(f"{path / MODEL_FILE} is damaged: its list of classes is none")
    return tuple(classes)
