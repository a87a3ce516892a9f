"""Every head from the command line, and the options of those that are trained."""

import pytest
from command_line import BACKBONE


@pytest.mark.parametrize("head", ["linear", "mlp", "knn", "ncm"])
def test_a_head_is_fitted_scored_and_predicts(headstart_json, photos, head):
    headstart_json("extract", photos, "--backbone", BACKBONE)
    fitted = headstart_json("fit-head", "--head", head, "--cv", "3", "--l2-norm", "--pca", ".9")
    assert fitted["head"] == head
    assert fitted["cv"]["accuracy"] > 0.6
    found = headstart_json("predict", fitted["out"], photos)["predictions"]
    assert len(found) > 5
    assert all(abs(sum(row["probabilities"].values()) - 1) < 1e-6 for row in found)
    assert headstart_json("evaluate", fitted["out"])["accuracy"] == fitted["val"]["accuracy"]


def test_several_values_of_an_option_are_a_grid(headstart_json, photos):
    headstart_json("extract", photos, "--backbone", BACKBONE)
    fitted = headstart_json(
        "fit-head", "--head", "mlp", "--cv", "2", "--epochs", "3", "--hidden", "8,16", "--hidden", "4",
        "--lr", ".001,.01", "--lr", ".1", "--dropout", "0", "--weight-decay", "0", "--optimizer", "sgd",
        "--momentum", ".5", "--schedule", "cosine", "--label-smoothing", ".1", "--batch-size", "8", "--device", "cpu",
    )  # fmt: skip
    assert fitted["cv"]["fits"] == 12
    tried = {(*setting["hidden"], setting["lr"]) for setting in fitted["cv"]["grid"]}
    assert tried == {(width, 4, lr) for width in (8, 16) for lr in (0.001, 0.01, 0.1)}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--head", "mlp", "--hidden", "8,x"], "'8,x' is neither a whole number nor several with commas between them"),
        (["--head", "mlp", "--lr", ".1,"], "'.1,' is neither a number nor several"),
        (["--head", "mlp", "--lr", "-1"], "--lr cannot be -1 in --head mlp"),
        (["--head", "knn", "--lr", ".1"], "--lr means nothing to --head knn; leave it out"),
        (["--head", "ncm", "--k", "3"], "--k means nothing to --head ncm; leave it out"),
        (["--head", "linear", "--dropout", ".1"], "--dropout means nothing to --head linear; leave it out"),
        (["--optimizer", "sgd"], "--optimizer means nothing to --head logistic; leave it out"),
        (["--head", "ncm", "--class-weight", "balanced"], "--class-weight means nothing to --head ncm"),
        (["--repeats", "5"], "--repeats is of --curve and --shots, and neither was given: add one, or leave it out"),
        (["--shots", "4", "--repeats", "1"], "Invalid value for '--repeats': 1 is not in the range x>=2."),
        (["--shots", "0"], "Invalid value for '--shots': 0 is not in the range x>=1."),
        (["--head", "knn", "--k", "100000"], "--k must be 'auto' or from 1 to"),
    ],
)
def test_options_that_mean_nothing_are_refused_in_one_line(headstart, headstart_json, photos, words, said):
    headstart_json("extract", photos, "--backbone", BACKBONE)
    status, out, err = headstart("fit-head", *words)
    assert (status, out) == (2, "")
    assert said in err.splitlines()[-1]
