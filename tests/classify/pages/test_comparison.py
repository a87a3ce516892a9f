"""The page of a comparison says what its JSON says, and names of the dataset stay text."""

import html
import re
from dataclasses import replace

import numpy as np
import pytest
from browser import console_errors, open_browser, overflow

from headstart.classify.comparison import Comparison, Row
from headstart.classify.pages.comparison import comparison_page

HOSTILE = "<script>alert(1)</script>\x1b[2J"


def row(name: str, accuracy: float, rate: float | None, **changes) -> Row:
    fields = {
        "name": f"{name}+knn", "backbone": name, "layer": "fc.input", "weights": "default", "space": name, "head": "knn",
        "cv_accuracy": accuracy, "low": accuracy - 0.05, "high": accuracy + 0.04, "cv_map": None, "log_loss": 0.25,
        "train_accuracy": 1.0, "dim": 512, "parameters": 11_200_000, "images_per_second": rate, "licence": "BSD-3-Clause",
        "pareto": True, "choice": "k = 5", "command": f"headstart fit-head '{HOSTILE}'", "right": np.ones(4, bool),
    }  # fmt: skip
    return Row(**{**fields, **changes})


@pytest.fixture
def found(tmp_path) -> Comparison:
    points = [
        {"n": n, "mean": mean, "low": mean - 0.1, "high": mean + 0.05, "std": 0.1} for n, mean in ((5, 0.7), (20, 0.9))
    ]
    compared = {"row": 1, "only_best": 9, "only_other": 1, "p_value": 0.021, "p_adjusted": 0.043, "beyond_chance": True}
    advice = [
        {"about": "differences", "text": f"{HOSTILE} is better", "cheapest": 0, "comparisons": [compared]},
        {"about": "finetune", "text": "finetuning is unlikely to pay: so it is", "prediction": "unlikely"},
        {"about": "more_images", "text": "best: too few to tell", "answer": "cannot be told", "points": points},
    ]
    rows = [row("best", 0.9, 20.0), row("other", 0.7, 400.0, parameters=None)]
    return Comparison(
        root=HOSTILE, rows=rows, advice=advice, train=40, val=10, classes=("a", "b"), folds=5, out=tmp_path, chosen=0,
        seconds=1.0,
    )  # fmt: skip


def test_the_page_has_rows_advice_and_figures(found):
    page = comparison_page(found)
    text = html.unescape(re.sub(r"<[^>]*>", "", page)).replace("\u00a0", " ")
    for words in ("90.0 %", "85.0 to 94.0 %", "0.250", "11.2 M", "400", "0.043", "BSD-3-Clause",
                  "finetuning is unlikely to pay: so it is", "The 10 validation pictures were not looked at"):  # fmt: skip
        assert words in text
    assert page.count("<svg") == 2
    assert page.count("★") == 3  # of both rows, and of what explains it


def test_names_stay_text(found):
    page = comparison_page(found)
    assert "<script>alert" not in page and "\x1b" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_what_is_not_known_is_left_out(found):
    alone = replace(
        found,
        rows=[row("best", 0.9, None)],
        advice=[{**found.advice[0], "comparisons": []}, found.advice[1], {**found.advice[2], "points": []}],
        val=0,
    )
    page = comparison_page(alone)
    assert "<svg" not in page and "McNemar" not in page and "validation pictures" not in page


def test_a_browser_shows_it_at_any_width(found, tmp_path):
    (tmp_path / "compare.html").write_text(comparison_page(found))
    for width in (360, 1200):
        with open_browser(width) as browser:
            browser.get((tmp_path / "compare.html").as_uri())
            assert console_errors(browser) == []
            assert overflow(browser) == 0
