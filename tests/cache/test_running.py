import os
import subprocess
import sys
import time

import pytest

from headstart.cache import running as module
from headstart.cache.running import announced, oldest_start, running

PROGRAM = """
import sys, pathlib, time
from headstart.cache.running import running
with running(pathlib.Path(sys.argv[1])):
    print("going", flush=True)
    time.sleep(60)
"""


def test_a_run_is_seen_by_others_while_it_lives_and_not_after_it_was_killed(tmp_path):
    before = time.time()
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, tmp_path], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "going\n"
    ((path, alive),) = announced(tmp_path)
    assert alive
    assert before <= oldest_start(tmp_path) <= time.time()
    assert process.poll() is None, "the victim must be alive"
    process.kill()
    assert process.wait() == -9
    assert list(announced(tmp_path)) == [(path, False)], "the file stays, its lock has gone"
    assert oldest_start(tmp_path) == float("inf")


def test_its_file_goes_when_the_run_ends(tmp_path):
    with running(tmp_path) as descriptor:
        assert os.pwrite(descriptor, b"abc", 0) == 3
        assert [path.read_bytes() for path, _ in announced(tmp_path)] == [b"abc"]
        assert [alive for _, alive in announced(tmp_path)] == [True]
    assert list(announced(tmp_path)) == []


@pytest.mark.parametrize("call", ["os.open", "os.replace", "fcntl.flock"])
def test_where_it_cannot_be_made_or_locked_the_run_goes_on_without(tmp_path, monkeypatch, call):
    def refuse(*_arguments, **_options):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(call, refuse)
    with running(tmp_path) as descriptor:
        assert descriptor is None
    monkeypatch.undo()
    assert list((tmp_path / module.FOLDER).iterdir()) == []


def test_a_file_that_cannot_be_asked_counts_as_alive(tmp_path, monkeypatch):
    with running(tmp_path):

        def refuse(*_arguments, **_options):
            raise OSError(37, "No locks available")

        monkeypatch.setattr("fcntl.flock", refuse)
        assert [alive for _, alive in announced(tmp_path)] == [True]


def test_two_that_look_at_once_see_the_same_death(tmp_path):
    with running(tmp_path) as descriptor:
        (path,) = (path for path, _ in announced(tmp_path))
        data = os.pread(descriptor, 10, 0)
    path.write_bytes(data)  # as if it had been killed
    looking = announced(tmp_path), announced(tmp_path)
    assert [next(found) for found in looking] == [(path, False)] * 2


def test_what_is_no_file_of_a_run_is_no_run(tmp_path):
    folder = tmp_path / module.FOLDER
    folder.mkdir()
    (folder / "somebody else's.run").write_bytes(b"")
    os.mkfifo(folder / "pipe.run")
    assert oldest_start(tmp_path) == float("inf")
