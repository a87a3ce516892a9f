"""Forward passes that any thread asks for run in a thread that keeps freed memory."""

import multiprocessing
import os
import sys
import threading

import numpy as np
import pytest

from headstart.extract import main_arena
from headstart.extract.main_arena import has_main_arena, in_main_arena
from headstart.extract.options import RunOptions, SpaceOptions
from headstart.extract.resolve import resolve


def in_thread(call):
    """Return what a call returns in a thread of its own, or raise what it raises."""
    found = []

    def work():
        try:
            found.append(call())
        except Exception as error:  # noqa: BLE001
            found.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if isinstance(found[0], Exception):
        raise found[0]
    return found[0]


@pytest.fixture
def _another_arena():
    """Keep a thread of another arena alive, so that the next one cannot get the main arena by chance."""
    hold, begun = threading.Event(), threading.Event()
    threads = [threading.Thread(target=lambda: (begun.set(), hold.wait())) for _ in range(3)]
    for thread in threads:
        thread.start()
    begun.wait()
    yield
    hold.set()
    for thread in threads:
        thread.join()


@pytest.mark.skipif(main_arena._glibc() is None, reason="the C library is another one")
@pytest.mark.usefixtures("_another_arena")
def test_another_thread_has_it_done_where_memory_is_kept():
    assert has_main_arena() and in_main_arena(threading.get_ident) == threading.get_ident()

    def ask():
        mine = threading.get_ident()
        there = [in_main_arena(lambda: (has_main_arena(), threading.get_ident())) for _ in range(2)]
        return mine, has_main_arena(), there

    mine, has, there = in_thread(ask)
    assert there[0] == there[1], "one thread is kept for all"
    assert there[0][0] and (has or there[0][1] != mine)
    assert in_thread(lambda: in_main_arena(lambda: in_main_arena(has_main_arena)))


def test_what_goes_wrong_there_is_raised_here_and_the_next_call_is_done():
    def ask():
        with pytest.raises(ZeroDivisionError):
            in_main_arena(lambda: 1 // 0)
        return in_main_arena(lambda: 7)

    assert in_thread(ask) == 7


def forked(pipe) -> None:
    pipe.send(in_thread(lambda: in_main_arena(os.getpid)))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not fork")
def test_a_forked_process_does_not_wait_for_a_thread_that_it_has_not():
    in_thread(lambda: in_main_arena(os.getpid))
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=forked, args=(theirs,))
    child.start()
    assert ours.poll(30), "it waits for ever"
    assert ours.recv() == child.pid
    child.join()


def test_where_no_thread_gets_it_the_asking_one_computes(monkeypatch):
    monkeypatch.setattr(main_arena, "_TRIES", 0)
    monkeypatch.setattr(main_arena, "_keeper", main_arena._keeper.__wrapped__)
    mine, there = in_thread(lambda: (threading.get_ident(), in_main_arena(threading.get_ident)))
    assert mine == there


def test_rows_and_threads_are_the_same_whoever_asks(tmp_path):
    embedder = resolve([SpaceOptions(backbone="efficientnet_lite0")], RunOptions(), tmp_path)
    embedder.cores = 1
    embedder.load()
    embedder.threads = 1
    side = embedder.preprocess.crop
    pixels = np.random.default_rng(0).integers(0, 256, (3, side, side, 3), np.uint8)
    here = embedder.embed(pixels)
    np.testing.assert_allclose(in_thread(lambda: embedder.embed(pixels)), here, rtol=1e-5, atol=1e-6)
    embedder.rest()
