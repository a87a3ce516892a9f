"""A head that was fitted and saved, and how that is told to people and programs."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import printable
from ..extract.features import spaces_as_json
from .block_fit import ByBlocks
from .curve import LearningCurve
from .dataset import LabelledSet
from .diagnostics import Diagnostics
from .few_shots import FewShots
from .head import Head
from .model import SavedModel
from .scores import calibration_words

# What is told of memory where all rows were in it.
NO_BLOCKS = {"limit": None, "blocks": 0, "passes": None, "put_aside": 0}


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
    diagnostics : Diagnostics or None
        What is odd about the images, where details were asked for.
    curve : LearningCurve or None
        Where it was asked for.
    shots : FewShots or None
        Where it was asked for.
    blocks : ByBlocks or None
        Where rows were read block by block.
    """

    model: SavedModel
    head: Head
    data: LabelledSet
    out: Path
    seconds: float
    diagnostics: Diagnostics | None = None
    curve: LearningCurve | None = None
    shots: FewShots | None = None
    blocks: ByBlocks | None = None

    def summary(self) -> dict[str, Any]:
        """Return the fields of ``fit-head --json``."""
        scores, features = self.model.scores, self.data.features
        result = {
            "head": self.model.kind,
            "backbone": joined_backbones(self.data),
            "dim": sum(features.dims),
            "features": spaces_as_json(features.spaces),
            **features.views.summary(),
            "classes": list(self.model.classes),
            "multi_label": self.model.multi_label,
            "train": scores["train"],
            "cv": scores["cv"],
            "C": self.model.facts.get("C"),
            "setting": chosen(self.model.facts),
            "temperature": self.model.temperature,
            "val": scores["val"],
            "baseline": scores["baseline"],
            "conformal": scores["conformal"],
            "dedupe": self.model.training["dedupe"],
            "notes": self.head.notes_,
            "memory": NO_BLOCKS if self.blocks is None else self.blocks.summary(),
            "engine": "local" if self.blocks is None else self.blocks.engine,
            "seconds": round(self.seconds, 3),
            "out": str(self.out),
        }
        if self.model.multi_label:
            result["thresholds"] = dict(zip(self.model.classes, self.model.thresholds, strict=True))
        if self.diagnostics is not None:
            result |= {"per_class": scores["per_class"], "details": self.diagnostics.as_dict()}
        if self.curve is not None:
            result["curve"] = self.curve.as_dict()
        if self.shots is not None:
            result["shots"] = self.shots.as_dict()
        return result

    def lines(self) -> list[str]:
        """Return what a person needs: data, choice, score with interval and baseline, the next command."""
        scores, features = self.model.scores, self.data.features
        held = " (held out: the dataset has no validation split)" if self.data.held_out else ""
        counts = {split: int((self.data.split == split).sum()) for split in ("train", "val")}
        what = "labels, any number an image" if self.model.multi_label else "classes"
        views = f" ({features.views.count} views each, {features.views.augment})" if features.views.count > 1 else ""
        lines = [
            f"{counts['train']} training{views}, {counts['val']} validation images{held}, "
            f"{len(self.model.classes)} {what}",
            f"{self.model.kind} head on {_joined_features(self.data)}, {sum(features.dims)} wide: {self.head.choice()}",
            *([] if self.blocks is None else [self.blocks.line()]),
            f"cross-validation: {_cross_validated(scores['cv'])}",
            *validation_lines(scores, multi_label=self.model.multi_label),
        ]
        lines += [f"note: {note}" for note in self.head.notes_]
        if self.diagnostics is not None:
            lines += _detail_lines(self) + self.diagnostics.lines()
        if self.curve is not None:
            lines += ["learning curve:", *self.curve.lines()]
        if self.shots is not None:
            lines += ["few shots:", *self.shots.lines()]
        command = f"headstart predict {shlex.quote(str(self.out))} PICTURE..."
        lines.append(f"saved {self.out} in {self.seconds:.1f} s; next: {command}")
        return lines


def joined_backbones(data: LabelledSet) -> str:
    """Return the backbones whose embeddings stand side by side, each once, with ``+`` between them."""
    return "+".join(dict.fromkeys(space.backbone for space in data.features.spaces))


def chosen(facts: dict[str, Any]) -> dict[str, Any]:
    """Return what a search chose: C, k, or the learning rate and so on."""
    found: dict[str, Any] = {name: facts[name] for name in ("C", "k", "epochs") if name in facts}
    found |= facts.get("setting", {})
    return found


def _joined_features(data: LabelledSet) -> str:
    spaces = data.features.spaces
    if len(spaces) == 1:
        return spaces[0].backbone
    return " + ".join(f"{space.backbone}:{space.layer} ({space.dim})" for space in spaces)


def _short(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " x ".join(map(str, value)) or "none"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _cross_validated(cv: dict[str, Any] | None) -> str:
    if cv is None:
        return "none, so probabilities are taken as they come"
    spread = f" (folds differ by {100 * cv['accuracy_std']:.1f})" if "accuracy_std" in cv else ""
    if "map" in cv:
        found = "no label could be ranked" if cv["map"] is None else f"mean average precision {100 * cv['map']:.1f} %"
        return f"{found}, all labels right in {100 * cv['accuracy']:.1f} %, {cv['folds']} folds"
    return f"{100 * cv['accuracy']:.1f} %{spread}, log loss {cv['log_loss_calibrated']:.3f}, {cv['folds']} folds"


def validation_lines(scores: dict[str, Any], *, multi_label: bool) -> list[str]:
    """Return the score on the validation images with its interval and baselines, for a person."""
    val = scores["val"]
    if val is None:
        return ["validation: none, the dataset has no such split and --val-fraction is 0"]
    if multi_label:
        return [_labels_line(scores), calibration_words(val)]
    baseline = scores["baseline"]
    return [
        f"validation: {100 * val['accuracy']:.1f} % of {val['n']} images (95 % interval {100 * val['low']:.1f} to "
        f"{100 * val['high']:.1f}); majority class {100 * baseline['majority']:.1f} %, "
        f"nearest class mean {100 * baseline['nearest_mean']:.1f} %",
        calibration_words(val),
    ]


def _labels_line(scores: dict[str, Any]) -> str:
    val, chance = scores["val"], scores["baseline"]["map"]
    ranked = "no label occurs" if val["map"] is None else f"mean average precision {100 * val['map']:.1f} %"
    by_chance = "" if chance is None else f" (by chance {100 * chance:.1f} %)"
    f1 = "-" if val["macro_f1"] is None else f"{100 * val['macro_f1']:.1f} %"
    return (
        f"validation: {ranked}{by_chance}, macro F1 {f1}, all labels right in {100 * val['accuracy']:.1f} % of "
        f"{val['n']} images (95 % interval {100 * val['low']:.1f} to {100 * val['high']:.1f})"
    )


def _detail_lines(fit: Fit) -> list[str]:
    return _search_lines(fit.head.cv_) + _table_lines(fit.model.scores, multi_label=fit.model.multi_label)


def _search_lines(cv: dict[str, Any]) -> list[str]:
    if "Cs" in cv:
        rows = zip(cv["Cs"], cv["log_losses"], cv["log_loss_std"], strict=True)
        return [
            f"  C {C:<9.3g} cross-validated log loss {loss:.4f} (folds differ by {std:.4f})" for C, loss, std in rows
        ]
    measures = ("log_loss", "accuracy")
    lines = []
    for row in cv.get("grid", []):
        setting = ", ".join(f"{name} {_short(value)}" for name, value in row.items() if name not in measures)
        loss = "diverged" if row["log_loss"] is None else f"log loss {row['log_loss']:.4f}"
        lines.append(f"  {setting}: cross-validated {loss}, accuracy {_percent(row['accuracy'])} %")
    return lines


def _table_lines(scores: dict[str, Any], *, multi_label: bool) -> list[str]:
    columns = ("precision", "recall", "f1") + (("average_precision", "threshold") if multi_label else ())
    if not scores["per_class"]:
        return []
    lines = [f"  {'label' if multi_label else 'class':<20} {'images':>6} " + " ".join(f"{c:>9}" for c in columns)]
    for row in scores["per_class"]:
        shares = " ".join(f"{_percent(row[column]):>{max(9, len(column))}}" for column in columns)
        lines.append(f"  {printable(row['label']):<20} {row['n']:>6} {shares}")
    val = scores["val"]
    if not multi_label:
        auc = "-" if val["roc_auc"] is None else f"{val['roc_auc']:.3f}"
        top = "" if val["top_k"] is None else f", top {val['top_k']['k']} {_percent(val['top_k']['accuracy'])} %"
        lines.append(
            f"  balanced accuracy {_percent(val['balanced_accuracy'])} %, macro F1 {_percent(val['macro_f1'])} %, "
            f"ROC AUC {auc}{top}"
        )
        sets = scores["conformal"]
        if sets is None:  # nothing was cross-validated
            return lines
        lines.append(
            f"  sets that promise {_percent(sets['promised'])} %: hold the class of {_percent(sets['coverage'])} % "
            f"({_percent(sets['low'])} to {_percent(sets['high'])}), {sets['mean_size']:.2f} classes each"
        )
    return lines


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
