"""`headstart compare` on real photographs: embeds what is missing once, ranks, keeps, and names the command to go on with."""

import json
import shlex

from command_line import BACKBONE

SMALL = ("--resize", 96, "--crop", 96)


def test_compare_embeds_ranks_and_says_how_to_go_on(headstart, headstart_json, few, tmp_path):
    words = ("compare", few, "--backbone", BACKBONE, "--head", "logistic", "--head", "ncm", *SMALL)
    status, out, err = headstart(*words)
    assert status == 0, err
    heading, *rows = out.splitlines()[1:4]
    assert "accuracy" in heading and "log loss" in heading
    assert len(rows) == 2 and all(BACKBONE in row and "Apache-2.0" in row for row in rows)
    assert "the 12 validation images were not looked at" in out
    assert "finetuning is unlikely to pay" in out
    assert "embedding with" in err and "embedding with" not in out

    kept = json.loads((tmp_path / "comparisons" / few.name / "compare.json").read_text())
    assert {row["head"] for row in kept["rows"]} == {"logistic", "ncm"}
    row = kept["rows"][0]
    assert row["images_per_second"] > 0 and row["parameters"] == 3_371_008 and row["dim"] == 1280
    assert 0 <= row["low"] <= row["cv_accuracy"] <= row["high"] <= 1

    # A second comparison embeds nothing; it is not written over the first unasked.
    status, out, err = headstart(*words)
    assert status == 1 and "pass --overwrite" in err and "embedding with" not in err and not out
    again = headstart_json(*words, "--overwrite")
    for one, other in zip(kept["rows"], again["rows"], strict=True):
        assert {**one, "images_per_second": 0, "pareto": 0} == {**other, "images_per_second": 0, "pareto": 0}

    # The command that it names fits that very row.
    fit = headstart_json(*shlex.split(again["next"])[1:])
    assert fit["cv"]["accuracy"] == again["rows"][0]["cv_accuracy"]
    assert fit["val"]["n"] == 12


def test_mistakes_are_one_line(headstart, few):
    for words, status, said in (
        (("compare",), 1, "extract"),
        (("compare", few, "--head", "forest"), 2, "forest"),
        (("compare", few), 1, "extract"),
        (("compare", few, "--backbone", "resnet19"), 1, "no backbone 'resnet19'; nearest: resnet18"),
        (("compare", "nowhere", "--backbone", BACKBONE), 1, "nowhere"),
    ):
        found, out, err = headstart(*words)
        assert (found, out) == (status, "")
        assert said in err.splitlines()[-1] and err.splitlines()[-1].startswith("error: "), err
