import json
import os
import threading
import time

import h5py
import numpy as np
import pytest
from hypothesis import settings
from store_machine import StoreMachine

from headstart.cache.part import Keys, read_keys
from headstart.cache.store import FeatureStore, cache_dir
from headstart.errors import CacheError, CacheMissError, DamagedFileError
from support import add_rows, flip, make_space, random_rows


@pytest.fixture
def store(tmp_path):
    return FeatureStore(tmp_path / "cache")


def test_rows_come_back_in_the_callers_order(store, space):
    digest, rows = random_rows(100)
    add_rows(store, space, digest[:60], rows[:60])
    add_rows(store, space, digest[60:], rows[60:])
    order = np.random.default_rng(2).permutation(100)
    np.testing.assert_array_equal(store.gather(space.id, Keys.plain(digest[order])), rows[order])
    assert len(store.parts(space.id)) == 2


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_rows_go_into_columns_of_a_wider_array_and_nowhere_else(store, dtype):
    space = make_space(dtype=dtype)
    digest, rows = random_rows(100)
    add_rows(store, space, digest[:60], rows[:60])
    add_rows(store, space, digest[60:], rows[60:])
    wide = np.full((100, 12), 7, np.float32)
    for order in (np.arange(100), np.random.default_rng(2).permutation(100)):  # as stored, and not
        given = store.gather(space.id, Keys.plain(digest[order]), out=wide[:, 3:11])
        np.testing.assert_array_equal(wide[:, 3:11], rows[order].astype(dtype))
        assert np.shares_memory(given, wide) and (wide[:, :3] == 7).all() and (wide[:, 11:] == 7).all()


def test_a_key_asked_for_twice_is_answered_twice(store, space):
    digest, rows = random_rows(3)
    add_rows(store, space, digest, rows)
    twice = digest[[1, 1, 0]]
    np.testing.assert_array_equal(store.gather(space.id, Keys.plain(twice)), rows[[1, 1, 0]])


def test_of_two_parts_with_one_key_the_first_by_name_wins(store, space):
    digest, rows = random_rows(1)
    add_rows(store, space, digest, rows)
    add_rows(store, space, digest, rows + 1)
    first = store.parts(space.id)[0]
    with h5py.File(first, locking=False) as file:
        expected = file["embedding"][()]
    np.testing.assert_array_equal(store.gather(space.id, Keys.plain(digest)), expected)
    assert len(store.index(space.id)[0]) == 2


def test_absent_keys_are_named_by_number(store, space):
    digest, rows = random_rows(5)
    add_rows(store, space, digest[:2], rows[:2])
    with pytest.raises(CacheMissError, match="lacks 3 of 5 embeddings; run `headstart extract`"):
        store.gather(space.id, Keys.plain(digest))


def test_an_absent_cache_has_nothing_and_is_no_error(store, space):
    assert store.parts(space.id) == []
    assert store.spaces() == {}
    assert len(store.index(space.id)[0]) == 0
    assert not store.root.exists()


def test_keys_that_share_a_prefix_are_told_apart(store, space):
    digest, rows = random_rows(4)
    digest[:, :8] = digest[0, :8]  # what the sorted index looks at
    add_rows(store, space, digest, rows)
    stranger = digest[:1].copy()
    stranger[0, 31] ^= 1
    index, _ = store.index(space.id)
    assert index.find(Keys.plain(digest)).tolist() == [0, 1, 2, 3]
    assert index.find(Keys.plain(stranger)).tolist() == [-1]
    assert [index.find_one(key.tobytes()) for key in (*digest, stranger[0])] == [0, 1, 2, 3, -1]


def test_views_of_one_image_are_told_apart(space):
    from headstart.cache.index import KeyIndex

    digest, _ = random_rows(1)
    keys = Keys(np.repeat(digest, 3, axis=0), np.array([0, 5, 5], np.uint64), np.array([0, 1, 2], np.uint32))
    index = KeyIndex([keys])
    assert index.find(keys).tolist() == [0, 1, 2]
    other = Keys(digest, np.array([5], np.uint64), np.array([3], np.uint32))
    assert index.find(other).tolist() == [-1]
    assert index.find_one(digest.tobytes()) == 0
    assert KeyIndex([other]).find_one(digest.tobytes()) == -1, "of another view alone"
    mixed = Keys(np.concatenate([digest, digest]), np.array([1, 0], np.uint64), np.array([0, 0], np.uint32))
    assert KeyIndex([mixed]).find_one(digest.tobytes()) == 1


@pytest.mark.parametrize("count", [0, 1, 2, 1000])
def test_one_key_is_found_where_all_are(count):
    from headstart.cache.index import KeyIndex

    digest, _ = random_rows(count)
    strangers, _ = random_rows(50, seed=1)
    index = KeyIndex([Keys.plain(digest[: count // 2]), Keys.plain(digest)])
    asked = np.concatenate([digest, strangers])
    assert [index.find_one(key.tobytes()) for key in asked] == index.find(Keys.plain(asked)).tolist()


@pytest.mark.parametrize("where", ["embedding", "digest", 20, 900, 1600, -1])
def test_a_flipped_byte_sets_the_part_aside_and_loses_only_its_rows(store, space, where, caplog):
    digest, rows = random_rows(40)
    add_rows(store, space, digest[:20], rows[:20])
    add_rows(store, space, digest[20:], rows[20:])
    victim = store.parts(space.id)[1]
    position = victim.read_bytes().index(rows[20:].tobytes() if where == "embedding" else digest[20:].tobytes()) + 5 \
        if isinstance(where, str) else where  # fmt: skip
    flip(victim, position)
    with pytest.raises(CacheMissError, match="lacks 20 of 40"):
        store.gather(space.id, Keys.plain(digest))
    assert (store.root / "quarantine" / victim.name).exists()
    assert str(victim) in caplog.text
    assert "run `headstart extract`" in caplog.text
    np.testing.assert_array_equal(store.gather(space.id, Keys.plain(digest[:20])), rows[:20])


def test_damage_in_one_of_two_copies_is_served_from_the_other(store, space):
    digest, rows = random_rows(4)
    add_rows(store, space, digest, rows)
    add_rows(store, space, digest, rows)
    victim = store.parts(space.id)[0]
    flip(victim, victim.read_bytes().index(rows.tobytes()))
    np.testing.assert_array_equal(store.gather(space.id, Keys.plain(digest)), rows)


@pytest.mark.parametrize("content", [b"", b"x", b"\x89HDF\r\n\x1a\n"])
def test_a_short_or_foreign_file_under_a_parts_name_is_set_aside(store, space, content):
    store.prepare(space)
    impostor = store.space_folder(space.id) / f"{'0' * 24}-{'0' * 32}.h5"
    impostor.write_bytes(content)
    assert len(store.index(space.id)[0]) == 0
    assert not impostor.exists()


def test_a_renamed_part_is_not_believed(store, space):
    digest, rows = random_rows(2)
    add_rows(store, space, digest, rows)
    part = store.parts(space.id)[0]
    part.rename(part.with_name(f"{'0' * 24}-{'0' * 32}.h5"))
    with pytest.raises(CacheMissError):
        store.gather(space.id, Keys.plain(digest))


def test_temporary_files_are_not_read(store, space):
    store.prepare(space)
    (store.space_folder(space.id) / ".0000.h5.abc.tmp").write_bytes(b"half a part")
    assert store.parts(space.id) == []


def test_a_damaged_description_is_named(store, space):
    store.prepare(space)
    path = store.space_folder(space.id) / "space.json"
    path.write_text("{")
    with pytest.raises(DamagedFileError, match=r"space\.json is damaged"):
        store.space(space.id)
    content = {"space": make_space(dim=9).as_dict()}
    path.write_text(json.dumps(content))
    with pytest.raises(DamagedFileError, match="it describes space"):
        store.space(space.id)


def test_float16_is_stored_as_such_and_read_as_float32(store):
    half = make_space(dtype="float16")
    digest, rows = random_rows(5)
    add_rows(store, half, digest, rows)
    with h5py.File(store.parts(half.id)[0], locking=False) as file:
        assert file["embedding"].dtype == np.float16
    read = store.gather(half.id, Keys.plain(digest))
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, rows.astype(np.float16).astype(np.float32))


def test_the_part_carries_what_the_format_promises(store, space):
    digest, rows = random_rows(3)
    add_rows(store, space, digest, rows)
    part = store.parts(space.id)[0]
    with h5py.File(part, locking=False) as file:
        assert {name: (file[name].shape, file[name].dtype.str) for name in file} == {
            "embedding": ((3, 8), "<f4"),
            "digest": ((3, 32), "|u1"),
            "recipe": ((3,), "<u8"),
            "view": ((3,), "<u4"),
        }
        assert json.loads(file.attrs["space"]) == space.as_dict()
        assert file.attrs["rows"] == 3
        assert file.attrs["schema"] == 1
        assert json.loads(file.attrs["recipes"]) == {}
        assert file.attrs["writer"].startswith("headstart ")
    assert (store.root / ".gitignore").read_text() == "*\n"
    assert json.loads((store.space_folder(space.id) / "space.json").read_text())["space"] == space.as_dict()


def test_the_interval_cuts_parts(store, space, monkeypatch):
    monkeypatch.setenv("HEADSTART_PART_SECONDS", "0.000001")
    digest, rows = random_rows(6)
    store.prepare(space)
    safe = []
    with store.writer(space, safe.append) as writer:
        for row in range(6):
            writer.add(Keys.plain(digest[row : row + 1]), rows[row : row + 1])
    assert safe == [1, 2, 3, 4, 5, 6]
    assert len(store.parts(space.id)) == 6


def test_an_exception_in_the_block_still_publishes_what_was_added(store, space):
    digest, rows = random_rows(4)
    store.prepare(space)
    with pytest.raises(RuntimeError, match="boom"), store.writer(space) as writer:
        writer.add(Keys.plain(digest), rows)
        raise RuntimeError("boom")
    np.testing.assert_array_equal(store.gather(space.id, Keys.plain(digest)), rows)


def test_a_full_disk_says_what_is_safe(store, space, monkeypatch):
    monkeypatch.setenv("HEADSTART_PART_SECONDS", "0.000001")
    digest, rows = random_rows(4)
    store.prepare(space)

    def full(*_arguments):
        raise OSError(28, "No space left on device")

    said = pytest.raises(CacheError, match=r"disk full writing .*: 2 images are safe, free ~1 MB and run again")
    with said, store.writer(space) as writer:
        writer.add(Keys.plain(digest[:2]), rows[:2])
        writer.flush()
        monkeypatch.setattr(os, "write", full)
        writer.add(Keys.plain(digest[2:]), rows[2:])
    monkeypatch.undo()
    np.testing.assert_array_equal(store.gather(space.id, Keys.plain(digest[:2])), rows[:2])


def test_rows_are_taken_while_a_slow_disk_writes_and_not_more_than_one_part_waits(store, space, monkeypatch):
    monkeypatch.setenv("HEADSTART_PART_SECONDS", "0.000001")
    digest, rows = random_rows(6)
    store.prepare(space)
    disk, sync, taken = threading.Event(), os.fsync, []

    def slow(descriptor):
        assert disk.wait(30)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", slow)

    def work():
        with store.writer(space) as writer:
            for row in range(6):
                writer.add(Keys.plain(digest[row : row + 1]), rows[row : row + 1])
                taken.append((row, writer.published))

    thread = threading.Thread(target=work)
    thread.start()
    deadline = time.monotonic() + 30
    while not taken and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert taken == [(0, 0)], "the first row is being written, the second waits for it"
    disk.set()
    thread.join(30)
    assert [row for row, _ in taken] == [0, 1, 2, 3, 4, 5]
    np.testing.assert_array_equal(store.gather(space.id, Keys.plain(digest)), rows)


def test_a_failure_behind_the_writer_is_raised_at_the_next_row(store, space, monkeypatch):
    digest, rows = random_rows(4)
    store.prepare(space)

    def full(*_arguments):
        raise OSError(28, "No space left on device")

    with pytest.raises(CacheError, match="disk full"), store.writer(space) as writer:
        monkeypatch.setattr(os, "write", full)
        writer.add(Keys.plain(digest[:1]), rows[:1])
        writer._cut()
        for _ in range(3000):
            time.sleep(0.001)
            writer.add(Keys.plain(digest[1:2]), rows[1:2])
        pytest.fail("nobody was told")


def test_a_cache_that_cannot_be_written_says_so_before_any_work(tmp_path, space, monkeypatch):
    def refuse(*_arguments, **_options):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("pathlib.Path.touch", refuse)
    with pytest.raises(CacheError, match=r"cache .* is read-only: pass --cache"):
        FeatureStore(tmp_path).prepare(space)


def test_writers_side_by_side_lose_nothing(store, space, monkeypatch):
    monkeypatch.setenv("HEADSTART_PART_SECONDS", "0.001")
    digest, rows = random_rows(400)
    store.prepare(space)

    def work(seed):
        order = np.random.default_rng(seed).permutation(400)[:300]
        with store.writer(space) as writer:
            for start in range(0, 300, 10):
                writer.add(Keys.plain(digest[order[start : start + 10]]), rows[order[start : start + 10]])

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(store.gather(space.id, Keys.plain(digest)), rows)


def test_the_folder_is_chosen_by_argument_then_environment(monkeypatch):
    assert str(cache_dir()) == ".headstart"
    monkeypatch.setenv("HEADSTART_CACHE", "/elsewhere")
    assert str(cache_dir()) == "/elsewhere"
    assert str(cache_dir("here")) == "here"


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(max_examples=25, stateful_step_count=12, deadline=None)


def test_read_keys_reads_no_embeddings(store, space):
    digest, rows = random_rows(4)
    add_rows(store, space, digest, rows)
    part = store.parts(space.id)[0]
    flip(part, part.read_bytes().index(rows.tobytes()))  # damage that a reader of embeddings would see
    np.testing.assert_array_equal(read_keys(part).digest, digest)
