"""Runs that a picture ends, in processes that really die: SIGSEGV in the decoder, SIGKILL from outside."""

import contextlib
import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from command_line import BACKBONE, SHAPES, draw, photos
from pictures_that_crash import CRASH, MARK, evil, jpeg

from headstart.cache.running import FOLDER, SUFFIX, running
from headstart.errors import DecodeError
from headstart.extract import suspects
from headstart.extract.decode import DEFAULT_MAX_PIXELS, decode
from headstart.extract.suspects import FORGOTTEN_AFTER, Watch

__all__ = ["photos"]  # a fixture

SPACE = ("--backbone", BACKBONE, "--resize", "64", "--crop", "64", "--workers", "1")


@contextlib.contextmanager
def watching(cache: Path) -> Iterator[Watch]:
    with running(cache) as descriptor, Watch(cache, descriptor) as watch:
        yield watch


def start(*words, cwd: Path, environment: dict[str, str]) -> subprocess.Popen:
    command = [sys.executable, "-c", "import sys; from headstart.cli import main; sys.exit(main())", *map(str, words)]
    return subprocess.Popen(
        command, cwd=cwd, env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def run(*words, cwd: Path, environment: dict[str, str]) -> tuple[int, str, str]:
    process = start(*words, cwd=cwd, environment=environment)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def completed(*words, cwd: Path, environment: dict[str, str]) -> dict:
    status, out, err = run(*words, "--json", cwd=cwd, environment=environment)
    assert status == 0, err
    return json.loads(out)


def notes(cache: Path) -> list[Path]:
    return sorted((cache / FOLDER).glob(f"*{SUFFIX}"))


def parts(cache: Path) -> list[Path]:
    return sorted(cache.glob("spaces/*/*.h5"))


@pytest.fixture
def many(tmp_path) -> Path:
    """A hundred pictures in three classes, more than are read ahead of the first part."""
    folder = tmp_path / "many"
    for number in range(100):
        shape = SHAPES[number % 3]
        (folder / shape).mkdir(parents=True, exist_ok=True)
        draw(shape, number, 72).save(folder / shape / f"{number:03d}.jpg", quality=90)
    return folder


# Whole runs


def test_f16_a_picture_that_crashes_its_decoder_ends_one_run_and_is_listed_by_the_next(tmp_path, many):
    culprit = many / "stripes" / "zz.jpg"
    culprit.write_bytes(jpeg(MARK))
    environment = {**evil(tmp_path / "site", CRASH), "HEADSTART_PART_SECONDS": "0.001"}
    cache = tmp_path / ".headstart"

    def extract(*words):
        return completed("extract", many, *SPACE, *words, cwd=tmp_path, environment=environment)

    status, _, err = run("extract", many, *SPACE, cwd=tmp_path, environment=environment)
    assert status == -signal.SIGSEGV, err
    acknowledged = parts(cache)
    assert acknowledged and len(notes(cache)) == 1

    second = extract()
    assert second["failures"] == [{"path": str(culprit), "error": "crashes its decoder (SIGSEGV)"}]
    assert 0 < second["embedded"] < 100 == second["embedded"] + second["reused"]
    assert set(acknowledged) <= set(parts(cache))

    third = extract()
    assert (third["embedded"], third["reused"], third["failures"]) == (0, 100, second["failures"])

    # What is known of the bytes outlives the listing, and serves other commands.
    assert extract("--rehash")["failures"] == extract("--retry-failed")["failures"] == second["failures"]
    fit = completed("fit-head", cwd=tmp_path, environment=environment)
    (tmp_path / "copy.jpg").write_bytes(culprit.read_bytes())
    (row,) = completed("predict", fit["out"], "copy.jpg", cwd=tmp_path, environment=environment)["predictions"]
    assert row["error"] == "crashes its decoder (SIGSEGV)"

    culprit.write_bytes(jpeg(b"harmless"))
    fourth = extract()
    assert (fourth["embedded"], fourth["reused"], fourth["failed"]) == (1, 100, 0)


def test_f16_predict_survives_at_the_second_try_what_ended_it_at_the_first(tmp_path, photos):
    environment = evil(tmp_path / "site", CRASH)
    completed("extract", photos, *SPACE, cwd=tmp_path, environment=environment)
    fit = completed("fit-head", cwd=tmp_path, environment=environment)
    (tmp_path / "new.jpg").write_bytes(jpeg(MARK))
    words = ("predict", fit["out"], "new.jpg", photos / "cross" / "00.jpg")
    assert run(*words, cwd=tmp_path, environment=environment)[0] == -signal.SIGSEGV
    for _ in range(2):
        rows = completed(*words, cwd=tmp_path, environment=environment)["predictions"]
        errors = {Path(row["path"]).name: row["error"] for row in rows}
        assert errors == {"new.jpg": "crashes its decoder (SIGSEGV)", "00.jpg": None}


def test_f16_pictures_that_a_killed_run_was_decoding_are_innocent(tmp_path, photos):
    slow = evil(tmp_path / "site", "time.sleep(300)")
    for shape in SHAPES:
        (photos / shape / "zz.jpg").write_bytes(jpeg(MARK, SHAPES.index(shape)))
    cache = tmp_path / ".headstart"
    words = ("extract", photos, *SPACE[:-2], "--workers", "2")
    victim = start(*words, cwd=tmp_path, environment=slow)
    wanted = {hashlib.sha256((photos / shape / "zz.jpg").read_bytes()).digest() for shape in SHAPES[:2]}
    try:
        deadline = time.monotonic() + 120
        while victim.poll() is None and not (notes(cache) and all(d in notes(cache)[0].read_bytes() for d in wanted)):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert victim.poll() is None, victim.communicate()[1]
    finally:
        victim.kill()
        victim.communicate()
    assert victim.returncode == -signal.SIGKILL
    (dead,) = suspects._dead_runs(cache)
    assert dead.digests == wanted

    done = completed(*words, cwd=tmp_path, environment={})
    assert (done["embedded"], done["failed"]) == (39, 0)
    assert notes(cache) == []


# The watch alone


@pytest.fixture
def cache(tmp_path) -> Path:
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


def digest_of(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def accuse(cache: Path, *pictures: bytes, name: str = "dead", age: float = 0) -> Path:
    """Write the file of a run that died while it decoded `pictures`, the first of its two threads idle."""
    path = cache / FOLDER / f"{name}{SUFFIX}"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(bytes(32) + b"".join(map(digest_of, pictures)))
    os.utime(path, (time.time() - age,) * 2)
    return path


def take(watch: Watch, data: bytes):
    return watch.decode(digest_of(data), data, DEFAULT_MAX_PIXELS)


@pytest.fixture
def crashing(tmp_path, monkeypatch):
    """Let a child process die, hang or leave at a marked picture; this process does not decode any."""

    def arm(deed: str):
        monkeypatch.syspath_prepend(str(tmp_path / "site"))
        evil(tmp_path / "site", deed)

    return arm


def test_f16_a_thread_s_slot_holds_the_digest_while_it_decodes_and_zeros_afterwards(cache, monkeypatch):
    ready, go = threading.Barrier(3), threading.Event()

    def waiting(data, max_pixels):
        ready.wait(60)
        go.wait(60)
        return decode(data, max_pixels=max_pixels)

    monkeypatch.setattr(suspects, "decode", waiting)
    pictures = [jpeg(seed=0), jpeg(seed=1)]
    with watching(cache) as watch:
        threads = [threading.Thread(target=take, args=(watch, data)) for data in pictures]
        for thread in threads:
            thread.start()
        ready.wait(60)
        (path,) = notes(cache)
        written = path.read_bytes()
        assert {written[:32], written[32:]} == set(map(digest_of, pictures))
        go.set()
        for thread in threads:
            thread.join()
        assert path.read_bytes() == bytes(64)
    assert notes(cache) == []


def test_f16_threads_note_without_waiting_for_each_other_and_the_end_waits_for_all(cache, monkeypatch):
    both, go, plain = threading.Barrier(3), threading.Event(), os.pwrite

    def slow(descriptor, data, place):
        if data != bytes(32):
            both.wait(60)  # two threads are within their writes at once
            go.wait(60)
        return plain(descriptor, data, place)

    monkeypatch.setattr(os, "pwrite", slow)
    written: list[bytes] = []
    with watching(cache) as watch:
        (path,) = notes(cache)
        threads = [threading.Thread(target=take, args=(watch, jpeg(seed=seed))) for seed in range(2)]
        for thread in threads:
            thread.start()
        both.wait(60)
        closing = threading.Thread(target=lambda: (watch._notes.close(), written.append(path.read_bytes())))
        closing.start()
        closing.join(0.2)
        assert closing.is_alive(), "the file may be closed when nobody writes to it any more"
        go.set()
        closing.join(60)
        for thread in threads:
            thread.join()
        assert path.read_bytes() == written[0], "nothing is written behind the end"


def test_f16_the_file_of_a_run_that_lives_accuses_nobody(cache):
    data = jpeg()
    with watching(cache) as first, first._notes.noting(digest_of(data)):
        assert suspects._dead_runs(cache) == []
        with watching(cache) as second:
            assert len(notes(cache)) == 2
            take(second, data)
        assert len(notes(cache)) == 1
    assert notes(cache) == []


def test_f16_an_innocent_suspect_has_the_pixels_it_always_had(cache, samples):
    photograph = next(path for path in sorted(samples.rglob("*")) if path.suffix.lower() in (".jpg", ".jpeg"))
    data = photograph.read_bytes()
    dead = accuse(cache, data)
    with watching(cache) as watch:
        decoded = take(watch, data)
    np.testing.assert_array_equal(decoded.pixels, decode(data).pixels)
    assert decoded.pixels.flags.writeable and not decoded.animated
    assert not dead.exists()


def test_f16_a_suspect_is_never_decoded_in_the_run_s_own_process(cache, monkeypatch):
    data = jpeg()
    accuse(cache, data)
    with watching(cache) as watch:
        monkeypatch.setattr(suspects, "decode", lambda *_, **__: pytest.fail("decoded here"))
        assert take(watch, data).pixels.shape == (96, 96, 3)


def test_f16_a_suspect_that_is_no_image_fails_as_ever(cache):
    dead = accuse(cache, b"nothing like it")
    with watching(cache) as watch, pytest.raises(DecodeError, match=r"^not an image$"):
        take(watch, b"nothing like it")
    assert not dead.exists()


def test_f16_frames_and_limits_reach_the_child(cache, tmp_path):
    first, second = (draw("cross", seed) for seed in range(2))
    first.save(tmp_path / "moving.gif", save_all=True, append_images=[second])
    data = (tmp_path / "moving.gif").read_bytes()
    accuse(cache, data)
    with watching(cache) as watch:
        assert take(watch, data).animated
        with pytest.raises(DecodeError, match="9216 pixels exceed the limit of 100;"):
            watch.decode(digest_of(data), data, 100)


@pytest.mark.parametrize(
    ("deed", "reason"),
    [
        (CRASH, "crashes its decoder (SIGSEGV)"),
        ("os.abort()", "crashes its decoder (SIGABRT)"),
        ("os._exit(3)", "crashes its decoder (exit status 3)"),
        ("time.sleep(300)", "hangs its decoder (no end after 2 s)"),
    ],
)
def test_f16_what_ends_the_child_is_named_and_remembered(cache, crashing, monkeypatch, deed, reason):
    crashing(deed)
    monkeypatch.setattr(suspects, "TIME_LIMIT", 2)
    bad, good = jpeg(MARK), jpeg()
    guilty, innocent = accuse(cache, bad, good), accuse(cache, good, name="other")
    with watching(cache) as watch:
        asked = []
        monkeypatch.setattr(watch, "_ask", lambda question, ask=watch._ask: asked.append(1) or ask(question))
        for _ in range(2):
            with pytest.raises(DecodeError) as caught:
                take(watch, bad)
            assert str(caught.value) == reason
        assert len(asked) == 1, "once is enough"
        assert take(watch, good).pixels.shape == (96, 96, 3)
    assert guilty.exists() and not innocent.exists()


def test_f16_files_stay_while_they_may_say_something(cache):
    seen, unseen = jpeg(seed=0), jpeg(seed=1)
    idle = accuse(cache, name="idle")
    half = accuse(cache, seen, unseen, name="half")
    old = accuse(cache, unseen, name="old", age=FORGOTTEN_AFTER + 60)
    with pytest.raises(KeyboardInterrupt), watching(cache) as watch:
        take(watch, seen)
        raise KeyboardInterrupt
    assert notes(cache) == [half, idle, old], "a run that did not end in order forgets nothing"
    with watching(cache) as watch:
        take(watch, seen)
    assert notes(cache) == [half]
    with watching(cache) as watch:
        take(watch, unseen)
        take(watch, seen)
    assert notes(cache) == []


def test_f16_who_stops_a_run_need_not_wait_for_a_suspect(cache, crashing, tmp_path):
    crashing(f"open({str(tmp_path / 'decoding')!r}, 'w').close(); time.sleep(300)")
    bad = jpeg(MARK)
    dead = accuse(cache, bad)
    failures = []

    def work(watch):
        with pytest.raises(DecodeError) as caught:
            take(watch, bad)
        failures.append(str(caught.value))

    with watching(cache) as watch:
        thread = threading.Thread(target=work, args=(watch,))
        thread.start()
        while not (tmp_path / "decoding").exists():
            assert thread.is_alive()
            time.sleep(0.01)
        watch.stop()
        thread.join()
        assert failures == ["not tried again, for the run was stopped"]
    assert dead.exists(), "nothing is known of it yet"
    with watching(cache) as watch:
        watch.stop()
        with pytest.raises(DecodeError, match="not tried again"):
            take(watch, bad)
    assert dead.exists()


@pytest.mark.parametrize("program", ["", "/nowhere/python", "/bin/false", "/bin/echo"])
def test_f16_where_no_python_can_be_started_a_suspect_is_decoded_here(cache, monkeypatch, program):
    monkeypatch.setattr(sys, "executable", program)
    data = jpeg()
    accuse(cache, data)
    with watching(cache) as watch:
        assert take(watch, data).pixels.shape == (96, 96, 3)
    assert notes(cache) == []


def test_f16_the_child_imports_nothing_from_the_working_directory(cache, tmp_path, monkeypatch):
    (tmp_path / "json.py").write_text("raise SystemExit('run from the working directory')")
    (tmp_path / "numpy.py").write_text("raise SystemExit('run from the working directory')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    data = jpeg(MARK)
    accuse(cache, data)
    with watching(cache) as watch:
        monkeypatch.setattr(suspects, "decode", lambda *_, **__: pytest.fail("decoded here"))
        assert take(watch, data).pixels.shape == (96, 96, 3)


def test_f16_the_child_loads_no_torch():
    program = "import sys, headstart.extract.suspects; print(*{m.split('.')[0] for m in sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "simplejpeg" in done.stdout.split()
    assert not {"torch", "torchvision", "h5py", "sklearn"} & set(done.stdout.split())


# Where it cannot work, it is off


def works_without(cache: Path, caplog) -> None:
    caplog.set_level(logging.DEBUG, "headstart")
    with watching(cache) as watch:
        assert take(watch, jpeg()).pixels.shape == (96, 96, 3)
    said = [record.levelname for record in caplog.records if "noted" in record.message or "announced" in record.message]
    assert said == ["DEBUG"]


def test_f16_a_folder_that_cannot_be_written_only_costs_the_hint(cache, caplog):
    (cache / FOLDER).write_text("not a folder")
    works_without(cache, caplog)
    assert [path.name for path in cache.iterdir()] == [FOLDER]


def test_f16_a_cache_that_has_gone_is_not_made_again(tmp_path, caplog):
    works_without(tmp_path / "gone", caplog)
    assert not (tmp_path / "gone").exists()


@pytest.mark.parametrize("call", ["open", "replace", "pwrite"])
def test_f16_a_refused_call_only_costs_the_hint(cache, caplog, monkeypatch, call):
    def refuse(*_arguments, **_options):
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        works_without(cache, caplog)
    assert [path for path in cache.rglob("*") if path.is_file()] == []


def test_f16_without_locks_nobody_is_suspected(cache, caplog, monkeypatch):
    import fcntl

    def refuse(*_arguments):
        raise OSError(37, os.strerror(37))  # ENOLCK

    data = jpeg()
    dead = accuse(cache, data)
    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(Watch, "_ask", lambda *_: pytest.fail("suspected"))
    works_without(cache, caplog)
    with watching(cache) as watch:
        take(watch, data)
    assert notes(cache) == [dead]


def test_f16_what_is_no_file_of_a_run_is_passed_over(cache, tmp_path):
    folder = cache / FOLDER
    folder.mkdir()
    os.mkfifo(folder / f"pipe{SUFFIX}")
    (folder / f"folder{SUFFIX}").mkdir()
    (tmp_path / "elsewhere").write_bytes(b"x" * 64)
    (folder / f"link{SUFFIX}").symlink_to(tmp_path / "elsewhere")
    assert suspects._dead_runs(cache) == []
    (folder / f"cut{SUFFIX}").write_bytes(b"x" * 50)  # the second slot is not whole
    (run,) = suspects._dead_runs(cache)
    assert run.digests == {b"x" * 32}
    with watching(cache) as watch:
        take(watch, jpeg())


def test_f16_the_file_is_as_open_to_others_as_the_umask_says(cache):
    before = os.umask(0o027)
    try:
        with watching(cache):
            (path,) = notes(cache)
            assert path.stat().st_mode & 0o777 == 0o640
    finally:
        os.umask(before)
