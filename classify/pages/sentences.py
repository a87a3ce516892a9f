"""What a report says in words: the verdict, what to keep in mind, how the model came to be."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...errors import printable
from ..fitted import chosen
from .findings import Findings, is_leak
from .page import counted, percent
from .pictures import NO_ROOM, Album
from .projection import Projection

_FEW = 100  # pictures below which an interval is wide
_FEW_OF_A_CLASS = 10
_SPLITS = {"val": "validation pictures", "test": "test pictures", "train": "training pictures", "all": "pictures"}


def verdict(found: Findings) -> str:
    """Return how good the model is in one sentence, with its interval and what guessing achieves."""
    scores, evaluation = found.evaluation.scores, found.evaluation
    what = f"{scores['n']:,} {_SPLITS[evaluation.split]}"
    between = f"(95 % interval {percent(scores['low'])} to {percent(scores['high'])})"
    if evaluation.multi_label:
        ranked = percent(scores["map"])
        return (
            f"Mean average precision {ranked}; all labels right on {percent(scores['accuracy'])} of {what} {between}."
        )
    baseline = scores["baseline"]
    sentence = f"Right on {percent(scores['accuracy'])} of {what} {between}"
    if baseline["majority"] is None:
        return f"{sentence}."
    majority, mean = percent(baseline["majority"]), percent(baseline["nearest_mean"])
    always = f"always answering with the commonest training class would be right on {majority}"
    return f"{sentence}; {always}, the nearest class mean on {mean}."


def cautions(found: Findings) -> list[str]:
    """Return what to keep in mind before the verdict is believed, the gravest first."""
    evaluation, scores, model = found.evaluation, found.evaluation.scores, found.model
    said = []
    if evaluation.split == "train":
        said.append("The model was trained on these pictures: its score says little of new ones.")
    if model.facts.get("selected_on") == "val" and evaluation.split == "val":
        said.append(
            "The epoch was chosen by these very pictures, so the score is better than that of new ones will be."
        )
    leaks = [group for group in found.across() if is_leak(group)]
    if leaks:
        said.append(
            f"{counted(len(leaks), 'group')} of copies are in train and in another split: the score is partly memory. "
            "Fit again with --dedupe."
        )
    baseline = scores["baseline"].get("majority")
    if baseline is not None and scores["low"] <= baseline:
        said.append("It is not shown to be better than always answering with the commonest class.")
    if scores["n"] < _FEW:
        said.append(f"{counted(scores['n'], 'picture is', 'pictures are')} few: the interval is wide.")
    rare = _rare(found)
    if rare:
        names = ", ".join(printable(name) for name in rare[:3]) + (
            f" and {len(rare) - 3} more" if len(rare) > 3 else ""
        )
        said.append(f"Of {names} fewer than {_FEW_OF_A_CLASS} pictures were scored: their own figures say little.")
    sure = found.accused() if found.trusted else 0
    if sure:
        said.append(f"{counted(sure, 'training label is', 'training labels are')} probably wrong; see Labels to check.")
    failures = len(found.labelled.features.listing.failures)
    if failures:
        said.append(f"{counted(failures, 'file')} of the dataset could not be read, and is in no figure here.")
    return said


def _rare(found: Findings) -> list[str]:
    rows = found.evaluation.scores["per_label" if found.evaluation.multi_label else "per_class"]
    return [row["label"] for row in rows if row["n"] < _FEW_OF_A_CLASS]


def gone(album: Album, found: Findings) -> list[str]:
    """Return that pictures are not where they were, if they are not."""
    count = sum(reason != NO_ROOM for reason in album.missing.values())
    if not count:
        return []
    lost = counted(count, "picture is", "pictures are")
    return [f"{lost} not in {printable(found.base)} any more, or changed there since: only the name is shown."]


def figures(found: Findings) -> list[dict[str, str]]:
    """Return the handful of numbers that stand below the verdict."""
    s = found.evaluation.scores
    calibration = {
        "name": "Calibration error",
        "value": percent(s["ece"]),
        "note": f"before temperature {percent(s['ece_uncalibrated'])}",
    }
    if found.evaluation.multi_label:
        f1 = percent(s["macro_f1"])
        return [
            {"name": "Mean average precision", "value": percent(s["map"]), "note": ""},
            {"name": "Macro F1", "value": f1, "note": ""},
            {"name": "All labels right", "value": percent(s["accuracy"]), "note": ""},
            calibration,
        ]
    shown = [
        {"name": "Accuracy", "value": percent(s["accuracy"]), "note": f"{percent(s['low'])} to {percent(s['high'])}"},
        {"name": "Balanced accuracy", "value": percent(s["balanced_accuracy"]), "note": "each class counts alike"},
        {
            "name": "Log loss",
            "value": f"{s['log_loss']:.3f}",
            "note": f"guessing {np.log(len(found.model.classes)):.3f}",
        },
        calibration,
    ]
    sets = s["conformal"]
    if sets is not None:
        held = f"hold the class of {percent(sets['coverage'])}, {sets['mean_size']:.2f} classes each"
        shown.append({"name": "Prediction sets", "value": percent(sets["promised"], 0), "note": held})
    return shown


def calibration(found: Findings) -> str:
    """Return what the reliability diagram says."""
    s, temperature = found.evaluation.scores, found.model.temperature
    sentence = (
        f"Probabilities and the share that is right are {percent(s['ece'])} apart on average, "
        f"over {s['n']:,} {_SPLITS[found.evaluation.split]}"
    )
    if temperature == 1.0:
        return f"{sentence}; the temperature is 1, which leaves them as they are."
    return f"{sentence}; without the temperature of {temperature:.2f}, fitted on training pictures, it would be " + (
        f"{percent(s['ece_uncalibrated'])}."
    )


def labels(found: Findings) -> str:
    """Return why no label is shown as doubtful."""
    if found.trusted:
        return "No label of a training picture looks wrong."
    n = len(found.diagnostics.suspicious)
    return (
        f"The head takes {found.accused():,} of {n:,} training labels for wrong, which says more of the head than of "
        "them: it is too weak to judge labels."
    )


def copies(found: Findings) -> str:
    """Return how many copies were found, or why none were."""
    groups = found.diagnostics.near_copies
    if not groups:
        looked = found.labelled.copies is not None and found.labelled.copies.compared
        return "None, byte for byte or nearly." if looked else "None, byte for byte; near copies were not looked for."
    leaks = sum(is_leak(group) for group in groups)
    words = f"{counted(len(groups), 'group')} of copies, byte for byte or nearly"
    return (
        f"{words}; {counted(leaks, 'group')} across train and another split."
        if leaks
        else f"{words}, none across splits."
    )


def outliers(found: Findings) -> str:
    """Return why no outlier is shown."""
    if found.diagnostics.outliers:
        return "None that is farther from the others than chance makes one in fifty."
    return "Not looked for: the dataset is another one than the model was trained on, or too small."


def on_map(found: Findings, projection: Projection) -> str:
    """Return what is on the map."""
    n = len(found.labelled.y)
    some = f"{len(found.shown):,} of {n:,} pictures, drawn by chance" if len(found.shown) < n else f"All {n:,} pictures"
    return f"{some}, laid out by {'UMAP' if projection.method == 'umap' else 'the two principal components'}."


def training(found: Findings) -> str:
    """Return in a sentence what was trained, on how much, and what was chosen."""
    model, facts = found.model, found.model.facts
    spaces = ", ".join(dict.fromkeys(f"{space['backbone']} ({space['layer']})" for space in model.spaces))
    width = sum(space["dim"] for space in model.spaces)
    n = model.scores["train"]["n"]
    if "mode" in facts:
        what = "all of it" if facts["mode"] == "all" else facts["mode"]
        return (
            f"{spaces}, finetuned ({what}) on {n:,} pictures at a learning rate of {facts['lr']:.3g}; epoch "
            f"{facts['best_epoch']} of {facts['epochs']}, selected on {facts['selected_on']}."
        )
    settings = ", ".join(f"{name} {_short(value)}" for name, value in chosen(facts).items())
    cv = model.scores["cv"]
    if cv is None:
        return (
            f"A {model.kind} head on {width:,} features of {spaces}, trained on {n:,} pictures"
            f"{f'; {settings}' if settings else ''}; nothing was cross-validated."
        )
    scored = f"mean average precision {percent(cv['map'])}" if "map" in cv else f"accuracy {percent(cv['accuracy'])}"
    return (
        f"A {model.kind} head on {width:,} features of {spaces}, trained on {n:,} pictures"
        f"{f'; {settings}, chosen' if settings else '; scored'} by {cv['folds']}-fold cross-validation, {scored} there."
    )


def few_shots(found: Findings) -> str:
    """Return what the fewest and the most images a class of the few-shot curve are worth, if it was drawn."""
    few = found.model.scores.get("shots")
    if not few or not few["points"]:
        return ""
    ends = few["points"] if len(few["points"]) < 2 else [few["points"][0], few["points"][-1]]
    told = [
        f"{percent(point['mean'])} ({percent(point['low'])} to {percent(point['high'])}) with "
        f"{counted(point['shots'], 'image')} a class"
        for point in ends
    ]
    right = f"Of training images that were set aside, the head gets right {', and '.join(told)}"
    more = [ends[-1]["verdict"]] if few["views"] > 1 else []
    more += [few["ended"]] if few["ended"] else []
    return f"{'; '.join([right, *more])}."


def _short(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " x ".join(map(str, value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)
