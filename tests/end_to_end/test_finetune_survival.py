"""Training runs that are killed, interrupted, or shared by several processes. Real signals to real processes."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import trainings
from command_line import headstart
from trainings import drawn, kept, losses, position, result, words

import headstart as package

__all__ = ["headstart"]  # a fixture

TESTS = Path(trainings.__file__).parent
EVERY_STEP = {"HEADSTART_CHECKPOINT_SECONDS": "0"}
ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # with more, small networks wait for cores that others use
CASES = {
    "sgd": {"optimizer": "sgd", "lr": "auto", "dropout": 0.3, "augment": "strong", "epochs": 3},
    "adamw": {"optimizer": "adamw", "train": "features.9", "augment": "none", "dropout": 0.2, "clip": 1, "epochs": 3},
    "last": {"optimizer": "adam", "head": "mlp", "hidden": 16, "select_on": "last", "dropout": 0.5},
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    return drawn(tmp_path_factory.mktemp("drawn") / "photos")


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def environment(**more: str) -> dict[str, str]:
    path = os.pathsep.join([str(TESTS), str(Path(package.__file__).parents[1])])
    return {**os.environ, "PYTHONPATH": path, **ONE_THREAD, **more}


def without_out(arguments: list[str]) -> list[str]:
    place = arguments.index("--out")
    return arguments[:place] + arguments[place + 2 :]


def test_f47_a_run_that_is_killed_again_and_again_ends_as_one_that_was_not(photos, tmp_path):
    cases = [
        {
            "words": without_out(words(photos, tmp_path, **options)),
            "out": str(tmp_path / name),
            "kills": 3,
            "seed": seed,
        }
        for seed, (name, options) in enumerate(CASES.items())
    ]
    done = subprocess.run(
        [sys.executable, TESTS / "survivors.py", json.dumps({"cases": cases})],
        env=environment(**EVERY_STEP), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    for name, fate in zip(CASES, found, strict=True):
        out = tmp_path / name
        log = out.with_suffix(".log").read_text()
        assert fate["status"] == 0, log
        assert len(fate["where"]) >= 2, "killed twice at least"
        assert fate["where"] == sorted(fate["where"]) and all(where > [1, 0] for where in fate["where"]), fate["where"]
        assert log.count("going on in epoch") == len(fate["where"])
        assert "Traceback" not in log and "warning" not in log
        assert result(out) == result(tmp_path / f"{name}-whole"), fate["where"]
        assert not kept(out).exists()
    assert any(step for fate in found for _, step in fate["where"]), "one of them within an epoch"


def start(photos: Path, out: Path, *more: str, **options) -> subprocess.Popen:
    command = [sys.executable, "-c", "import sys; from headstart.cli import main; sys.exit(main())"]
    return subprocess.Popen(
        [*command, *words(photos, out, *more, **options)],
        env=environment(**EVERY_STEP), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_for(what, process: subprocess.Popen, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_f47_ctrl_c_keeps_the_run_and_says_how_to_go_on(headstart, photos, tmp_path):
    options = {"dropout": 0.3, "epochs": 4}
    process = start(photos, tmp_path / "stopped", **options)
    wait_for(lambda: position(tmp_path / "stopped") > (1, 1), process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and out == "", err
    assert "press Ctrl-C again to stop at once" in err and "Traceback" not in err
    last = f"interrupted; the run is kept in {kept(tmp_path / 'stopped')}: --resume goes on"
    assert err.splitlines()[-1] == last
    assert (1, 1) < position(tmp_path / "stopped") < (5, 0) and not (tmp_path / "stopped").exists()
    assert headstart(*words(photos, tmp_path / "stopped", "--resume", **options))[0] == 0
    assert headstart(*words(photos, tmp_path / "whole", **options))[0] == 0
    assert result(tmp_path / "stopped") == result(tmp_path / "whole")


def torchrun(photos: Path, out: Path, *more: str, **options) -> subprocess.Popen:
    program = Path(sys.executable).with_name("torchrun")
    launch = [program, "--standalone", "--nproc-per-node", "2", "-m", "headstart.cli"]
    return subprocess.Popen(
        [*map(str, launch), *words(photos, out, *more, **options)],
        env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def members(launcher: int) -> list[int]:
    """Return the processes that torchrun started."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"\nPPid:\t{launcher}\n" in (folder / "status").read_text():
                found.append(int(folder.name))
        except OSError:  # it has just ended
            continue
    return sorted(found)


def own_lines(err: str) -> list[str]:
    """Return what headstart said, without torchrun's own lines and its table of who failed."""
    said = re.split(r"\n(?=Traceback|headstart\.cli FAILED)", err)[0].splitlines()
    return [line for line in said if line and not re.match(r"[WEI]\d{4} ", line)]


# One image a process and step: 13 images take 7 steps, and in one of them the second process has none.
TWO = {"batch_size": 1, "freeze_norms": True, "augment": "tutorial", "optimizer": "sgd", "lr": 0.001, "epochs": 8}


@pytest.fixture(scope="module")
def two(photos, tmp_path_factory):
    """A run of two processes, one of which was killed by the way; what it said before and after."""
    out = tmp_path_factory.mktemp("two") / "model"
    process = torchrun(photos, out, **TWO)
    wait_for(lambda: position(out) >= (3, 0), process)
    victim = members(process.pid)[-1]
    os.kill(victim, signal.SIGKILL)
    _, before = process.communicate(timeout=60)
    assert process.returncode == 1 and "Signal 9 (SIGKILL)" in before, before
    reached = position(out)
    assert (3, 0) <= reached <= (8, 0) and not out.exists()
    process = torchrun(photos, out, "--resume", **TWO)
    _, after = process.communicate(timeout=120)
    assert process.returncode == 0, after
    return out, before, after


def test_two_processes_lose_what_one_with_the_doubled_batch_loses(two, headstart, photos, tmp_path):
    one = tmp_path / "one"
    assert headstart(*words(photos, one, **{**TWO, "batch_size": 2}))[0] == 0
    rows = [losses(json.loads((out / "model.json").read_text())["facts"]["history"]) for out in (one, two[0])]
    assert len(rows[0]) == 9 and len({row[0] for row in rows[0]}) == 9
    for ours, theirs in zip(*rows, strict=True):
        assert theirs == pytest.approx(ours, abs=1e-5)


def test_only_the_first_of_two_processes_speaks(two):
    _, before, after = two
    assert own_lines(before)[-1].startswith("error: another process of this run has ended")
    assert [line for line in own_lines(before) if line.startswith("error")] == own_lines(before)[-1:]
    said = own_lines(after)
    assert len(said) == len(set(said)) and said[-1].startswith("saved ")
    assert sum("2 processes" in line for line in said) == sum("going on in epoch" in line for line in said) == 1
    assert "warning" not in after and "Traceback" not in after


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"lr": 1e9}, "error: the loss is not a number any more, in epoch 1 at step"),
        ({"dropout": 3}, "error: Invalid value for '--dropout': 3.0 is not in the range 0<=x<1."),
    ],
)
def test_an_error_of_two_processes_is_one_line(photos, tmp_path, options, line):
    process = torchrun(photos, tmp_path / "model", **{**TWO, **options})
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    errors = [said for said in own_lines(err) if said.startswith("error")]
    assert len(errors) == 1 and errors[0].startswith(line), err
    assert not (tmp_path / "model").exists()


def test_f46_a_checkpoint_is_the_old_one_or_the_new_one_wherever_its_writer_dies(tmp_path):
    done = subprocess.run(
        [sys.executable, TESTS / "checkpoint_crashes.py", tmp_path],
        env=environment(), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["kills"] >= 40 and found["old"] >= 20 and found["new"] >= 5
    assert found["old"] + found["new"] == found["kills"]
