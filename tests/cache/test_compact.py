import os
import time
from dataclasses import replace

import numpy as np
import pytest

from headstart.cache import compact as module
from headstart.cache.compact import compact
from headstart.cache.datasets import KEPT_PARTIAL
from headstart.cache.info import info
from headstart.cache.listing import save_listing
from headstart.cache.part import Keys, read_head, write_part
from headstart.cache.running import running
from headstart.cache.store import FeatureStore
from headstart.errors import CacheError, CacheMissError, DamagedFileError
from support import add_rows, flip, listing_of, random_rows


@pytest.fixture
def store(tmp_path, space):
    store = FeatureStore(tmp_path / "cache")
    store.prepare(space)
    return store


def old(path, seconds=3600):
    os.utime(path, (time.time() - seconds,) * 2)


def test_small_parts_become_one_and_every_row_stays(store, space):
    digest, rows = random_rows(50)
    for start in range(0, 50, 10):
        add_rows(store, space, digest[start : start + 10], rows[start : start + 10])
    done = compact(store.root, now=True)
    assert (done.parts_before, done.parts_after, done.rows, done.deleted) == (5, 1, 50, 5)
    assert len(store.parts(space.id)) == 1
    np.testing.assert_array_equal(store.gather(space.id, Keys.plain(digest)), rows)


def test_the_old_parts_wait_for_readers_and_are_not_read(store, space):
    digest, rows = random_rows(20)
    add_rows(store, space, digest[:10], rows[:10])
    add_rows(store, space, digest[10:], rows[10:])
    assert (compact(store.root).waiting, len(store.parts(space.id))) == (2, 3)
    (head,) = store.heads(space.id)
    assert set(head.supersedes) == {path.name for path in store.parts(space.id)} - {head.path.name}
    assert compact(store.root).deleted == 0, "the time of grace is not over"
    old(head.path)
    done = compact(store.root)
    assert (done.deleted, done.waiting, len(store.parts(space.id))) == (2, 0, 1)
    np.testing.assert_array_equal(store.gather(space.id, Keys.plain(digest)), rows)


def test_a_reader_that_listed_the_old_parts_lists_again(store, space, monkeypatch):
    digest, rows = random_rows(20)
    add_rows(store, space, digest[:10], rows[:10])
    add_rows(store, space, digest[10:], rows[10:])
    index = store.index

    def index_then_compact(space_id):
        found = index(space_id)
        monkeypatch.setattr(store, "index", index)
        compact(store.root, now=True)
        return found

    monkeypatch.setattr(store, "index", index_then_compact)
    np.testing.assert_array_equal(store.gather(space.id, Keys.plain(digest)), rows)
    monkeypatch.setattr(store, "index", index_then_compact)
    add_rows(store, space, *random_rows(3, seed=9))
    where, blocks = zip(*store.blocks(space.id, Keys.plain(digest), block_rows=7), strict=True)
    np.testing.assert_array_equal(np.concatenate(blocks), rows[np.concatenate(where)])


def test_copies_are_dropped(store, space):
    digest, rows = random_rows(30)
    add_rows(store, space, digest[:20], rows[:20])
    add_rows(store, space, digest[10:], rows[10:])
    done = compact(store.root, now=True)
    assert (done.copies, done.rows) == (10, 30)
    assert len(store.index(space.id)[0]) == 30
    assert (compact(store.root, now=True).parts_before, compact(store.root).copies) == (1, 0)


def test_full_parts_are_left_alone(store, space, monkeypatch):
    monkeypatch.setattr(module, "PART_BYTES", 20 * space.row_bytes)
    digest, rows = random_rows(45)
    add_rows(store, space, digest[:20], rows[:20])
    full = store.parts(space.id)[0]
    for start in range(20, 45, 5):
        add_rows(store, space, digest[start : start + 5], rows[start : start + 5])
    compact(store.root, now=True)
    assert full in store.parts(space.id)
    assert [len(head.keys) for head in store.heads(space.id)] == [20, 5, 20]
    np.testing.assert_array_equal(store.gather(space.id, Keys.plain(digest)), rows)


def test_a_part_names_no_more_than_fits_into_an_attribute(store, space, monkeypatch):
    monkeypatch.setattr(module, "MAX_SUPERSEDED", 4)
    digest, rows = random_rows(10)
    for row in range(10):
        add_rows(store, space, digest[row : row + 1], rows[row : row + 1])
    compact(store.root)
    assert [len(head.supersedes) for head in store.heads(space.id)] == [4, 4, 2]
    for _ in range(3):
        compact(store.root, now=True)
    assert len(store.parts(space.id)) == 1
    np.testing.assert_array_equal(store.gather(space.id, Keys.plain(digest)), rows)


def test_the_longest_list_of_names_fits_into_hdf5(store, space):
    digest, rows = random_rows(1)
    name = f"{'a' * 24}-{'b' * 32}.h5"
    path = write_part(store.space_folder(space.id), space, Keys.plain(digest), rows, {}, [name] * 512)
    assert read_head(path).supersedes == (name,) * 512


def test_f33_pruning_drops_what_no_listing_has(store, space):
    digest, rows = random_rows(30)
    add_rows(store, space, digest, rows)
    save_listing(store.root, listing_of(digest[:12], root="one"))
    save_listing(store.root, listing_of(digest[8:20], root="two"))
    assert info(store.root).spaces[0].orphans == 10, "kept and counted"
    assert compact(store.root, now=True).pruned == 0
    done = compact(store.root, prune=True)
    assert (done.pruned, done.rows) == (10, 20)
    np.testing.assert_array_equal(store.gather(space.id, Keys.plain(digest[:20])), rows[:20])
    assert (store.index(space.id)[0].find(Keys.plain(digest[20:])) == -1).all()


def test_pruning_everything_leaves_an_empty_part_until_the_old_ones_are_gone(store, space):
    digest, rows = random_rows(5)
    add_rows(store, space, digest, rows)
    assert compact(store.root, prune=True).pruned == 5
    assert len(store.index(space.id)[0]) == 0
    assert len(store.parts(space.id)) == 2
    compact(store.root, now=True)
    assert store.parts(space.id) == []


def test_pruning_drops_nothing_while_a_run_goes_on(store, space):
    """It may come to list what it has written, and what it has found there."""
    digest, rows = random_rows(20)
    add_rows(store, space, digest[:10], rows[:10])
    with running(store.root) as descriptor:
        assert descriptor is not None
        add_rows(store, space, digest[10:], rows[10:])
        done = compact(store.root, prune=True)
        assert (done.pruned, done.spared, done.rows) == (0, 20, 20)
        assert compact(store.root, prune=True, now=True).pruned == 20
    assert not list((store.root / "running").iterdir())


def test_pruning_spares_what_is_written_while_it_goes_on(store, space, monkeypatch):
    digest, rows = random_rows(20)
    add_rows(store, space, digest[:10], rows[:10])
    in_use = module.all_digests_in_use

    def and_then_a_run_begins(root):
        found = in_use(root)
        add_rows(store, space, digest[10:], rows[10:])
        return found

    monkeypatch.setattr(module, "all_digests_in_use", and_then_a_run_begins)
    for now in (False, True):
        done = compact(store.root, prune=True, now=now)
        assert (done.pruned, done.spared) == (10, 10)
    assert done.rows == 10


def test_pruning_keeps_images_whose_bytes_the_latest_listing_does_not_know(store, space):
    """A run was interrupted, or a disk was not there: an earlier listing knows them, by their paths."""
    digest, rows = random_rows(12)
    add_rows(store, space, digest, rows)
    whole = listing_of(digest[:10], spaces=(space.id,))
    save_listing(store.root, whole)
    unknown = whole.digest.copy()
    unknown[3:] = 0
    save_listing(store.root, replace(whole, digest=unknown, failures={9: "not found"}))
    shorter = replace(
        whole, **{n: getattr(whole, n)[:8] for n in ("paths", "label", "split", "stat", "phash")}, digest=unknown[:8]
    )
    save_listing(store.root, shorter)
    assert info(store.root).spaces[0].orphans == 4, "two that nobody lists, two that were deleted"
    assert compact(store.root, now=True).listings == 0, "what does not know all stands for none before it"
    assert compact(store.root, prune=True).pruned == 4
    np.testing.assert_array_equal(store.gather(space.id, Keys.plain(digest[:8])), rows[:8])


def test_pruning_after_a_limited_run_keeps_what_the_whole_one_listed(store, space):
    digest, rows = random_rows(10)
    add_rows(store, space, digest, rows)
    save_listing(store.root, listing_of(digest, spaces=(space.id,)))
    save_listing(store.root, listing_of(digest[:3], spaces=(space.id,), request={"limit": 3}))
    assert compact(store.root, prune=True, now=True).pruned == 0


def test_pruning_stops_where_listings_cannot_be_read(store, space, monkeypatch):
    digest, rows = random_rows(4)
    add_rows(store, space, digest, rows)
    save_listing(store.root, listing_of(digest))
    scandir = os.scandir

    def refuse(path):
        if "datasets" in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(CacheError, match=r"cannot read .*datasets \(EACCES"):
        compact(store.root, prune=True, now=True)
    monkeypatch.undo()
    np.testing.assert_array_equal(store.gather(space.id, Keys.plain(digest)), rows)


def test_a_folder_that_is_no_cache_is_left_alone(tmp_path):
    for name in (".notes.tmp", ".notes.0123456789ab.tmp"):
        (tmp_path / name).write_bytes(b"mine")
        old(tmp_path / name, 3 * 86_400)
    with pytest.raises(CacheMissError, match="is no cache of headstart"):
        compact(tmp_path)
    (tmp_path / "spaces").mkdir()
    (tmp_path / "work" / ".thesis.0123456789ab.tmp").mkdir(parents=True)
    old(tmp_path / "work" / ".thesis.0123456789ab.tmp", 3 * 86_400)
    (tmp_path / "spaces" / ".notes.tmp").write_bytes(b"mine")
    old(tmp_path / "spaces" / ".notes.tmp", 3 * 86_400)
    assert compact(tmp_path).temporary == 1, "one that has the name of ours"
    assert sorted(path.name for path in tmp_path.rglob("*.tmp")) == [
        ".notes.tmp",
        ".notes.tmp",
        ".thesis.0123456789ab.tmp",
    ]


def test_pruning_refuses_where_a_listing_cannot_be_read(store, space):
    digest, rows = random_rows(5)
    add_rows(store, space, digest, rows)
    flip(save_listing(store.root, listing_of(digest)), 700)
    with pytest.raises(DamagedFileError):
        compact(store.root, prune=True, now=True)
    np.testing.assert_array_equal(store.gather(space.id, Keys.plain(digest)), rows)


def test_a_damaged_part_is_set_aside_and_the_others_are_merged(store, space, caplog):
    digest, rows = random_rows(30)
    for start in (0, 10, 20):
        add_rows(store, space, digest[start : start + 10], rows[start : start + 10])
    victim = store.parts(space.id)[1]
    flip(victim, victim.read_bytes().index(rows[10:20].tobytes()))
    assert compact(store.root, now=True).rows == 20
    assert victim.name in caplog.text
    assert (store.root / "quarantine" / victim.name).exists()
    kept = np.r_[0:10, 20:30]
    np.testing.assert_array_equal(store.gather(space.id, Keys.plain(digest[kept])), rows[kept])


def test_a_copy_is_kept_when_the_row_it_repeats_is_damaged(store, space, monkeypatch):
    monkeypatch.setattr(module, "PART_BYTES", 10 * space.row_bytes)
    digest, rows = random_rows(10)
    add_rows(store, space, digest, rows)  # full, so it is not merged
    add_rows(store, space, digest[:4], rows[:4])
    victim = store.parts(space.id)[0]
    flip(victim, victim.read_bytes().index(rows.tobytes()))
    compact(store.root, now=True)
    np.testing.assert_array_equal(store.gather(space.id, Keys.plain(digest[:4])), rows[:4])


def test_nothing_is_deleted_when_the_disk_gives_other_bytes_back(store, space, monkeypatch):
    digest, rows = random_rows(20)
    add_rows(store, space, digest[:10], rows[:10])
    add_rows(store, space, digest[10:], rows[10:])
    monkeypatch.setattr(module, "_forget_cached", lambda path: flip(path, -3))
    with pytest.raises(CacheError, match="gave other bytes back than were written"):
        compact(store.root, now=True)
    assert len(store.parts(space.id)) == 2
    np.testing.assert_array_equal(store.gather(space.id, Keys.plain(digest)), rows)


def test_a_merged_part_damaged_later_gives_way_to_the_old_ones(store, space):
    digest, rows = random_rows(20)
    add_rows(store, space, digest[:10], rows[:10])
    add_rows(store, space, digest[10:], rows[10:])
    compact(store.root)
    (head,) = store.heads(space.id)
    flip(head.path, head.path.read_bytes().index(rows[:10].tobytes()))
    old(head.path)
    assert compact(store.root, now=True).rows == 20
    np.testing.assert_array_equal(store.gather(space.id, Keys.plain(digest)), rows)


def test_f04_stale_temporary_files_are_reported_and_removed_after_a_day(store, space):
    folder = store.space_folder(space.id)
    fresh, stale = folder / ".part.h5.aaaaaaaaaaaa.tmp", folder / ".part.h5.bbbbbbbbbbbb.tmp"
    for path in (fresh, stale):
        path.write_bytes(b"half a part")
    (store.root / "spaces" / ".gone.cccccccccccc.tmp").mkdir()
    (store.root / "spaces" / ".gone.cccccccccccc.tmp" / ".inside.dddddddddddd.tmp").write_bytes(b"x")
    old(stale, 2 * 86_400)
    old(store.root / "spaces" / ".gone.cccccccccccc.tmp", 2 * 86_400)
    assert len(store.index(space.id)[0]) == 0, "ignored"
    assert info(store.root).temporary == 3
    assert any("3 temporary files" in line for line in info(store.root).lines())
    assert compact(store.root).temporary == 2
    assert fresh.exists()
    assert not stale.exists()
    assert info(store.root).temporary == 1


def test_old_listings_go_and_those_that_a_reader_takes_stay(store, space):
    digest, _ = random_rows(4)
    first = save_listing(store.root, listing_of(digest, spaces=("aa",)))
    other_space = save_listing(store.root, listing_of(digest, spaces=("bb",)))
    latest = save_listing(store.root, listing_of(digest, spaces=("aa",)))
    other_dataset = save_listing(store.root, listing_of(digest, root="other", spaces=("aa",)))
    assert compact(store.root).listings == 0, "the time of grace is not over"
    assert compact(store.root, now=True).listings == 1
    assert [path.exists() for path in (first, other_space, latest, other_dataset)] == [False, True, True, True]


def test_float16_and_recipes_are_kept(tmp_path):
    from support import make_space

    space = make_space(dtype="float16")
    store = FeatureStore(tmp_path / "cache")
    store.prepare(space)
    digest, rows = random_rows(6)
    folder = store.space_folder(space.id)
    half = rows.astype(np.float16)
    for number in (1, 2):
        keys = Keys(digest, np.full(6, 7 + number, np.uint64), np.full(6, number, np.uint32))
        write_part(folder, space, keys, half, {str(7 + number): {"flip": number}})
    compact(store.root, now=True)
    (head,) = store.heads(space.id)
    assert head.recipes == {"8": {"flip": 1}, "9": {"flip": 2}}
    assert (head.keys.view == np.repeat([1, 2], 6)).all()
    np.testing.assert_array_equal(store.gather(space.id, head.keys), np.concatenate([half, half]).astype(np.float32))


def test_an_absent_cache_is_no_error(tmp_path):
    assert compact(tmp_path / "absent").parts_after == 0
    assert not (tmp_path / "absent").exists()


def test_the_last_complete_listing_stays_however_many_partial_ones_come(store, space):
    digest, rows = random_rows(10)
    add_rows(store, space, digest, rows)
    save_listing(store.root, listing_of(digest, spaces=(space.id,)))
    for _ in range(KEPT_PARTIAL + 2):
        save_listing(store.root, listing_of(digest[:3], spaces=(space.id,), request={"limit": 3}))
    assert compact(store.root, now=True).listings == 2
    assert compact(store.root, prune=True, now=True).pruned == 0


def test_a_merged_part_that_is_found_damaged_before_the_old_ones_go_gives_way_to_them(store, space, monkeypatch):
    digest, rows = random_rows(20)
    add_rows(store, space, digest[:10], rows[:10])
    add_rows(store, space, digest[10:], rows[10:])
    delete = module._Space._delete_superseded

    def after_damage(self, done):
        (head,) = self.store.heads(self.space_id)
        flip(head.path, head.path.read_bytes().index(rows[:10].tobytes()))
        delete(self, done)

    monkeypatch.setattr(module._Space, "_delete_superseded", after_damage)
    assert compact(store.root, now=True).deleted == 0
    np.testing.assert_array_equal(store.gather(space.id, Keys.plain(digest)), rows)


def test_a_merged_part_that_cannot_be_set_aside_hides_nothing(store, space, monkeypatch):
    digest, rows = random_rows(20)
    add_rows(store, space, digest[:10], rows[:10])
    add_rows(store, space, digest[10:], rows[10:])
    compact(store.root)
    (head,) = store.heads(space.id)
    flip(head.path, head.path.read_bytes().index(rows[:10].tobytes()))

    def refuse(*_arguments, **_options):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "replace", refuse)
    np.testing.assert_array_equal(store.gather(space.id, Keys.plain(digest)), rows)
