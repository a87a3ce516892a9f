"""The report: one HTML file in which a person sees what a model does, to which pictures, and how it came to be."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from ...errors import UsageError, printable
from ...extract.elsewhere import location
from ...extract.options import DEFAULT_MAX_PIXELS, RunOptions
from ..curve import LearningCurve
from ..few_shots import FewShots
from ..model import load_model
from ..predict import Classifier
from ..provenance import versions
from ..result_file import check_file, check_no_input, write_file
from . import charts, sentences
from .commands import commands_of
from .findings import SHOWN, Findings, gather, is_leak
from .page import as_data, render
from .pictures import Album
from .projection import METHODS, Projection, project
from .scatter import scatter
from .tables import Confusion, confusion, per_class

logger = logging.getLogger("headstart.classify")

_OF_A_GROUP = 6  # pictures of one group of copies


@dataclass(frozen=True, slots=True)
class Report:
    """A report that was written.

    Attributes
    ----------
    out : Path
    bytes : int
        Size of the file.
    pictures : int
        How many are in it.
    missing : int
        How many more it names that are not: not on the disk any more, changed, or one too many.
    verdict : str
    seconds : float
    """

    out: Path
    bytes: int
    pictures: int
    missing: int
    verdict: str
    seconds: float

    def summary(self) -> dict[str, Any]:
        """Return the fields of ``report --json``."""
        return {
            "out": str(self.out),
            "bytes": self.bytes,
            "pictures": self.pictures,
            "missing": self.missing,
            "verdict": self.verdict,
            "seconds": round(self.seconds, 3),
        }

    def lines(self) -> list[str]:
        """Return the verdict, and where to read more."""
        gone = f", {self.missing} more only by name" if self.missing else ""
        size = f"{self.bytes / 1e6:.1f} MB, {self.pictures} pictures{gone}"
        return [self.verdict, f"wrote {printable(self.out)} ({size}) in {self.seconds:.1f} s; open it in a browser"]


def report(
    model: str | os.PathLike[str],
    data: str | os.PathLike[str] | None = None,
    *,
    out: str | os.PathLike[str] = "report.html",
    overwrite: bool = False,
    split: str = "val",
    projection: str = "pca",
    cache: str | os.PathLike[str] | None = None,
    run: RunOptions | None = None,
) -> Report:
    """Write an HTML report on a model.

    The file needs nothing but itself: no network, no folder beside it. Pictures are in it as thumbnails.

    Parameters
    ----------
    model : path
        The model's folder.
    data : path, optional
        The dataset; the one that the model was trained on where it is None. What the cache lacks is embedded.
    out : path, default "report.html"
    overwrite : bool, default False
        Replace a file that is there.
    split : {"val", "test", "train"}, default "val"
        As in `headstart.evaluate`.
    projection : {"pca", "umap"}, default "pca"
        How the map is laid out; "umap" needs the extra of that name.
    cache : path, optional
    run : RunOptions, optional

    Returns
    -------
    Report

    Raises
    ------
    ModelError, DataError
        As `headstart.evaluate`.
    OutputError
        `out` is there, or cannot be written.
    """
    begin = time.perf_counter()
    out = Path(out)
    check_file(out, ".html", overwrite=overwrite)
    if projection not in METHODS:
        raise UsageError(f"--projection must be one of {', '.join(METHODS)}, and is {projection!r}")
    classifier = Classifier(load_model(Path(model)), cache, run)
    found = gather(classifier, data, split)
    paths = found.paths()
    check_no_input(out, [os.fsdecode(location(found.base, path)) for path in paths])
    seen = project(found.labelled.features.X[found.labelled.rows[found.shown]], projection)
    table, sections = confusion(found), _galleries(found)
    album = Album(found.base, classifier.run.max_pixels or DEFAULT_MAX_PIXELS)
    wanted = _wanted(found, table, sections)
    album.add(wanted, paths, found.digests())
    gone, verdict = sentences.gone(album, found), sentences.verdict(found)
    for words in gone:
        logger.warning("%s", words)
    page = render(
        "report.html",
        **_words(found, str(model), seen),
        verdict=verdict,
        cautions=sentences.cautions(found) + gone,
        **sections,
        charts=_charts(found, seen),
        confusion=table,
        commands=commands_of(found.model, classifier.store.root),
        made=_made(found),
        data=_data(found, table, album, wanted),
    )
    content = page.encode("utf-8", "backslashreplace")
    write_file(out, content)
    return Report(out, len(content), len(album.images), len(album.missing), verdict, time.perf_counter() - begin)


def _words(found: Findings, model: str, seen: Projection) -> dict[str, Any]:
    columns, rows = per_class(found)
    curve = found.model.scores.get("curve")
    return {
        "title": Path(model).name or model,
        "figures": sentences.figures(found),
        "contents": _contents(found),
        "multi_label": found.evaluation.multi_label,
        "columns": columns,
        "per_class": rows,
        "calibration": sentences.calibration(found),
        "doubted": found.doubted,
        "labels_words": sentences.labels(found),
        "copies_words": sentences.copies(found),
        "outlier_words": sentences.outliers(found),
        "map_words": sentences.on_map(found, seen),
        "training_words": sentences.training(found),
        "curve_words": "" if curve is None else f"{curve['verdict'].capitalize()}.",
        "shots_words": sentences.few_shots(found),
        "notes": found.model.facts.get("notes", []),
    }


def _contents(found: Findings) -> list[tuple[str, str]]:
    several = found.evaluation.multi_label
    contents = [
        ("confusion", "Labels" if several else "Confusion"),
        ("worst", "Worst errors"),
        ("classes", "Label by label" if several else "Class by class"),
        ("calibration", "Calibration"),
        ("labels", "Labels to check") if found.doubted else ("", ""),
        ("copies", "Copies"),
        ("outliers", "Outliers"),
        ("map", "Map"),
        ("training", "Training"),
        ("curve", "Learning curve") if found.model.scores.get("curve") else ("", ""),
        ("shots", "Few shots") if (found.model.scores.get("shots") or {}).get("points") else ("", ""),
        ("made", "How it was made"),
    ]
    return [item for item in contents if item[0]]


def _galleries(found: Findings) -> dict[str, Any]:
    """Return the pictures that stand in the page itself, as the template takes them."""
    rows = found.rows()
    return {
        "worst": _worst(found),
        "suspicious": _placed(found, rows, found.suspicious()),
        "outliers": _placed(found, rows, found.outliers()),
        "copies": [_group(found, rows, group) for group in found.across()[:SHOWN]],
    }


def _placed(found: Findings, rows: dict[str, int], items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**item, "row": rows[item["path"]], "path": found.name(rows[item["path"]])} for item in items]


def _worst(found: Findings) -> list[dict[str, Any]]:
    places = found.wrong()[:SHOWN]
    rows, sure = found.scored[places], found.confidence()
    return [
        {
            "row": int(row),
            "path": found.name(int(row)),
            "label": _label(found, int(row)),
            "answer": _answer(found, int(place)),
            "sure": float(sure[place]),
            "nearest": [{"row": int(near), "label": _label(found, int(near))} for near in nearest],
        }
        for place, row, nearest in zip(places, rows, found.neighbours(rows), strict=True)
    ]


def _group(found: Findings, places: dict[str, int], group: list[dict[str, Any]]) -> dict[str, Any]:
    members = sorted(group, key=lambda row: row["split"] != "train")
    # Of a large group the first and the last: where it is in two splits, both are seen.
    shown = members if len(members) <= _OF_A_GROUP else members[: _OF_A_GROUP - 2] + members[-2:]
    placed = _placed(found, places, shown)
    for member in placed:
        member["label"] = _label(found, member["row"])
    where = " and ".join(dict.fromkeys(row["split"] for row in members))
    return {"members": placed, "more": len(members) - len(shown), "leak": is_leak(group), "where": where}


def _label(found: Findings, row: int) -> str:
    data = found.labelled
    return _named(found, (data.y if data.Y is None else data.Y)[row])


def _answer(found: Findings, place: int) -> str:
    """Return what the model says of the picture at a place of the evaluation."""
    return _named(found, found.evaluation.predicted[place])


def _named(found: Findings, given: np.ndarray) -> str:
    """Return the name of a class, or of all labels that are given together."""
    classes = found.evaluation.classes
    if found.evaluation.multi_label:
        return "|".join(classes[label] for label in np.flatnonzero(given)) or "none of the labels"
    return str(classes[given])


def _wanted(found: Findings, table: Confusion, sections: dict[str, Any]) -> list[int]:
    """Return the rows whose pictures the page shows, the most important first."""
    rows = [case["row"] for case in sections["worst"]]
    rows += [near["row"] for case in sections["worst"] for near in case["nearest"]]
    rows += [item["row"] for name in ("suspicious", "outliers") for item in sections[name]]
    rows += [member["row"] for group in sections["copies"] for member in group["members"]]
    # Turn by turn from each cell, so that no cell is without pictures where there is no room for all.
    behind = [cell.rows for cell in table.cells()]
    rows += [some[turn] for turn in range(max(map(len, behind), default=0)) for some in behind if turn < len(some)]
    shown = np.random.default_rng(0).permutation(found.shown)
    return list(dict.fromkeys([*rows, *shown.tolist()]))


def _data(found: Findings, table: Confusion, album: Album, wanted: Sequence[int]) -> Markup:
    """Return what the page's script needs: pictures, what they are, which are behind each cell."""
    places = {int(row): place for place, row in enumerate(found.scored)}
    right, sure = found.evaluation.right(), found.confidence()
    rows = {}
    for row in wanted:
        place = places.get(row)
        answer = "" if place is None or right[place] else printable(_answer(found, place))
        probability = "" if place is None else f"{100 * sure[place]:.0f} %"
        rows[row] = [
            printable(found.name(row)),
            printable(_label(found, row)),
            answer,
            probability,
            int(place is None or right[place]),
        ]
    cells = {cell.id: {"title": cell.title, "count": cell.count, "rows": cell.rows} for cell in table.cells()}
    return as_data({"pictures": album.images, "missing": album.missing, "rows": rows, "cells": cells})


def _charts(found: Findings, seen: Projection) -> dict[str, Any]:
    data, curve, few = found.labelled, found.model.scores.get("curve"), found.model.scores.get("shots")
    drawn = LearningCurve(**curve) if curve and curve["points"] else None
    wrong = np.zeros(len(data.y), bool)
    wrong[found.scored[found.wrong()]] = True
    held = np.zeros(len(data.y), bool)
    held[found.scored] = True
    classes = found.evaluation.classes
    labels = data.y if data.Y is None else _one_label(data.Y)
    return {
        "reliability": charts.reliability(found.before, None if found.model.temperature == 1.0 else found.after),
        "map": scatter(
            seen,
            labels[found.shown],
            classes,
            wrong=wrong[found.shown],
            held_out=held[found.shown],
            numbers=found.shown,
        ),
        "training": _training_charts(found),
        "curve": None if drawn is None else charts.learning_curve(drawn),
        "shots": charts.few_shots(FewShots(**few)) if few and few["points"] else None,
    }


def _one_label(Y: np.ndarray) -> np.ndarray:
    """Return the rarest label of each image, by which it is coloured, (n,); -1 where it has none."""
    order = np.argsort(Y.sum(axis=0), kind="stable")
    return np.where(Y.any(axis=1), order[Y[:, order].argmax(axis=1)], -1)


def _training_charts(found: Findings) -> list[Markup]:
    facts = found.model.facts
    cv = facts.get("cv", {})
    drawn = []
    if len(cv.get("Cs", [])) > 1:
        drawn.append(charts.search_curve(cv["Cs"], cv["log_losses"], cv["log_loss_std"], facts["C"]))
    if len(cv.get("grid", [])) > 1:
        drawn.append(charts.setting_dots(cv["grid"]))
    if facts.get("lr_search"):
        drawn.append(charts.rate_curve(facts["lr_search"], facts["lr"]))
    if facts.get("history"):
        best = facts.get("best_epoch", facts.get("epochs"))
        drawn.append(charts.loss_curves(facts["history"], best_epoch=best, held_out=_held_out(facts)))
    return drawn


def _held_out(facts: dict[str, Any]) -> str:
    """Return what the pictures were by which an epoch was chosen."""
    if "mode" not in facts:
        return "held-out folds"
    return "dev" if facts["selected_on"] == "last" else str(facts["selected_on"])


def _made(found: Findings) -> list[tuple[str, str]]:
    """Return facts on how the model and this report were made."""
    training = found.model.training
    facts = [("Dataset", training["root"]), ("Trained", training["created"])]
    if "seconds" in training:
        facts.append(("Seconds", f"{training['seconds']:.1f}"))
    views = found.model.views
    if views.count > 1:
        facts.append(("Views", f"{views.count} of each training picture ({views.augment}), the first its plain crop"))
    for space in found.model.spaces:
        size = space["preprocess"]
        facts.append(
            (
                "Feature space",
                f"{space['backbone']}, layer {space['layer']}, {space['dim']} wide, resize {size['resize']}, crop "
                f"{size['crop']}, {size['interpolation']}, {space['precision']}; weights {space['weights'][:16]}",
            )
        )
    own = training.get("versions") or {"headstart": training["headstart"]}
    facts.append(("Trained with", ", ".join(f"{name} {number}" for name, number in own.items())))
    if versions() != own:
        facts.append(("Reported with", ", ".join(f"{name} {number}" for name, number in versions().items())))
    facts.append(("Seed", str(training.get("seed", 0))))
    return facts
