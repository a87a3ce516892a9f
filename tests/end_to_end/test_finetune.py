"""`finetune` on the command line, and a finetuned model beside heads: one kind of model for all other commands."""

import json
import os
import shutil
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import BACKBONE, in_own_process

import headstart as hs
from headstart.classify.finetune.loop import Loop
from headstart.cli import main
from headstart.extract.decode import decode
from headstart.extract.preprocess import to_input

SMALL = ("--backbone", BACKBONE, "--resize", 36, "--crop", 32)
QUICK = (*SMALL, "--train", "_blocks.15", "--epochs", 1, "--augment", "none", "--select-on", "last", "--lr", 0.001)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def one_line(err: str) -> str:
    """Return the line that tells of an error, after checking that it is one, and the last."""
    lines = err.splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:], err
    assert "Traceback" not in err
    return lines[-1]


def run(*words) -> None:
    assert main([str(word) for word in words]) == 0


@pytest.fixture(scope="module")
def made(few, tmp_path_factory) -> Path:
    """A folder with two finetuned models, a head on the plain backbone, and the cache behind them; not to be changed."""
    folder = tmp_path_factory.mktemp("made")
    cache = ("--cache", folder / ".headstart")
    run("finetune", few, *QUICK, *cache, "--out", folder / "one")
    begun_anew = ("--reinit", "_conv_head", "--select-on", "dev")  # another network whichever epoch is the best
    run("finetune", few, *QUICK, *cache, *begun_anew, "--out", folder / "two")
    run("extract", few, *SMALL, *cache)
    run("fit-head", few, *cache, "--out", folder / "head")
    return folder


@pytest.fixture
def models(made, tmp_path, monkeypatch) -> Path:
    """A copy of it, which is the working directory."""
    shutil.copytree(made, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


@pytest.fixture
def call(capsys):
    """Run a command; return status, standard output and standard error."""

    def called(*words):
        capsys.readouterr()
        status = main([str(word) for word in words])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return called


@pytest.fixture
def call_json(call):
    def called(*words, expect=0):
        status, out, err = call(*words, "--json")
        assert status == expect, err + out
        return json.loads(out)

    return called


def probabilities(found: dict) -> dict[str, float]:
    return {row["path"]: row["probabilities"]["ants"] for row in found["predictions"]}


def backbone_of(model: Path) -> Path:
    (file,) = model.glob("backbone-*.safetensors")
    return file


def rows_of(call_json) -> dict[str, int]:
    return {space["id"]: space["rows"] for space in call_json("cache", "info")["spaces"]}


def test_the_object_has_the_fields_of_the_design(few, call_json, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = call_json("finetune", few, *QUICK, "--select-on", "dev", "--out", "m")
    assert {
        "mode", "backbone", "epochs", "best_epoch", "selected_on", "history", "val", "seconds", "out", "settings", "lr",
        "failures", "stages", "bound_by", "device",
    } <= found.keys()  # fmt: skip
    assert [row["epoch"] for row in found["history"]] == [0, 1]
    assert {"epoch", "train_loss", "dev_loss", "dev_accuracy", "seconds"} <= found["history"][0].keys()
    assert (found["mode"], found["backbone"], found["out"], found["selected_on"]) == (
        "_blocks.15",
        BACKBONE,
        "m",
        "dev",
    )
    assert found["val"]["n"] == 12
    assert found["val"]["low"] <= found["val"]["accuracy"] <= found["val"]["high"]
    assert not Path(".headstart").exists()  # the cache is bypassed


def test_the_lines_for_people_say_data_choice_score_and_the_next_command(few, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, err = call("finetune", few / "train", *QUICK, "--select-on", "dev", "--out", "it's mine")
    assert (status, out) == (0, "")
    lines = err.splitlines()
    for said in (
        "24 images, read as class folders", "dev (a stable part of train, by which the epoch is chosen)",
        "(held out: the dataset has no validation split)", "start: dev loss", "epoch 1 of 1: train loss",
        "validation: ", "majority class", "saved it's mine in",
    ):  # fmt: skip
        assert any(said in line for line in lines), said
    assert lines[-1].endswith("next: headstart predict 'it'\"'\"'s mine' PICTURE...")


def test_a_choice_by_validation_says_so_in_the_object_and_in_a_line(few, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, _, err = call("finetune", few, *QUICK, "--select-on", "val", "--out", "m")
    assert "note: the epoch was selected on val, so this score is better than that of new images will be" in err
    assert "val loss" in err
    assert "dev" not in err


def test_bad_pictures_are_skipped_and_listed_or_with_strict_an_error(few, call, call_json, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(few, "photos")
    (Path("photos") / "train" / "ants" / "broken.jpg").write_bytes(b"none")
    found = call_json("finetune", "photos", *QUICK, "--out", "m")
    assert found["failures"] == [{"path": "photos/train/ants/broken.jpg", "error": "not an image"}]
    assert call_json("extract", "photos", *SMALL)["failures"] == found["failures"]
    status, _, err = call("finetune", "photos", *QUICK, "--out", "n", "--strict")
    assert status == 1
    assert "1 of 37 images failed and --strict was given" in one_line(err)
    assert not Path("n").exists()
    for path in Path("photos").rglob("*.jpg"):
        path.write_bytes(b"none")
    status, _, err = call("finetune", "photos", *QUICK, "--out", "n")
    assert status == 1
    assert "0 of 37 images could be used" in one_line(err)


def test_evaluate_finds_the_score_that_training_found(models, few, call_json):
    trained = json.loads((models / "one" / "model.json").read_bytes())["scores"]["val"]
    for words in (("evaluate", "one"), ("evaluate", "one", few)):
        found = call_json(*words)
        assert (found["split"], found["n"], found["accuracy"]) == ("val", 12, trained["accuracy"])
        assert found["log_loss"] == pytest.approx(trained["log_loss"], rel=1e-4)


def test_probabilities_are_those_of_the_network(models, few, call_json, monkeypatch):
    kept: list = []
    monkeypatch.setattr(
        Loop, "run", lambda self, state, plain=Loop.run: kept.append(self.stepper.network) or plain(self, state)
    )
    call_json("finetune", few, *QUICK, "--out", "again", "--seed", 1, "--select-on", "dev")
    network = kept[0].eval()
    found = probabilities(call_json("predict", "again", few / "val"))
    temperature = json.loads(Path("again/model.json").read_bytes())["temperature"]
    for path, value in found.items():
        pixels, _ = to_input(decode(Path(path).read_bytes()).pixels, network.backbone.preprocess)
        with torch.no_grad():
            logits = network(torch.from_numpy(pixels)[None]) / temperature
        assert value == pytest.approx(torch.softmax(logits, dim=1)[0, 0].item(), abs=1e-4)


def test_models_of_both_kinds_are_compared_both_ways(models, call_json):
    there = call_json("evaluate", "one", "--against", "head")
    back = call_json("evaluate", "head", "--against", "one")
    assert there["accuracy"] == back["against"]["accuracy"]
    assert back["accuracy"] == there["against"]["accuracy"]
    assert there["against"]["only_first"] == back["against"]["only_second"]
    assert there["against"]["p_value"] == back["against"]["p_value"]
    two = call_json("evaluate", "one", "--against", "two")
    assert two["against"]["accuracy"] == call_json("evaluate", "two")["accuracy"]


def test_sets_need_pictures_that_were_held_out(models, few, call, call_json):
    assert all(row["set"] for row in call_json("predict", "two", few / "val", "--coverage", 0.6)["predictions"])
    status, _, err = call("predict", "one", few / "val", "--coverage", 0.6)
    assert status == 2
    assert "train it with --select-on dev" in one_line(err)


def test_a_model_works_where_it_was_copied_and_by_a_path_from_elsewhere(models, few, call_json, monkeypatch):
    expected = probabilities(call_json("predict", "one", few / "val"))
    Path("elsewhere").mkdir()
    shutil.move("one", "elsewhere/moved")
    monkeypatch.chdir("elsewhere")
    assert probabilities(call_json("predict", "moved", few / "val", "--cache", "new")) == pytest.approx(
        expected, abs=1e-5
    )
    Path("deeper").mkdir()
    monkeypatch.chdir("deeper")
    found = probabilities(call_json("predict", "../moved", few / "val", "--cache", "another"))
    assert found == pytest.approx(expected, abs=1e-5)


def test_models_of_one_backbone_do_not_mix_in_a_cache(models, few, call_json, call):
    apart = {
        name: probabilities(call_json("predict", name, few / "val", "--cache", name + "-cache"))
        for name in ("one", "two")
    }
    assert apart["one"] != apart["two"]
    for name in ("one", "two", "one"):
        assert probabilities(call_json("predict", name, few / "val")) == pytest.approx(apart[name], abs=1e-5)
    call_json("evaluate", "one", few)
    assert sorted(rows_of(call_json).values()) == [12, 36, 36]
    head = hs.load("head").model
    call_json("fit-head", few, "--backbone", BACKBONE, "--out", "head2")
    call_json("fit-head", few, "--out", "head3")
    for other in ("head2", "head3"):  # on the plain backbone, as before
        assert hs.load(other).model.spaces == head.spaces
        assert np.array_equal(hs.load(other).model.network.weights[0], head.network.weights[0])


def test_the_cache_is_kept_in_order_with_rows_of_finetuned_models(models, few, call_json):
    before = call_json("evaluate", "one", few)
    assert call_json("cache", "verify")["bad"] == []
    call_json("cache", "compact", "--prune", "--now")
    assert call_json("cache", "verify")["bad"] == []
    assert call_json("evaluate", "one")["log_loss"] == before["log_loss"]
    assert len(rows_of(call_json)) == 2


def test_rows_of_a_model_that_was_replaced_are_not_used_for_the_new_one(models, few, call, call_json):
    call_json("evaluate", "one", few)
    status, _, err = call("finetune", few, *QUICK, "--out", "one", "--seed", 5)
    assert (status, "pass --overwrite" in one_line(err)) == (1, True)
    trained = call_json("finetune", few, *QUICK, "--out", "one", "--seed", 5, "--overwrite")
    found = call_json("evaluate", "one")
    assert found["log_loss"] == pytest.approx(trained["val"]["log_loss"], rel=1e-4)
    assert len(list(Path("one").iterdir())) == 3
    assert len(rows_of(call_json)) == 3


def test_extract_takes_the_backbone_of_a_model_and_finds_its_rows(models, few, call_json):
    call_json("evaluate", "one", few)
    found = call_json("extract", few, *SMALL, "--weights", backbone_of(Path("one")))
    assert (found["embedded"], found["reused"]) == (0, 36)
    again = hs.extract(few, backbone=BACKBONE, resize=36, crop=32, weights=str(backbone_of(Path("one"))), cache="other")
    assert found["space"] == again.spaces[0].id
    kept = hs.extract(
        few, backbone=BACKBONE, resize=36, crop=32, weights=str(backbone_of(Path("one"))), cache=".headstart"
    )
    assert np.abs(again.X - kept.X).max() <= 1e-4 * np.abs(kept.X).max()


@pytest.mark.parametrize("harm", ["gone", "damaged"])
def test_a_backbone_that_is_gone_or_damaged_is_named_in_a_line(models, few, call, harm):
    file = backbone_of(Path("one"))
    if harm == "gone":
        file.unlink()
    else:
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    status, _, err = call("predict", "one", few / "val", "--cache", "new")
    assert status == 1
    line = one_line(err)
    assert str(file) in line
    assert "copy the model again, or train it anew" in line
    assert not list(Path("new").rglob("*.h5"))


def test_a_model_is_evaluated_on_its_dataset_as_that_was_read(models, few, call_json):
    trained = call_json("finetune", few, *QUICK, "--layout", "classes", "--out", "m")
    assert trained["classes"] == ["train", "val"]
    assert call_json("evaluate", "m")["accuracy"] == trained["val"]["accuracy"]
    assert call_json("evaluate", "m", few)["accuracy"] == trained["val"]["accuracy"]


def test_a_csv_and_names_that_are_no_text_are_trained_on(few, call, call_json, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [b"a b.jpg", b"new\nline.jpg", b"bad\xff.jpg", b"-dash.jpg", "\u00fc.jpg".encode(), b"$(x)'\".jpg"]
    for name, source in ((b"odd \xfe\n", "ants"), (b"-\xc3\xa9", "bees")):
        os.makedirs(os.path.join(b"odd", name))  # noqa: PTH103, PTH118  (bytes)
        for file, path in zip(names, sorted((few / "train" / source).iterdir()), strict=False):
            shutil.copy(path, os.path.join(b"odd", name, file))  # noqa: PTH118
    found = call_json("finetune", "odd", *QUICK, "--val-fraction", 0.3, "--out", "m")
    assert found["classes"] == ["-\u00e9", "odd \udcfe\n"]
    assert call_json("evaluate", "m")["n"] == found["val"]["n"]
    assert len(call_json("predict", "m", "odd")["predictions"]) == 12
    status, _, err = call("evaluate", "m")
    assert status == 0
    assert "\nodd" not in err  # a newline in a name does not break a line
    rows = [
        f"{path},{path.parent.name},{'val' if at % 3 else 'train'}"
        for at, path in enumerate(sorted(few.rglob("*.jpg")))
    ]
    Path("table.csv").write_text("path,label,split\n" + "\n".join(rows))
    found = call_json("finetune", "table.csv", *QUICK)
    assert (found["train"]["n"], found["val"]["n"], found["out"]) == (12, 24, f"models/table-{BACKBONE}-finetuned")
    assert call_json("evaluate", found["out"])["accuracy"] == found["val"]["accuracy"]


BAD = [
    (("--train", "layer4"), 1, "no layer 'layer4' in efficientnet_lite0; "),
    (("--train", "_blocks.51"), 1, "_blocks.15"),
    (("--reinit", "_blokcs"), 1, "_blocks"),
    (("--layer", "_bn3"), 1, "_bn1"),
    (("--train", "fc"), 1, "where the head begins"),
    (("--layer", "_blocks.5", "--train", "_blocks.9"), 1, "_blocks.9 of efficientnet_lite0 comes after _blocks.5"),
    (("--train", "_avg_pooling"), 1, "--train _avg_pooling trains nothing"),
    (("--reinit", "_blocks.3"), 2, "--reinit _blocks.3 gives random weights to layers that --train _blocks.15 would leave"),
    (("--train", "head", "--head-lr-mult", 0), 1, "nothing is left to train"),
    (("--init-head", "imagenet:ants=1000"), 2, "no ImageNet class 1000"),
    (("--init-head", "imagenet:wasp=3"), 2, "the label 'wasp'; those of this dataset are ants, bees"),
    (("--init-head", "nowhere"), 1, "the model folder nowhere is not there"),
    (("--epochs", 0), 2, "--epochs"),
    *[(("--lr", value), 2, "--lr") for value in ("abc", -1, 0, "nan", "inf")],
    (("--head", "mlp", "--hidden", 0), 2, "--hidden"),
    (("--dropout", 1), 2, "--dropout"),
    (("--weight-decay", "nan"), 2, "--weight-decay"),
    (("--limit", 1), 1, "no training image"),
    (("--weights", "nothing.safetensors"), 1, "cannot read weights from nothing.safetensors"),
    (("--out", "file"), 1, "file is a file"),
    (("--out", "file/model"), 1, "is a file; name another folder with --out"),
    (("--out", "other"), 1, "other is a folder of something else"),
    (("--out", "model"), 1, "model holds a model already; pass --overwrite"),
    (("--batch-size", 1), 1, "a batch norm sees one value of each channel"),
    (("--lr", 1e30), 1, "is not a number any more"),
]  # fmt: skip


@pytest.fixture(scope="module")
def refusing(made, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("refusing")
    shutil.copytree(made / "one", folder / "model")
    (folder / "other").mkdir()
    for name in ("file", "other/something"):
        (folder / name).write_text("precious")
    return folder


@pytest.mark.parametrize(("words", "status", "said"), BAD, ids=[" ".join(map(str, words)) for words, _, _ in BAD])
def test_bad_input_is_a_line_and_overwrites_nothing(refusing, few, call, monkeypatch, words, status, said):
    monkeypatch.chdir(refusing)
    before = {path: path.read_bytes() for path in refusing.rglob("*") if path.is_file()}
    out = () if "--out" in words else ("--out", "new")
    found, _, err = call("finetune", few, *QUICK, *out, *words)
    assert found == status, err
    line = one_line(err)
    assert line.startswith("error: ")
    assert said in line
    assert "internal" not in line
    shutil.rmtree("new.checkpoint", ignore_errors=True)  # of a run that had begun
    assert {path: path.read_bytes() for path in refusing.rglob("*") if path.is_file()} == before
    assert not Path("new").exists()


def test_a_folder_that_may_not_be_written_is_known_before_training(few, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.access", lambda path, mode: mode != os.W_OK)
    status, _, err = call("finetune", few, *QUICK, "--out", "m")
    assert status == 1
    assert "m cannot be written: no permission to write into" in one_line(err)


def test_heads_and_weights_of_others_are_refused(models, few, call, call_json):
    other = Path("other")
    for name in ("ants", "wasps"):
        shutil.copytree(few / "train" / "ants", other / name)
    status, _, err = call("finetune", other, *QUICK, "--init-head", "head", "--out", "m")
    assert status == 1
    assert "lacks wasps and also tells bees" in one_line(err)
    status, _, err = call("finetune", few, *QUICK, "--layer", "_conv_head", "--init-head", "head", "--out", "m")
    assert status == 1
    assert "what is trained here is _conv_head" in one_line(err)
    status, _, err = call("finetune", few, *QUICK, "--init-head", "one", "--out", "m")
    assert status == 1
    assert "with the weights" in one_line(err)
    status, _, err = call(
        "finetune", few, "--backbone", "resnet18", "--weights", backbone_of(Path("one")), "--out", "m"
    )
    assert status == 1
    assert "does not fit: it lacks conv1.weight" in one_line(err)
    only = Path("only") / "ants"
    shutil.copytree(few / "train" / "ants", only)
    status, _, err = call("finetune", "only", *QUICK, "--out", "m")
    assert status == 1
    assert "there is one class only ('ants')" in one_line(err)
    assert not Path("m").exists()


def test_weights_that_cannot_be_downloaded_are_named(few, tmp_path):
    hub, nobody = tmp_path / "hub", "http://127.0.0.1:9"
    environment = {"TORCH_HOME": str(hub), "http_proxy": nobody, "https_proxy": nobody, "no_proxy": ""}
    done, _ = in_own_process("finetune", few, "--out", "m", cwd=tmp_path, environment=environment)
    assert done.returncode == 1
    line = done.stderr.splitlines()[-2]
    assert line.startswith("error: the weights resnet18-f37072fd.pth")
    assert line.endswith("or give a copy with --weights FILE")
    assert not (tmp_path / "m").exists()


def test_a_terminal_is_shown_progress_with_the_time_left(few, tmp_path):
    outside, inside = os.openpty()
    termios.tcsetwinsize(inside, (24, 120))
    code = "import sys, torch; torch.set_num_threads(1); from headstart.cli import main; sys.exit(main(sys.argv[1:]))"
    words = ["finetune", few, *QUICK, "--augment", "flip", "--epochs", 8, "--out", "m"]
    with subprocess.Popen([sys.executable, "-c", code, *map(str, words)], cwd=tmp_path, stderr=inside) as process:
        os.close(inside)
        shown = b""
        while True:
            try:
                block = os.read(outside, 4096)
            except OSError:  # the other end has closed
                break
            if not block:
                break
            shown += block
    os.close(outside)
    assert process.returncode == 0, shown
    bars = [line for line in shown.decode().split("\r") if line.startswith("training: ")]
    assert any("/192 [" in line and "<" in line and "img" in line for line in bars), shown
