"""Faults of the place where a cache lies: read-only, gone while in use, on a network file system."""

import errno
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from headstart.cache import part
from headstart.cache.datasets import load_listing
from headstart.cache.info import info
from headstart.cache.listing import save_listing
from headstart.cache.memo import recall, remember
from headstart.cache.part import Keys
from headstart.cache.store import FeatureStore
from headstart.cache.verify import verify
from headstart.errors import CacheError, CacheMissError
from support import add_rows, flip, listing_of, random_rows

NOBODY = 65_534


@pytest.fixture
def store(tmp_path, space):
    store = FeatureStore(tmp_path / "cache")
    digest, rows = random_rows(20)
    add_rows(store, space, digest[:10], rows[:10])
    add_rows(store, space, digest[10:], rows[10:])
    return store


@pytest.fixture
def as_somebody_else(space):
    """Run a program as a user who may read the cache and not write it; return its standard output."""
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        cache = Path(folder) / "cache"
        add_rows(FeatureStore(cache), space, *random_rows(10))
        save_listing(cache, listing_of(random_rows(10)[0], spaces=(space.id,)))

        def run(program):
            command = [sys.executable, "-c", BECOME + program, str(cache)]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            return done.stdout

        yield run


# The interpreter may lie where somebody else may not read: everything is imported before root is left.
BECOME = f"""
import importlib, os, pkgutil, sys, h5py, concurrent.futures.thread, headstart.cli, headstart.cache
for module in pkgutil.iter_modules(headstart.cache.__path__):
    importlib.import_module("headstart.cache." + module.name)
os.setgid({NOBODY}); os.setuid({NOBODY})
root = sys.argv[1]
"""
READ = """
from pathlib import Path
from headstart.cache.store import FeatureStore
from headstart.cache.datasets import require_listing
from headstart.cache.part import Keys
from headstart.cache.verify import verify
from headstart.cli import main
store = FeatureStore(Path(root))
(space,) = store.spaces()
print(store.gather(space, Keys.plain(require_listing(store.root).digest)).shape, verify(store.root).status)
print(main(["cache", "info", "--quiet", "--cache", root]))
"""
WRITE = """
from pathlib import Path
from headstart.cache.compact import compact
from headstart.cache.store import FeatureStore
from headstart.errors import CacheError
store = FeatureStore(Path(root))
(space,) = store.spaces().values()
for use in (lambda: store.prepare(space), lambda: compact(store.root)):
    try: use()
    except CacheError as error: print(error)
"""


def test_f07_a_read_only_cache_can_be_read_and_writing_says_what_to_do(as_somebody_else):
    lines = as_somebody_else(READ).splitlines()
    assert (lines[0], lines[-1]) == ("(10, 8) 0", "0")
    first, second = as_somebody_else(WRITE).splitlines()
    assert first == second
    assert first.endswith("is read-only: pass --cache with a folder that can be written")


def test_f41_a_part_of_another_space_is_refused_by_name(store, space, caplog):
    from support import make_space

    other = make_space(backbone="resnet50")
    store.prepare(other)
    stray = store.space_folder(other.id) / store.parts(space.id)[0].name
    stray.write_bytes(store.parts(space.id)[0].read_bytes())
    assert len(store.index(other.id)[0]) == 0
    assert f"{stray} belongs to feature space {space.id} (resnet18, layer fc.input), not to its folder's" in caplog.text


def test_f43_no_file_of_the_cache_is_ever_locked_by_a_reader_or_a_writer(store, space, monkeypatch):
    """A network file system may answer ENOLCK to every lock."""

    def refuse(*_arguments, **_options):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuse)
    monkeypatch.setattr("fcntl.lockf", refuse)
    monkeypatch.setattr("fcntl.fcntl", refuse)
    digest, rows = random_rows(10, seed=3)
    add_rows(store, space, digest, rows)
    np.testing.assert_array_equal(store.gather(space.id, Keys.plain(digest)), rows)


@pytest.mark.parametrize("code", [errno.ESTALE, errno.ENOENT])
@pytest.mark.parametrize("function", ["read_header", "read_arrays", "copy_rows"])
def test_f43_a_part_that_is_stale_or_gone_when_it_is_opened_means_listing_again(
    store, space, monkeypatch, code, function
):
    real, failures = getattr(part.block, function), iter([True, True])

    def sometimes(path, *arguments):
        if next(failures, False):
            raise OSError(code, os.strerror(code), str(path))
        return real(path, *arguments)

    monkeypatch.setattr(part.block, function, sometimes)
    digest, rows = random_rows(20)
    np.testing.assert_array_equal(store.gather(space.id, Keys.plain(digest)), rows)
    assert next(failures, None) is None, "it happened"


def test_parts_that_go_away_as_fast_as_they_are_read_are_an_error_and_no_endless_loop(store, space, monkeypatch):
    def gone(path, *_arguments):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))

    monkeypatch.setattr(part.block, "copy_rows", gone)
    with pytest.raises(CacheError, match="go away as fast as they are read"):
        store.gather(space.id, Keys.plain(random_rows(20)[0]))


def test_f43_a_part_that_cannot_be_read_is_named_with_the_errno(store, space, monkeypatch):
    def broken(path, *_arguments):
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    monkeypatch.setattr(part.block, "copy_rows", broken)
    with pytest.raises(CacheError, match=r"cannot read .*\.h5 \(EIO: Input/output error\)"):
        store.gather(space.id, Keys.plain(random_rows(20)[0]))
    assert len(store.parts(space.id)) == 2, "nothing is set aside for a disk that does not answer"


def test_f44_a_cache_deleted_while_it_is_written_is_not_made_again(store, space):
    digest, rows = random_rows(30)
    with (
        pytest.raises(CacheError, match=rf"{store.space_folder(space.id)} went away while it was in use: run again"),
        store.writer(space) as writer,
    ):
        writer.add(Keys.plain(digest[20:]), rows[20:])
        shutil.rmtree(store.root)
    assert not store.root.exists(), "no half result"
    with pytest.raises(CacheError, match="went away while it was in use: run again"):
        save_listing(store.root, listing_of(digest))
    assert not store.root.exists()


def test_f44_a_cache_deleted_while_it_is_read_lacks_what_it_had(store, space, monkeypatch):
    index = store.index

    def index_then_delete(space_id):
        found = index(space_id)
        shutil.rmtree(store.root, ignore_errors=True)
        return found

    monkeypatch.setattr(store, "index", index_then_delete)
    with pytest.raises(
        CacheMissError, match=rf"the cache {store.root} lacks 20 of 20 embeddings; run `headstart extract`"
    ):
        store.gather(space.id, Keys.plain(random_rows(20)[0]))


def test_a_damaged_part_that_cannot_be_set_aside_is_passed_over_once(store, space, monkeypatch, caplog):
    victim = store.parts(space.id)[1]
    digest, rows = random_rows(20)
    flip(victim, victim.read_bytes().index(rows[10:].tobytes()))

    def refuse(*_arguments, **_options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(CacheMissError, match="lacks 10 of 20"):
        list(store.blocks(space.id, Keys.plain(digest)))
    with pytest.raises(CacheMissError, match="lacks 10 of 20"):
        store.gather(space.id, Keys.plain(digest))
    np.testing.assert_array_equal(store.gather(space.id, Keys.plain(digest[:10])), rows[:10])
    assert caplog.text.count("passed over, for it cannot be set aside (Read-only file system)") == 1


def test_where_a_file_is_in_the_way_of_quarantine_a_damaged_part_gets_another_name(store, space):
    (store.root / "quarantine").write_bytes(b"somebody's")
    victim = store.parts(space.id)[0]
    flip(victim, 100)
    assert len(store.index(space.id)[0]) == 10
    assert victim.with_suffix(".damaged").exists()
    assert info(store.root).quarantined == 0
    assert len(FeatureStore(store.root).parts(space.id)) == 1


@pytest.mark.parametrize("kind", ["fifo", "link", "folder"])
def test_what_has_a_parts_name_and_is_none_neither_hangs_nor_blocks(store, space, kind):
    path = store.space_folder(space.id) / f"{'0' * 24}-{'0' * 32}.h5"
    make = {"fifo": os.mkfifo, "link": lambda p: p.symlink_to("nowhere"), "folder": lambda p: p.mkdir()}[kind]
    make(path)
    digest, rows = random_rows(20)
    np.testing.assert_array_equal(store.gather(space.id, Keys.plain(digest)), rows)
    assert path.name not in {part.name for part in store.parts(space.id)}


@pytest.mark.parametrize("name", ["space.json", "memo", "listing"])
def test_a_fifo_in_the_place_of_another_file_does_not_hang(store, space, name):
    save_listing(store.root, listing_of(random_rows(20)[0]))
    remember(store.root, {"name": "x"}, {"dim": 8})
    path = {
        "space.json": store.space_folder(space.id) / "space.json",
        "memo": next(store.root.glob("backbones/*")),
        "listing": next(store.root.glob("datasets/*/*.h5")),
    }[name]
    path.unlink()
    os.mkfifo(path)
    assert verify(store.root).status == 1
    assert recall(store.root, {"name": "x"}) == (None if name == "memo" else {"dim": 8})
    assert len(store.index(space.id)[0]) == 20


def test_a_dataset_on_its_way_out_is_no_dataset(store):
    save_listing(store.root, listing_of(random_rows(20)[0]))
    folder = next(store.root.glob("datasets/*"))
    folder.rename(folder.with_name(f".{folder.name}.0123456789ab.tmp"))
    assert load_listing(store.root) is None
    assert info(store.root).datasets == ()


def test_a_cache_that_is_a_file_is_not_an_empty_cache(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for look in (info, verify):
        with pytest.raises(CacheError, match=r"cannot read .*file.* \(ENOTDIR"):
            look(tmp_path / "file")
