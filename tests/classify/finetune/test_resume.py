"""A run that goes on from a checkpoint: the same run, or a refusal in one line."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import draw
from safetensors.numpy import load_file
from trainings import kept, losses, position, result, stop_after, train, weights_of

from headstart.classify.finetune.checkpoint import Checkpoint, State
from headstart.errors import ModelError, TrainingError, UsageError

# How often a run asks whether it shall stop before the first step: for each of 22 pictures that it looks at, then for
# the batch of dev that it keeps; where it keeps those of train too, for four more.
BEFORE = 22 + 1
STEPS = 4  # an epoch
WAYS = {
    "plain": {},
    "sgd": {"optimizer": "sgd", "lr": 0.01, "dropout": 0.4, "augment": "randaugment"},
    "kept": {"train": "features.9", "augment": "none", "optimizer": "adam"},
    "head": {"train": "head", "augment": "none", "head": "mlp", "hidden": (16,), "dropout": 0.5},
}


class Killed(BaseException):
    """The end of a run that has no chance to write anything."""


@pytest.fixture
def every_step(monkeypatch):
    monkeypatch.setenv("HEADSTART_CHECKPOINT_SECONDS", "0")


@pytest.fixture(scope="module")
def whole(pictures, tmp_path_factory):
    """Train once without a break in each way; return the model and what is saved of it."""
    done = {}

    def run(way: str):
        if way not in done:
            out = tmp_path_factory.mktemp("whole") / "model"
            done[way] = train(pictures, out, **WAYS[way]), result(out)
        return done[way]

    return run


def killed(pictures: Path, out: Path, calls: int, **options) -> None:
    """Let a run end as by a kill when it asks for the last of so many times whether it shall stop."""
    asked = stop_after(calls)

    def stopped() -> bool:
        if asked():
            raise Killed
        return False

    with pytest.raises(Killed):
        train(pictures, out, stopped=stopped, **options)


@pytest.mark.parametrize("way", WAYS)
def test_a_run_goes_on_after_ctrl_c_as_if_nothing_had_been(whole, pictures, tmp_path, way):
    before = BEFORE + 4 * (WAYS[way].get("augment") == "none")
    with pytest.raises(KeyboardInterrupt, match=r"the run is kept in .*: --resume goes on"):
        train(pictures, tmp_path / "model", stopped=stop_after(before + 1), **WAYS[way])
    epoch, step = position(tmp_path / "model")
    assert (epoch, step) == (1, 2)
    done = train(pictures, tmp_path / "model", resume=True, **WAYS[way])
    assert result(tmp_path / "model") == whole(way)[1]
    for name, value in weights_of(done.model).items():
        np.testing.assert_array_equal(value, weights_of(whole(way)[0].model)[name])
    assert not kept(tmp_path / "model").exists()


@pytest.mark.parametrize("calls", range(BEFORE, BEFORE + 2 * STEPS, 3))
def test_f47_a_run_that_dies_after_any_step_goes_on(whole, pictures, tmp_path, every_step, calls):
    killed(pictures, tmp_path / "model", calls, **WAYS["sgd"])
    assert not (tmp_path / "model").exists() and position(tmp_path / "model") == (
        1 + (calls - BEFORE) // STEPS,
        (calls - BEFORE) % STEPS,
    )
    train(pictures, tmp_path / "model", resume=True, **WAYS["sgd"])
    assert result(tmp_path / "model") == whole("sgd")[1]


def test_a_run_that_dies_between_two_checkpoints_goes_on_from_the_epoch_before(whole, pictures, tmp_path):
    killed(pictures, tmp_path / "model", BEFORE + STEPS + 1)
    assert position(tmp_path / "model") == (2, 0)
    train(pictures, tmp_path / "model", resume=True)
    assert result(tmp_path / "model") == whole("plain")[1]


def test_a_run_that_dies_while_it_saves_the_model_goes_on(whole, pictures, tmp_path, monkeypatch):
    from headstart.classify import model

    real = model.write_object

    def die(*_):
        raise Killed

    monkeypatch.setattr(model, "write_object", die)
    with pytest.raises(Killed):
        train(pictures, tmp_path / "model")
    assert list((tmp_path / "model").iterdir()) and not (tmp_path / "model" / "model.json").exists()
    monkeypatch.setattr(model, "write_object", real)
    train(pictures, tmp_path / "model", resume=True)
    assert result(tmp_path / "model") == whole("plain")[1]
    assert len(list((tmp_path / "model").iterdir())) == 3


def test_interruptions_outside_of_training_say_what_is_there(pictures, tmp_path):
    for calls, options in ((3, {}), (BEFORE + 3, {"lr": "auto"}), (BEFORE + 1, {"train": "head", "augment": "none"})):
        with pytest.raises(KeyboardInterrupt, match="; nothing was written"):
            train(pictures, tmp_path / "model", stopped=stop_after(calls), **options)
        assert not kept(tmp_path / "model").exists() and not (tmp_path / "model").exists()


def test_the_last_scoring_can_be_interrupted_and_done_again(whole, pictures, tmp_path):
    with pytest.raises(KeyboardInterrupt, match=r"the run is kept in .*: --resume goes on"):
        train(pictures, tmp_path / "model", stopped=stop_after(BEFORE + 2 * STEPS))
    assert position(tmp_path / "model") == (3, 0)
    train(pictures, tmp_path / "model", resume=True)
    assert result(tmp_path / "model") == whole("plain")[1]


@pytest.fixture(scope="module")
def unfinished(pictures, tmp_path_factory):
    """A run that was interrupted after a step, to be copied."""
    out = tmp_path_factory.mktemp("unfinished") / "model"
    with pytest.raises(KeyboardInterrupt):
        train(pictures, out, stopped=stop_after(BEFORE))
    return kept(out)


@pytest.fixture
def out(unfinished, tmp_path) -> Path:
    shutil.copytree(unfinished, tmp_path / "model.checkpoint")
    return tmp_path / "model"


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def refused(pictures: Path, out: Path, said: str, error: type[Exception] = ModelError, **options) -> None:
    before = content_of(kept(out)) if kept(out).exists() else None
    with pytest.raises(error, match=said) as caught:
        train(pictures, out, **{"resume": True, **options})
    assert "\n" not in str(caught.value)
    assert not out.exists() and before == (content_of(kept(out)) if kept(out).exists() else None)


OTHERS = {
    "backbone": (
        {"backbone": "resnet18"},
        "a run with backbone mobilenet_v3_small, and this one has backbone resnet18",
    ),
    "epochs": ({"epochs": 3}, "a run with epochs 2, and this one has epochs 3"),
    "batch size": ({"batch_size": 2}, "batch size 4, .* batch size 2"),
    "optimizer": ({"optimizer": "sgd"}, "optimizer adamw, .* optimizer sgd"),
    "augmentation": ({"augment": "flip"}, "augment tutorial, .* augment flip"),
    "what is trained": ({"train": "head"}, "train all, .* train head"),
    "seed": ({"seed": 1}, "seed 0, .* seed 1"),
    "schedule": ({"schedule": "constant"}, "schedule cosine"),
    "images of another size": ({"crop": 24}, "preprocessing"),
    "fewer images": ({"limit": 20}, "images"),
    "another share": ({"dev_fraction": 0.4}, "dev fraction 0.2"),
}


@pytest.mark.parametrize("other", OTHERS)
def test_a_run_of_other_settings_is_refused(pictures, out, other):
    options, said = OTHERS[other]
    refused(pictures, out, said + r".*: pass the same to go on, or --overwrite to begin anew", **options)


def test_settings_that_may_change_do(pictures, out):
    done = train(pictures, out, resume=True, lr=1e-5, clip=1.0, patience=5)
    assert done.model.facts["lr"] == 1e-5 and done.model.facts["settings"]["clip"] == 1
    assert done.model.facts["history"][-1]["epoch"] == 2


def test_a_rate_that_was_changed_stays_when_the_run_goes_on_again(pictures, out):
    with pytest.raises(KeyboardInterrupt):
        train(pictures, out, resume=True, lr=1e-5, stopped=stop_after(BEFORE))
    assert train(pictures, out, resume=True).model.facts["lr"] == 1e-5


def test_a_run_goes_on_in_another_precision(pictures, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(pictures, tmp_path / "model", stopped=stop_after(BEFORE), precision="float16")
    assert train(pictures, tmp_path / "model", resume=True, precision="float32").model.facts["epochs"] == 2


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_picture_more_or_another_class_is_another_run(pictures, out, tmp_path, split):
    data = tmp_path / "more"
    shutil.copytree(pictures, data)
    draw("circle", 99).save(data / split / "circle" / "99.jpg")
    refused(data, out, "images ")
    (data / "train" / "circle").rename(data / "train" / "disc")
    (data / "val" / "circle").rename(data / "val" / "disc")
    refused(data, out, "classes circle,cross, and this one has classes cross,disc")


def test_an_unfinished_run_is_not_begun_anew_by_mistake(pictures, out):
    refused(pictures, out, "holds an unfinished run: pass --resume to go on, or --overwrite", resume=False)


def test_where_there_is_no_run_there_is_none_to_go_on_with(pictures, tmp_path):
    refused(pictures, tmp_path / "model", "no unfinished run in .*model.checkpoint to go on with: leave --resume out")


def test_a_run_that_is_begun_anew_leaves_nothing_of_the_old_one_to_go_on_with(pictures, out):
    with pytest.raises(KeyboardInterrupt, match="nothing was written"):
        train(pictures, out, overwrite=True, lr="auto", stopped=stop_after(BEFORE))
    assert not kept(out).exists()


@pytest.mark.parametrize("prefix", ["now", "best"])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "gone"])
def test_damaged_numbers_are_refused(pictures, out, prefix, damage):
    path = next(kept(out).glob(f"{prefix}-*"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    {
        "truncated": lambda: path.write_bytes(path.read_bytes()[:-1]),
        "flipped": lambda: path.write_bytes(data),
        "gone": path.unlink,
    }[damage]()
    said = "cannot be read" if damage == "gone" else "bytes do not match the SHA-256 in its name"
    refused(pictures, out, said + ".*; remove the folder and begin anew")


DAMAGED = {
    "no JSON": (lambda text: text[: len(text) // 2], "is damaged: "),
    "no object": (lambda _: "[]", "it holds no object"),
    "a type": (lambda text: text.replace('"step": 1', '"step": "1"'), "is damaged: TypeError.*step"),
    "a field": (lambda text: text.replace('"history"', '"hist"'), "is damaged: KeyError"),
    "a path": (lambda text: re.sub('"now-[0-9a-f]+', '"../now', text), "names no file of numbers"),
    "newer": (lambda text: text.replace('"format": 1', '"format": 2'), "format 2, this reads up to 1; upgrade"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_or_newer_checkpoint_is_refused(pictures, out, damage):
    change, said = DAMAGED[damage]
    file = kept(out) / "checkpoint.json"
    before = file.read_text()
    file.write_text(change(before))
    assert file.read_text() != before
    refused(pictures, out, said)


def test_a_checkpoint_holds_nothing_pickled(unfinished):
    assert {path.suffix for path in unfinished.iterdir()} == {".json", ".safetensors"}
    for path in unfinished.glob("*.safetensors"):
        assert load_file(path)
    assert json.loads((unfinished / "checkpoint.json").read_text())["step"] == 1


def test_what_a_killed_writer_left_is_removed(tmp_path):
    folder = tmp_path / "model.checkpoint"
    checkpoint = Checkpoint(folder, {"epochs": 2})
    checkpoint.write(State(), {"a": torch.ones(3)})
    (folder / ".now-12.safetensors.0123456789ab.tmp").write_bytes(b"half")
    checkpoint.write(State(step=1), {"a": torch.zeros(3)})
    assert len(list(folder.iterdir())) == 3
    state, now = checkpoint.read()
    assert state.step == 1 and not now["a"].any()


@pytest.fixture
def only_numbers(monkeypatch):
    """Look at everything that is written into a checkpoint: a network that has diverged is never kept."""
    real = Checkpoint.write

    def write(self, state, now):
        assert all(value.isfinite().all() for value in (*now.values(), *state.best.values()))
        real(self, state, now)

    monkeypatch.setattr(Checkpoint, "write", write)


@pytest.mark.usefixtures("only_numbers")
@pytest.mark.parametrize("seconds", ["0", "60"])
@pytest.mark.parametrize(
    "options", [{"optimizer": "sgd", "lr": 1e6}, {"lr": 1e30, "batch_size": 16}, {"lr": 1e30, "select_on": "last"}]
)
def test_a_run_that_diverges_is_kept_from_before_and_goes_on_with_a_smaller_rate(
    pictures, tmp_path, monkeypatch, seconds, options
):
    monkeypatch.setenv("HEADSTART_CHECKPOINT_SECONDS", seconds)
    out = tmp_path / "model"
    said = (
        r"^(the (dev )?loss|a weight) is not a number any more, in epoch \d at step \d of \d; the run as it was (at its start|"
        r"after epoch \d) is kept in .*model.checkpoint: try --lr .* or --clip 1 with --resume$"
    )
    with pytest.raises(TrainingError, match=said):
        train(pictures, out, epochs=4, **options)
    assert not out.exists()
    numbers = [load_file(path) for path in kept(out).glob("*.safetensors")]
    assert all(np.isfinite(value).all() for file in numbers for value in file.values())
    if options.get("select_on") == "last":
        return
    done = train(pictures, out, epochs=4, resume=True, **{**options, "lr": 0.001})
    assert [row["epoch"] for row in done.model.facts["history"]] == [0, 1, 2, 3, 4]
    assert all(np.isfinite(row[0]) and row[0] < 10 for row in losses(done.model.facts["history"])[1:])


def test_a_last_epoch_that_ruins_the_network_makes_no_model(pictures, tmp_path):
    with pytest.raises(TrainingError, match=r"not a number any more|gives no numbers any more"):
        train(pictures, tmp_path / "model", epochs=1, batch_size=16, lr=1e30, select_on="last")
    assert not (tmp_path / "model").exists()


def test_one_picture_a_step_is_told_in_words(pictures, tmp_path):
    with pytest.raises(TrainingError, match=r"a batch norm sees one value .* pass a larger --batch-size or --crop"):
        train(pictures, tmp_path / "model", batch_size=1)
    with pytest.raises(UsageError, match="has no option 'epoch'"):
        train(pictures, tmp_path / "model", epoch=1)


def test_another_rate_of_the_head_is_another_run(pictures, out):
    refused(pictures, out, r"head lr mult .*: pass the same to go on, or --overwrite to begin anew", head_lr_mult=2.0)
