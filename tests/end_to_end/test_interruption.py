"""Runs that are stopped: by Ctrl-C once, by Ctrl-C twice, by a kill. Real signals to real processes."""

import os
import signal
import subprocess
import sys
import time

import pytest
from command_line import BACKBONE, add_pictures, parts, safe_rows

from headstart.cache.info import info

INTERRUPTED = "interrupted; what was embedded is in the cache, run again to go on"


def start_extract(photos, folder, *options, part_seconds="0.2"):
    """Start a slow extraction in a working directory and wait until its first part is on the disk."""
    environment = {**os.environ, "HEADSTART_PART_SECONDS": part_seconds}
    process = subprocess.Popen(
        [sys.executable, "-c", "import sys; from headstart.cli import main; sys.exit(main())",
         "extract", str(photos), "--backbone", BACKBONE, *map(str, options)],
        cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not parts(folder):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return process


def test_f47_ctrl_c_finishes_the_part_and_the_next_run_goes_on(headstart_json, photos, tmp_path):
    add_pictures(photos, 400)
    process = start_extract(photos, tmp_path, "--batch-size", "8")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "stopping after the work in hand; press Ctrl-C again to stop at once" in err
    assert err.splitlines()[-1] == INTERRUPTED
    assert "Traceback" not in err
    safe = safe_rows(tmp_path)
    assert 0 < safe < 436
    assert info(tmp_path / ".headstart").temporary == 0
    again = headstart_json("extract", photos, "--backbone", BACKBONE)
    assert (again["embedded"], again["reused"]) == (436 - safe, safe)


def interrupt_twice(process):
    """Press Ctrl-C, wait for what the program says to it, and press Ctrl-C again; return status and messages."""
    process.send_signal(signal.SIGINT)
    seen = ""
    for line in process.stderr:
        seen += line
        if "press Ctrl-C again to stop at once" in line:
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert out == ""
    return process.returncode, seen + err


def test_f47_ctrl_c_twice_stops_at_once_and_finished_parts_stay(headstart_json, photos, tmp_path):
    batch, options = 16, ("--crop", "640", "--resize", "640")  # a forward pass that lasts
    add_pictures(photos, 3 * batch - 36)
    for attempt in range(5):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        process = start_extract(photos, folder, *options, "--batch-size", batch, "--debug", part_seconds="0.001")
        finished = {path: path.read_bytes() for path in parts(folder)}
        status, err = interrupt_twice(process)
        assert status == 130, err
        assert err.splitlines()[-1] == INTERRUPTED
        assert {path: path.read_bytes() for path in finished} == finished
        safe = safe_rows(folder)
        assert safe == batch * len(parts(folder)), "no half batch"
        assert info(folder / ".headstart").temporary == 0
        again = headstart_json("extract", photos, "--backbone", BACKBONE, *options, "--cache", folder / ".headstart")
        assert (again["embedded"], again["reused"]) == (3 * batch - safe, safe)
        if "in on_interrupt" in err:  # else the batch ended between the two signals
            break
    else:
        pytest.fail("the second signal never came in the middle of a batch")


def test_kill_loses_at_most_the_part_in_progress(headstart_json, photos, tmp_path):
    add_pictures(photos, 400)
    process = start_extract(photos, tmp_path, "--batch-size", "8")
    assert process.poll() is None, "the victim must be alive"
    process.kill()
    process.wait(timeout=60)
    assert process.returncode == -signal.SIGKILL
    safe = safe_rows(tmp_path)
    assert 0 < safe < 436
    again = headstart_json("extract", photos, "--backbone", BACKBONE)
    assert (again["embedded"], again["reused"]) == (436 - safe, safe)
