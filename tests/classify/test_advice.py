"""Advice is a function of what was measured: every rule can be made to speak, and none speaks where it should not."""

import numpy as np
import pytest

from headstart.classify.advice import (
    LEAST_WINS,
    LIKELY,
    UNKNOWN,
    UNLIKELY,
    Contender,
    Evidence,
    differences,
    finetuning,
    holm,
    more_images,
    pareto,
)
from headstart.classify.curve import LearningCurve
from headstart.classify.metrics import mcnemar_exact


def test_holm_agrees_with_the_published_procedure():
    # Sorted p-values are multiplied by m, m - 1, ..., and none may fall below one before it.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_pareto_keeps_what_nothing_beats():
    assert pareto([0.9, 0.8, 0.8, 0.95], [2.0, 1.0, 1.5, 9.0]) == [True, True, False, True]
    assert pareto([0.9, 0.9], [1.0, 1.0]) == [True, True]  # equal rows do not beat each other
    assert pareto([0.9, 0.8], [float("inf"), 1.0]) == [True, True]
    assert pareto([0.9, 0.9, 0.8], [float("inf"), 1.0, float("inf")]) == [False, True, False]


def contender(name: str, wrong: int, cost: float = 1.0, n: int = 100, start: int = 0) -> Contender:
    right = np.ones(n, bool)
    right[start : start + wrong] = False
    return Contender(name, right, cost)


def test_the_best_is_told_from_what_chance_cannot_explain_and_the_fastest_of_the_rest_is_taken():
    found = differences(
        [contender("a", 2), contender("b", 4, cost=0.25, start=10), contender("c", 30, cost=0.01, start=10)]
    )
    assert [row["beyond_chance"] for row in found["comparisons"]] == [False, True]
    assert found["comparisons"][1]["only_best"] == 30
    assert found["comparisons"][1]["p_value"] == mcnemar_exact(30, 2)
    assert found["cheapest"] == 1  # c is faster still, but worse beyond chance
    assert found["text"] == (
        "a is better than c by more than chance; it cannot be told apart from b: take the fastest of them, "
        "b, 4.0 times as fast"
    )


def test_many_comparisons_make_chance_likelier():
    six = contender("other", 6, start=50)  # 0 against 6: p = 0.031
    one = differences([contender("best", 0), six])
    several = differences([contender("best", 0), six, contender("same", 0), contender("too", 0)])
    assert one["comparisons"][0]["beyond_chance"]
    assert not several["comparisons"][0]["beyond_chance"]
    assert several["comparisons"][0]["p_value"] == one["comparisons"][0]["p_value"]


def test_a_row_alone_is_compared_with_nothing():
    found = differences([contender("a", 2)])
    assert found["comparisons"] == [] and found["cheapest"] == 0 and "alone" in found["text"]


def test_a_cost_that_is_not_known_is_not_made_up():
    unknown = float("inf")
    found = differences([contender("a", 2, unknown), contender("b", 2, unknown, start=5)])
    assert found["cheapest"] == 0 and "times" not in found["text"]
    found = differences([contender("a", 2, unknown), contender("b", 2, 1.0, start=5)])
    assert found["text"].endswith("take the fastest of them, b")


def test_least_wins_is_the_fewest_that_go_beyond_chance():
    assert mcnemar_exact(LEAST_WINS, 0) < 0.05 < mcnemar_exact(LEAST_WINS - 1, 0)


ROOM = {"error": 0.2, "train_error": 0.0, "more_help": None, "val": 400}


@pytest.mark.parametrize(
    ("evidence", "prediction", "word"),
    [
        ({"train": 5000, "error": 0.01, "val": 100}, UNLIKELY, "0.5 of 100 validation images"),
        ({"train": 5000, "error": 0.5, "val": 20}, UNLIKELY, "5.0 of 20"),  # too few to show anything
        ({"train": 5000, "error": 0.001, "val": 0}, LIKELY, "5000"),  # nothing is known of where it is to show
        ({"train": 500, "random": True}, UNLIKELY, "random weights"),
        ({"train": 500, "random": True, "train_error": 0.2}, UNLIKELY, "random weights"),
        ({"train": 1000, "random": True}, LIKELY, "room"),
        ({"train": 249}, UNLIKELY, "fewer than 250"),
        ({"train": 1000}, LIKELY, "room"),
        ({"train": 999, "train_error": 0.1}, LIKELY, "features lack"),
        ({"train": 999, "train_error": 0.09, "more_help": False}, LIKELY, "hardly help"),
        ({"train": 999, "more_help": True}, UNKNOWN, "more would help first"),
        ({"train": 250}, UNKNOWN, "too few for either"),
        ({"train": 5000, "multi_label": True}, UNKNOWN, "one class an image"),
    ],
)
def test_the_first_rule_that_applies_decides(evidence, prediction, word):
    found = finetuning(Evidence(**{**ROOM, **evidence}))
    assert found["prediction"] == prediction
    assert word in found["reason"]
    assert found["reason"] in found["text"]
    assert found["figures"]["wins_needed"] == LEAST_WINS


@pytest.mark.parametrize(("helps", "answer"), [(True, "yes"), (False, "no"), (None, UNKNOWN)])
def test_more_images_is_what_the_curve_says(helps, answer):
    found = more_images(LearningCurve([], "accuracy", "so it is", helps), "a")
    assert (found["answer"], found["text"]) == (answer, "a: so it is")


def test_a_row_that_is_right_more_often_is_not_beaten_however_the_table_is_ranked():
    best, other = np.arange(200) < 100, np.arange(200) < 160
    found = differences([Contender("best", best, 2.0), Contender("other", other, 1.0)])
    (entry,) = found["comparisons"]
    assert entry["p_adjusted"] < 0.001 and not entry["beyond_chance"]
    assert found["cheapest"] == 1 and "better than" not in found["text"]
