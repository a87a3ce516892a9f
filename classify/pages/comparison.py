"""The page of a comparison: its table, accuracy against time, what is advised and the figures behind that."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from ...errors import printable
from ..comparison import Comparison
from ..curve import LearningCurve
from . import charts
from .page import counted, render


def comparison_page(found: Comparison) -> str:
    """Return the HTML page of a comparison, which needs nothing but itself.

    Parameters
    ----------
    found : Comparison
    """
    differences, _, more = found.advice
    pictures, classes = counted(found.train, "training picture"), counted(len(found.classes), "class", "classes")
    views = found.views
    drawn = f" Heads were trained on {views.count} views of each ({views.augment})." if views.count > 1 else ""
    untouched = f" The {counted(found.val, 'validation picture')} were not looked at." if found.val else ""
    return render(
        "comparison.html",
        title=found.root,
        verdict=f"{printable(differences['text'])}.",
        measured=(
            f"Measured on {pictures} of {classes}, each when it was held out, in {found.folds} folds that are the same "
            f"for all rows.{drawn}{untouched}"
        ),
        multi_label=found.multi_label,
        rows=[{**row.as_dict(), "label": row.name.removesuffix(f"+{row.head}")} for row in found.rows],
        chart=_against_time(found),
        advice=[entry["text"] for entry in found.advice],
        next_words="Score the one that you choose on the validation pictures, once:" if found.val else "Fit it:",
        command=found.rows[found.chosen].command,
        best=found.rows[0].name,
        train=found.train,
        comparisons=[{**row, "label": found.rows[row["row"]].name} for row in differences["comparisons"]],
        curve=_curve(found, more),
        curve_words=f"{more['text']}.",
    )


def _against_time(found: Comparison) -> Markup | None:
    """Return the chart of those rows whose speed is known; with several labels an image none, for rank is by mAP."""
    rows = [
        charts.Contender(row.name, row.cv_accuracy, row.low, row.high, row.cost)
        for row in found.rows
        if row.images_per_second
    ]
    return None if found.multi_label or not rows else charts.pareto(rows)


def _curve(found: Comparison, more: dict[str, Any]) -> Markup | None:
    if not more["points"]:
        return None
    measure = "map" if found.multi_label else "accuracy"
    return charts.learning_curve(LearningCurve(more["points"], measure, more["text"]))
