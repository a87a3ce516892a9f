import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

import headstart
from headstart.classify.curve import LearningCurve
from headstart.classify.few_shots import FewShots
from headstart.classify.metrics import expected_calibration_error, reliability_curve
from headstart.classify.pages import charts
from headstart.classify.pages.charts import Contender
from headstart.classify.pages.frame import log_places, number_words
from headstart.classify.pages.projection import Projection
from headstart.classify.pages.scatter import MOST_POINTS
from headstart.classify.pages.svg import COLOURS, sheet
from headstart.errors import printable

HOSTILE = [
    *("<img src=x onerror=alert(1)>", "</svg><script>alert(1)</script>", "$x$", r"$\frac{1}{0}$", "a_b^c", "_hidden"),
    *(
        "line\nbreak",
        "\u202egnp.exe",
        "שלום",
        "😀",
        'quote" onload="x',
        "]]><!--",
        "\x00\x1b[31m",
        "\udcff",
        "{{ 7 * 7 }}",
    ),
]
CSS = (Path(headstart.__file__).parent / "classify" / "pages" / "charts.css").read_text()


def probabilities(n=400, seed=0):
    rng = np.random.default_rng(seed)
    y, logits = rng.integers(0, 4, n), rng.standard_normal((n, 4)) * 3
    logits[np.arange(n), y] += 2
    shares = [np.exp(logits / t) / np.exp(logits / t).sum(axis=1, keepdims=True) for t in (1, 2)]
    return y, *shares


def curves():
    y, *both = probabilities()
    return [reliability_curve(proba.max(axis=1), proba.argmax(axis=1) == y) for proba in both]


HISTORY = [
    {"epoch": 0, "train_loss": None, "dev_loss": 1.4, "dev_accuracy": 0.25},
    {"epoch": 1, "train_loss": 1.1, "dev_loss": 0.9, "dev_accuracy": 0.7},
    {"epoch": 2, "train_loss": 0.6, "dev_loss": 0.7, "dev_accuracy": 0.9},
    {"epoch": 3, "train_loss": 0.4, "dev_loss": 0.8, "dev_accuracy": 0.8},
]
GRID = [
    {
        "lr": 0.001,
        "weight_decay": 0.01,
        "hidden": [256],
        "dropout": 0.5,
        "epochs": 9,
        "log_loss": 0.41,
        "accuracy": 0.9,
    },
    {
        "lr": 0.003,
        "weight_decay": 0.01,
        "hidden": [256],
        "dropout": 0.5,
        "epochs": 4,
        "log_loss": 0.33,
        "accuracy": 0.9,
    },
    {"lr": 0.1, "weight_decay": 0.01, "hidden": [256], "dropout": 0.5, "epochs": 0, "log_loss": None, "accuracy": None},
]
POINTS = [
    {"n": n, "mean": mean, "low": mean - 0.03, "high": mean + 0.03, "std": 0.05} for n, mean in ((20, 0.6), (200, 0.9))
]
SHOTS = [{"shots": shots, **point} for shots, point in zip((1, 4), POINTS, strict=True)]
VIEWS = [{**point, "plain": POINTS[0], "difference": POINTS[0], "verdict": "views help"} for point in SHOTS]
MODELS = [
    Contender("slow", 0.9, 0.85, 0.93, 0.1),
    Contender("fast", 0.8, 0.75, 0.85, 0.01),
    Contender("both", 0.7, 0.6, 0.8, 0.05),
]
MAP = Projection(np.random.default_rng(0).standard_normal((60, 2)).astype(np.float32), "pca", (0.5, 0.2))
ALL = {
    "reliability": lambda p: charts.reliability(*curves(), prefix=p),
    "search_curve": lambda p: charts.search_curve([0.01, 0.1, 1], [0.5, 0.3, 0.4], [0.1] * 3, 0.1, prefix=p),
    "search_curve, k": lambda p: charts.search_curve([1, 5], [9.5, 0.3], None, 5, name="k", prefix=p),
    "setting_dots": lambda p: charts.setting_dots(GRID, prefix=p),
    "loss_curves": lambda p: charts.loss_curves(HISTORY, best_epoch=2, prefix=p),
    "rate_curve": lambda p: charts.rate_curve([{"lr": 10.0**-k, "loss": 1 + k} for k in (5, 4, 3)], 1e-4, prefix=p),
    "learning_curve": lambda p: charts.learning_curve(LearningCurve(POINTS, "accuracy", "more help"), prefix=p),
    "few_shots": lambda p: charts.few_shots(FewShots(SHOTS, 10), prefix=p),
    "few_shots, views": lambda p: charts.few_shots(FewShots(VIEWS, 10, 8), prefix=p),
    "pareto": lambda p: charts.pareto(MODELS, prefix=p),
    "scatter": lambda p: charts.scatter(MAP, np.arange(60) % 3, "abc", wrong=np.arange(60) == 7, prefix=p),
}


def parsed(markup):
    return ElementTree.fromstring(str(markup).replace(' xmlns="http://www.w3.org/2000/svg"', "", 1))


def described(markup):
    return parsed(markup).findtext("desc")


def texts(root):
    return [element.text for element in root.iter("text")]


@pytest.mark.parametrize("name", ALL)
def test_a_chart_is_one_inert_svg_element_that_a_strict_page_may_hold(name):
    markup = ALL[name]("p7")
    assert type(markup).__name__ == "Markup"
    root = parsed(markup)
    assert markup.startswith("<svg ")
    assert root.get("role") == "img"
    named = root.get("aria-labelledby").split()
    assert [element.get("id") for element in (root.find("title"), root.find("desc"))] == named
    assert all(element.text for element in (root.find("title"), root.find("desc")))
    assert not re.search(r"<\?|<!|rdf|metadata|http://(?!www\.w3\.org/2000/svg)|20\d\d-\d\d", markup)
    for element in root.iter():
        assert element.tag in {"svg", "title", "desc", "g", "path", "use", "text", "defs", "clipPath", "rect", "circle"}
        assert not {name for name in element.attrib if name == "style" or name.startswith("on") or ":" in name}
        assert element.get("href", "#p7").startswith("#p7")
        for colour in (element.get("fill"), element.get("stroke")):
            assert colour in {None, "none", "currentColor", "var(--paper)", "var(--bad)"}
        if element is not root:
            assert element.get("class") in {None, "marks", *COLOURS}
    assert not {"width", "height"} & set(root.attrib)


@pytest.mark.parametrize("name", ALL)
def test_ids_are_a_charts_own_and_all_that_is_referred_to_is_there(name):
    root = parsed(ALL[name]("p7"))
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(ids) == len(set(ids))
    assert all(found.startswith("p7-") for found in ids)
    referred = {element.get("href")[1:] for element in root.iter() if element.get("href")}
    referred |= {element.get("clip-path")[5:-1] for element in root.iter() if element.get("clip-path")}
    assert referred <= set(ids)


@pytest.mark.parametrize("name", ALL)
def test_the_same_data_give_the_same_bytes(name):
    assert ALL[name]("a") == ALL[name]("a")
    assert ALL[name]("a").replace("a-", "b-") == ALL[name]("b").replace("a-", "b-")


@pytest.mark.parametrize("name", ALL)
def test_words_are_large_enough_for_a_phone(name):
    root = parsed(ALL[name]("p"))
    width = float(root.get("viewBox").split()[2])
    for text in root.iter("text"):
        assert float(text.get("font-size")) * 328 / width > 9.5  # on a page of 360 with a margin of 16
        assert 0 <= float(text.get("x")) <= width


@pytest.mark.parametrize("name", HOSTILE)
def test_names_from_outside_are_words_and_nothing_else(name):
    shown = printable(name)
    map_ = charts.scatter(MAP, np.arange(60) % 2, [name, "other"], wrong=np.arange(60) == 3)
    models = [Contender(name, 0.9, 0.8, 0.95, 0.1)]
    grid = [{"lr": name, "log_loss": 0.5, "accuracy": 0.8}, {"lr": 1, "log_loss": 0.6, "accuracy": 0.8}]
    for markup in (map_, charts.pareto(models), charts.setting_dots(grid)):
        root = parsed(markup)
        assert any(
            shown in words or shown.startswith(words[:-1]) for words in texts(root) if len(words) > 2 or words == shown
        ), texts(root)
        assert {element.tag for element in root.iter()}.isdisjoint({"script", "img", "foreignObject"})
        assert not any(attribute.startswith("on") for element in root.iter() for attribute in element.attrib)
    assert shown in described(charts.pareto(models))


def test_a_name_without_end_is_cut():
    root = parsed(charts.scatter(MAP, np.zeros(60, int), ["n" * 10_000]))
    assert max(map(len, texts(root))) < 80
    assert len(charts.pareto([Contender("n" * 10_000, 0.9, 0.8, 0.95, 0.1)])) < 40_000


def marks(root):
    group = next(element for element in root.iter("g") if element.get("class") == "marks")
    return {int(use.get("data-picture")): use for use in group}


def test_the_map_has_each_picture_where_its_embedding_lies():
    root = parsed(charts.scatter(MAP, np.arange(60) % 3, "abc", numbers=np.arange(60) + 100))
    found = marks(root)
    assert sorted(found) == list(range(100, 160))
    x, y = (np.array([float(found[k].get(name)) for k in range(100, 160)]) for name in "xy")
    for pixels, values in ((x, MAP.points[:, 0]), (-y, MAP.points[:, 1])):
        assert np.corrcoef(pixels, values)[0, 1] == pytest.approx(1, abs=1e-6)
    slope = [np.polyfit(values, pixels, 1)[0] for pixels, values in ((x, MAP.points[:, 0]), (-y, MAP.points[:, 1]))]
    assert slope[0] == pytest.approx(slope[1], rel=1e-3)  # distances are compared: one scale for both directions
    assert x.min() > 0 and x.max() < 480 and y.min() > 0 and y.max() < 400
    assert not any(use.get("tabindex") for use in found.values())


def test_the_map_tells_classes_validation_and_mistakes_apart_without_colour():
    labels, wrong, held_out = np.arange(60) % 3, np.arange(60) == 7, np.arange(60) >= 30
    root = parsed(charts.scatter(MAP, labels, "abc", wrong=wrong, held_out=held_out))
    found = marks(root)
    kinds = {
        (labels[k], bool(wrong[k]), bool(held_out[k])): {
            found[j].get("href")
            for j in range(60)
            if (labels[j], wrong[j], held_out[j]) == (labels[k], wrong[k], held_out[k])
        }
        for k in range(60)
    }
    assert all(len(symbols) == 1 for symbols in kinds.values())
    assert len({min(symbols) for symbols in kinds.values()}) == len(kinds)
    shapes = {symbol.get("id"): [child.get("d") for child in symbol] for symbol in root.iter("g") if symbol.get("id")}
    assert len({shapes[found[k].get("href")[1:]][0] for k in (0, 1, 2)}) == 3
    assert found[0].get("class") == "s0" and found[2].get("class") == "s2"
    order = [int(use.get("data-picture")) for use in next(g for g in root.iter("g") if g.get("class") == "marks")]
    assert order[-1] == 7  # the mistake is on top
    assert {"a", "b", "c", "validation", "predicted wrongly"} <= set(texts(root))
    assert "70.0 % of the variance" in described(charts.scatter(MAP, labels, "abc"))


def test_of_many_classes_those_with_mistakes_have_a_mark_of_their_own():
    labels = np.arange(60) % 20
    wrong = np.isin(labels, np.arange(11, 20))
    root = parsed(charts.scatter(MAP, labels, [f"class {k}" for k in range(20)], wrong=wrong))
    assert [f"class {k}" for k in range(11, 20)] == [words for words in texts(root) if words.startswith("class")]
    assert "11 other classes" in texts(root)
    assert {marks(root)[k].get("class") for k in range(11)} == {"muted"}


def test_a_picture_without_a_label_is_on_the_map():
    root = parsed(charts.scatter(MAP, np.where(np.arange(60) == 5, -1, 0), ["a"]))
    assert marks(root)[5].get("class") == "muted"
    assert "no label" in texts(root)


def test_a_map_of_many_pictures_is_small_and_says_what_it_leaves_out():
    rng = np.random.default_rng(1)
    n = 20_000
    points = Projection(rng.standard_normal((n, 2)).astype(np.float32), "umap", None)
    flags = rng.random((2, n)) < 0.3
    markup = charts.scatter(points, rng.integers(0, 10, n), "abcdefghij", wrong=flags[0], held_out=flags[1])
    assert len(markup.encode()) < 400_000
    assert len(marks(parsed(markup))) == MOST_POINTS == 3000
    assert "3,000 of 20,000 pictures" in described(markup)
    assert not re.search(r"\d\.\d{3}", markup)


@pytest.mark.parametrize("points", [np.zeros((0, 2)), np.zeros((1, 2)), np.ones((5, 2)), np.array([[0, 0], [1e30, 0]])])
def test_a_map_of_next_to_nothing_is_still_one(points):
    root = parsed(
        charts.scatter(Projection(points.astype(np.float32), "pca", (0, 0)), np.zeros(len(points), int), ["a"])
    )
    assert len(marks(root)) == len(points)
    assert "nan" not in ElementTree.tostring(root, encoding="unicode")


def path_points(root, colour, at_least=3):
    """Return the corners (n, 2) of the line that has a colour."""
    for path in root.iter("path"):
        numbers = re.findall(r"-?[\d.]+", path.get("d"))
        if path.get("class") == colour and path.get("fill") == "none" and len(numbers) >= 2 * at_least:
            return np.array(numbers, float).reshape(-1, 2)
    raise AssertionError("no such line")


def test_the_search_is_drawn_at_its_numbers_and_says_what_was_chosen():
    Cs, losses = [0.01, 0.1, 1, 10], [0.5, 0.3, 0.35, 0.42]
    markup = charts.search_curve(Cs, losses, [0.02, 0.01, 0.01, 0.03], 0.1)
    line = path_points(parsed(markup), "s0", 4)
    assert np.diff(line[:, 0]) == pytest.approx(np.diff(line[:, 0])[0], abs=0.02)  # equal ratios, equal steps
    assert np.corrcoef(line[:, 1], losses)[0, 1] == pytest.approx(-1, abs=1e-5)
    assert "C = 0.1" in texts(parsed(markup))
    assert "chosen: C = 0.1 with log loss 0.3000 (folds differ by 0.0100); the worst had 0.5000" in described(markup)


def test_losses_of_several_sizes_are_drawn_on_a_logarithmic_axis():
    losses = [4.0, 0.4, 0.04]
    line = path_points(parsed(charts.search_curve([1, 10, 100], losses, None, 100)), "s0")
    assert np.diff(line[:, 1])[0] == pytest.approx(np.diff(line[:, 1])[1], abs=0.02)


def test_one_value_is_no_search():
    assert "Nothing was searched: C = 0.01" in described(charts.search_curve([0.01], [0.3], [0.02], 0.01))


def test_settings_are_sorted_and_those_that_diverged_come_last():
    markup = charts.setting_dots(GRID)
    assert [words for words in texts(parsed(markup)) if words.startswith("lr")] == [
        "lr 0.003",
        "lr 0.001",
        "lr 0.1: diverged",
    ]
    assert described(markup) == (
        "Of 3 settings in cross-validation, lr 0.003 has the lowest log loss, 0.3300; the worst had 0.4100; 1 diverged."
    )
    assert described(charts.setting_dots(GRID[2:])) == "All 1 settings diverged."


def test_training_is_drawn_at_its_numbers():
    markup = charts.loss_curves(HISTORY, best_epoch=2, held_out="val")
    root = parsed(markup)
    dev, train = path_points(root, "s0", 4), path_points(root, "s1")
    both = np.concatenate([dev[:, 1], train[:, 1]])
    values = [row["dev_loss"] for row in HISTORY] + [row["train_loss"] for row in HISTORY[1:]]
    assert np.corrcoef(both, values)[0, 1] == pytest.approx(-1, abs=1e-5)
    assert train[:, 0] == pytest.approx(dev[1:, 0])
    assert {"kept: epoch 2", "train", "val", "accuracy on val"} <= set(texts(root))
    assert "the best val accuracy was 90.0 %, in epoch 2; epoch 2 was kept" in described(markup)


@pytest.mark.parametrize(
    "history",
    [
        HISTORY[:1],
        [{"epoch": 1, "train_loss": 0.5, "dev_loss": None, "dev_accuracy": None}],
        [{"epoch": 1, "train_loss": float("nan"), "dev_loss": float("inf"), "dev_accuracy": None}],
        [{"epoch": k, "train_loss": 0.0, "dev_loss": 0.0, "dev_accuracy": 1.0} for k in range(1, 300)],
    ],
)
def test_any_history_can_be_drawn(history):
    markup = charts.loss_curves(history, best_epoch=history[0]["epoch"])
    assert not re.search(r"\bnan\b|\binf\b", markup)
    assert len(markup) < 60_000


def test_the_reliability_chart_draws_the_bins_that_the_error_is_of():
    y, proba, _ = probabilities()
    before, after = curves()
    assert before.ece == pytest.approx(expected_calibration_error(y, proba))
    markup = charts.reliability(before, after)
    line = path_points(parsed(markup), "s1")
    full = before.counts > 0
    assert np.corrcoef(line[:, 1], before.accuracy[full])[0, 1] == pytest.approx(-1, abs=1e-5)
    assert np.corrcoef(line[:, 0], before.confidence[full])[0, 1] == pytest.approx(1, abs=1e-5)
    for found in (before, after):
        assert f"{100 * found.ece:.1f} %" in described(markup)
    assert "before temperature" not in charts.reliability(before)


def test_no_answers_are_no_reliability():
    empty = reliability_curve(np.zeros(0), np.zeros(0, bool))
    assert "No answers" in described(charts.reliability(empty, empty))


def test_the_learning_curve_tells_points_and_verdict():
    assert described(ALL["learning_curve"]("p")) == (
        "Accuracy with 20 images 60.0 % (57.0 % to 63.0 %); 200 images 90.0 % (87.0 % to 93.0 %); more help."
    )


def test_few_shots_are_told_with_all_views_and_with_one():
    mine = "1 60.0 % (57.0 % to 63.0 %), 4 90.0 % (87.0 % to 93.0 %)"
    assert described(ALL["few_shots"]("p")) == f"Accuracy by images a class, {mine}."
    alone = "1 60.0 % (57.0 % to 63.0 %), 4 60.0 % (57.0 % to 63.0 %)"
    markup = ALL["few_shots, views"]("p")
    assert described(markup) == f"Accuracy by images a class, all views: {mine}; plain crops alone: {alone}."
    assert {"all views", "plain crops alone", "1", "2", "4"} <= set(texts(parsed(markup)))
    single = charts.few_shots(FewShots(SHOTS[:1], 10))
    assert "1 60.0 %" in described(single)


def test_the_front_is_told_in_words():
    assert "fast (80.0 %, 0.01 s), slow (90.0 %, 0.1 s)" in described(charts.pareto(MODELS))


def boxes(root, names):
    for text in root.iter("text"):
        if text.text in names:
            width, x, y = len(text.text) * 12 * 0.56, float(text.get("x")), float(text.get("y"))
            left = x - width if text.get("text-anchor") == "end" else x
            yield left, y - 10, left + width, y + 3


def test_names_of_models_do_not_overlap():
    rng = np.random.default_rng(4)
    models = [
        Contender(f"model number {k}", a, a - 0.02, a + 0.02, s)
        for k, (a, s) in enumerate(zip(rng.uniform(0.7, 0.9, 25), 10 ** rng.uniform(-3, -1, 25), strict=True))
    ]
    found = list(boxes(parsed(charts.pareto(models)), {row.name for row in models}))
    assert len(found) > 8
    for k, one in enumerate(found):
        assert one[0] >= 0 and one[2] <= 400
        assert not any(one[0] < two[2] and two[0] < one[2] and one[1] < two[3] and two[1] < one[3] for two in found[:k])


@pytest.mark.parametrize(
    ("low", "high", "places"),
    [(1e-4, 1e2, [1e-4, 1e-3, 1e-2, 0.1, 1, 10, 100][::2]), (0.01, 0.05, [0.01, 0.02, 0.05]), (0.3, 0.3, [0.3])],
)
def test_ticks_of_a_logarithmic_axis(low, high, places):
    assert log_places(low, high) == pytest.approx(places)


def test_numbers_in_words():
    assert [number_words(value) for value in (0.001, 1e-5, 3.5e-5, 0, 2000, 0.25, 1e6)] == [
        *("0.001", "10⁻⁵", "3.5·10⁻⁵", "0", "2,000", "0.25", "10⁶")
    ]


# What is seen: the palette in both themes.


def palette(block):
    return dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", block))


LIGHT = palette(CSS.split("@media")[0])
DARK = palette(CSS.split("prefers-color-scheme: dark")[1].split("\n}\n")[0])
# What those see who lack one kind of cone: Machado, Oliveira and Fernandes 2009, at full severity, on linear RGB.
SEEN = {
    "all": np.eye(3),
    "no red": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "no green": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "no blue": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def linear(colour):
    shares = np.array([int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)])
    return np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)


def luminance(colour):
    return float(linear(colour) @ [0.2126, 0.7152, 0.0722])


def oklab(rgb):
    lms = [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
    lab = [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
    return np.cbrt(np.clip(rgb @ np.transpose(lms), 0, None)) @ np.transpose(lab)


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_colours_can_be_seen_and_told_apart(theme):
    assert set(theme) == set(COLOURS)
    for name in set(COLOURS) - {"grid", "paper"}:
        light, dark = sorted((luminance(theme[name]), luminance(theme["paper"])), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= (4.5 if name in ("ink", "muted") else 3), name  # words need more
    series = np.array([linear(theme[f"s{k}"]) for k in range(10)])
    for eyes, matrix in SEEN.items():
        lab = oklab(series @ np.transpose(matrix))
        distance = np.linalg.norm(lab[:, None] - lab, axis=2) + np.eye(10)
        assert distance.min() > 0.06, eyes  # 0.02 is about what is noticed side by side


def test_the_style_sheet_knows_all_classes_and_stays_inside_charts():
    for name in COLOURS:
        assert f".chart .{name} {{ color: var(--{name}); }}" in CSS
    assert "url(" not in CSS and "@import" not in CSS
    rules = re.findall(r"^\s*([^\s@/}][^{;]*) \{", CSS, re.MULTILINE)
    assert rules and all(rule.startswith(".chart") for rule in rules), rules


# The process that charts are drawn in.


def test_what_matplotlib_is_set_to_is_neither_used_nor_changed():
    import matplotlib

    plain = ALL["loss_curves"]("p")
    with matplotlib.rc_context({"text.usetex": True, "lines.linewidth": 9, "font.size": 40, "axes.grid": True}):
        assert ALL["loss_curves"]("p") == plain
        assert matplotlib.rcParams["text.usetex"] is True
        with pytest.raises(RuntimeError), sheet("p", 100, 100):
            raise RuntimeError
        assert matplotlib.rcParams["font.size"] == 40
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


def test_threads_draw_the_same_charts():
    alone = {name: draw("p") for name, draw in ALL.items()}
    found = []
    threads = [threading.Thread(target=lambda n=name: found.append((n, ALL[n]("p")))) for name in ALL]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == len(ALL)
    assert all(markup == alone[name] for name, markup in found)


def test_a_home_that_cannot_be_written_to_makes_no_noise():
    code = "from headstart.classify.pages.charts import search_curve; print(len(search_curve([1, 2], [1, 2], None, 1)))"
    gone = dict.fromkeys(("HOME", "MPLCONFIGDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"), "/proc/nowhere")
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **gone},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (int(done.stdout) > 1000, done.stderr) == (True, "")


def test_a_prefix_that_could_end_an_id_is_refused():
    for prefix in ("", "1a", 'a"b', "a b", "ä"):
        with pytest.raises(ValueError, match="prefix"), sheet(prefix, 100, 100):
            pass
