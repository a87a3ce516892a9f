"""Train a head on cached embeddings: choose on the training images, score once on the validation images, save."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .. import __version__
from ..cache.store import cache_dir
from ..errors import UsageError, printable
from ..extract.features import Features, load_features, spaces_as_json
from .dataset import VAL_FRACTION, LabelledSet, labelled_set, warn_of_copies
from .head import Head
from .heads import make_head
from .metrics import majority_baseline, nearest_mean_baseline, score
from .model import SavedModel, check_target, save_model

logger = logging.getLogger("headstart.classify")

# The input of the module that classifies, by its usual names; `classifier.3.input` is a layer within one.
_DEFAULT_LAYER = re.compile(r"([a-z_]+\.)*(fc|classifier|heads?)\.input")


@dataclass(frozen=True, slots=True)
class Fit:
    """A fitted and saved head.

    Attributes
    ----------
    model : SavedModel
    head : Head
    data : LabelledSet
        What it was trained and scored on.
    out : Path
        Where it was saved.
    seconds : float
        Wall time, reading the cache included.
    details : bool, default False
        Whether `lines` goes into the search and the classes.
    """

    model: SavedModel
    head: Head
    data: LabelledSet
    out: Path
    seconds: float
    details: bool = False

    def summary(self) -> dict[str, Any]:
        """Return the fields of ``fit-head --json``."""
        scores, features = self.model.scores, self.data.features
        return {
            "head": self.model.kind,
            "backbone": "+".join(dict.fromkeys(space.backbone for space in features.spaces)),
            "dim": sum(features.dims),
            "features": spaces_as_json(features.spaces),
            "classes": list(self.model.classes),
            "train": scores["train"],
            "cv": scores["cv"],
            "C": self.model.facts.get("C"),
            "val": scores["val"],
            "baseline": scores["baseline"],
            "dedupe": self.model.training["dedupe"],
            "seconds": round(self.seconds, 3),
            "out": str(self.out),
        }

    def lines(self) -> list[str]:
        """Return what a person needs: data, choice, score with interval and baseline, the next command."""
        scores = self.model.scores
        held = " (held out: the dataset has no validation split)" if self.data.held_out else ""
        counts = {split: int((self.data.split == split).sum()) for split in ("train", "val")}
        lines = [
            f"{counts['train']} training, {counts['val']} validation images{held}, {len(self.model.classes)} classes",
            f"{self.model.kind} head on {_joined(self.data.features)} wide: {_choice(self.head)}",
            f"cross-validation: {100 * scores['cv']['accuracy']:.1f} % of {scores['cv']['folds']} folds",
            _validation_line(scores),
        ]
        lines += [f"note: {note}" for note in self.head.notes_]
        if self.details:
            lines += _detail_lines(self)
        lines.append(f"saved {self.out} in {self.seconds:.1f} s; next: headstart predict {self.out} PICTURE...")
        return lines


def _joined(features: Features) -> str:
    """Return what the embeddings are, and their widths."""
    if len(features.spaces) == 1:
        return f"{features.space.backbone}, {features.space.dim}"
    pieces = " + ".join(f"{space.backbone}:{space.layer} ({space.dim})" for space in features.spaces)
    return f"{pieces}, {sum(features.dims)}"


def _choice(head: Head) -> str:
    facts = head.facts()
    if "C" not in facts:
        return f"{len(facts['history'])} epochs, the best one kept"
    searched = len(head.cv_["Cs"])
    return f"C = {facts['C']:.3g}" + (f", the best of {searched} in cross-validation" if searched > 1 else "")


def _validation_line(scores: dict[str, Any]) -> str:
    val, baseline = scores["val"], scores["baseline"]
    if val is None:
        return "validation: none, the dataset has no such split and --val-fraction is 0"
    return (
        f"validation: {100 * val['accuracy']:.1f} % of {val['n']} images (95 % interval {100 * val['low']:.1f} to "
        f"{100 * val['high']:.1f}); majority class {100 * baseline['majority']:.1f} %, "
        f"nearest class mean {100 * baseline['nearest_mean']:.1f} %"
    )


def _detail_lines(fit: Fit) -> list[str]:
    cv = fit.head.cv_
    searched = zip(cv.get("Cs", []), cv.get("log_losses", []), strict=True)
    lines = [f"  C {C:<9.3g} cross-validated log loss {loss:.4f}" for C, loss in searched]
    X, y = fit.data.part("val")
    if len(y):
        table = score(y, fit.head.predict_proba(X), fit.model.classes)["per_class"]
        lines += [f"  {'class':<20} {'images':>6} {'precision':>9} {'recall':>6}"]
        for row in table:
            shares = f"{_percent(row['precision']):>9} {_percent(row['recall']):>6}"
            lines.append(f"  {printable(row['label']):<20} {row['n']:>6} {shares}")
    return lines


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def fit_head(
    data: str | os.PathLike[str] | None = None,
    head: str = "logistic",
    *,
    cache: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    val_fraction: float = VAL_FRACTION,
    dedupe: bool = False,
    wanted: dict[str, Any] | None = None,
    features: str | Sequence[str] = (),
    details: bool = False,
    seed: int = 0,
    **head_options: Any,
) -> Fit:
    """Train a head on a dataset that was extracted, score it and save it.

    Parameters
    ----------
    data : path, optional
        The dataset; that of the latest extract where it is None.
    head : {"logistic", "linear", "mlp"}, default "logistic"
    cache : path, optional
        The cache's folder; ``HEADSTART_CACHE`` or ``.headstart`` where it is None.
    out : path, optional
        Folder of the model; `default_model` where it is None, ``models/photos-resnet18-logistic`` say.
    overwrite : bool, default False
        Replace a model that is there.
    val_fraction : float, default 0.2
        Share of the training images held out where the dataset has no validation split.
    dedupe : bool, default False
        Of images with the same bytes use one, and none where they have two labels. One that is in train and in
        another split is left out of train. Without it all are used, and warned of.
    wanted : dict, optional
        Fields that the feature space must have, where the dataset was extracted in several.
    features : str or sequence of str, optional
        ``BACKBONE`` or ``BACKBONE:LAYER``: the head is trained on these embeddings side by side, in this order.
    details : bool, default False
        Whether the result's `lines` go into the search and the classes.
    seed : int, default 0
    **head_options
        Arguments of the head: ``C``, ``cv``, ``class_weight``, ``lr`` and so on.

    Returns
    -------
    Fit

    Raises
    ------
    CacheMissError
        The dataset was not extracted, or not all of it with each of `features`.
    TrainingError
        Its labels cannot be trained on.
    ModelError
        `out` holds a model and `overwrite` is False, or something else.
    """
    begin = time.perf_counter()
    if not 0 <= val_fraction < 1:
        raise UsageError(f"--val-fraction must be from 0 to below 1, and is {val_fraction:g}")
    loaded = load_features(cache_dir(cache), None if data is None else Path(data), wanted, features)
    target = Path(out) if out is not None else default_model(loaded, head)
    check_target(target, overwrite=overwrite)
    labelled = labelled_set(loaded, val_fraction, dedupe=dedupe)
    warn_of_copies(labelled)
    train_X, train_y = labelled.part("train")
    groups = labelled.group[labelled.split == "train"]
    unfitted = make_head(head, random_state=seed, **head_options)
    fitted = unfitted.fit(train_X, train_y, loaded.classes, groups=groups, blocks=loaded.dims)
    model = SavedModel(
        kind=head,
        classes=loaded.classes,
        spaces=[space.as_dict() for space in loaded.spaces],
        network=fitted.network_,
        facts=fitted.facts(),
        training=_facts(labelled, seed, val_fraction),
        scores=_scores(fitted, labelled),
    )
    save_model(target, model, overwrite=overwrite)
    return Fit(model, fitted, labelled, target, time.perf_counter() - begin, details)


def default_model(features: Features, head: str) -> Path:
    """Return ``models/<dataset>-<backbone>-<head>``, with nothing in it that a file system might refuse.

    A layer is named behind its backbone, unless it is what the backbone's own classifier receives. Several spaces are
    joined by ``+``: ``photos-resnet18+layer3+mobilenet_v3_small-logistic``.
    """
    source = Path(features.listing.source)
    dataset = source.stem if features.listing.layout == "csv" else source.name
    name = f"{dataset or 'data'}-{_short_name(features)}-{head}"
    return Path("models") / re.sub(r"[^\w.+-]+", "-", printable(name))


def _short_name(features: Features) -> str:
    pieces: list[str] = []
    named: set[str] = set()
    for space in features.spaces:
        backbone = [] if space.backbone in named else [space.backbone]
        layer = [] if _DEFAULT_LAYER.fullmatch(space.layer) and backbone else [space.layer]
        pieces.append("-".join(backbone + layer))
        named.add(space.backbone)
    return "+".join(pieces)


def _facts(data: LabelledSet, seed: int, val_fraction: float) -> dict[str, Any]:
    listing = data.features.listing
    return {
        "root": listing.root,
        "source": listing.source,
        "layout": listing.layout,
        "requests": list(data.features.requests),
        "held_out": val_fraction if data.held_out else None,
        "dedupe": None if data.dedupe is None else asdict(data.dedupe),
        "seed": seed,
        "headstart": __version__,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _scores(head: Head, data: LabelledSet) -> dict[str, Any]:
    """Score the head: on what it was trained on, by cross-validation, and once on the validation images."""
    train_X, train_y = data.part("train")
    val_X, val_y = data.part("val")
    accuracy = float((head.predict(train_X) == train_y).mean())
    scores: dict[str, Any] = {"train": {"n": len(train_y), "accuracy": accuracy}, "cv": head.cv_, "val": None}
    scores["baseline"] = {"majority": None, "nearest_mean": None}
    if len(val_y):
        full = score(val_y, head.predict_proba(val_X), data.features.classes)
        scores["val"] = {name: full[name] for name in ("n", "accuracy", "low", "high", "log_loss", "ece")}
        scores["baseline"] = {
            "majority": majority_baseline(train_y, val_y),
            "nearest_mean": nearest_mean_baseline(train_X, train_y, val_X, val_y),
        }
    return scores
