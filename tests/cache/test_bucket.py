"""The cache in a bucket of a real S3 server, and what may go wrong between the two."""

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from hypothesis import settings
from store_machine import StoreMachine

from headstart.cache import bucket, remote, storage
from headstart.cache.compact import compact
from headstart.cache.datasets import latest_listing
from headstart.cache.info import info
from headstart.cache.listing import save_listing
from headstart.cache.merge import merge
from headstart.cache.part import Keys, read_embeddings
from headstart.cache.place import RemotePath
from headstart.cache.reading import read_error
from headstart.cache.remove import remove
from headstart.cache.running import announced, running
from headstart.cache.store import FeatureStore, cache_dir
from headstart.cache.verify import verify
from headstart.errors import CacheError, CacheMissError, DamagedFileError, MissingExtraError
from support import add_rows, listing_of, make_space, random_rows


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch, tmp_path):
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.005)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))  # where runs are announced


@pytest.fixture
def root(object_store):
    return cache_dir(f"{object_store.root}/some/cache")


@pytest.fixture
def store(root):
    return FeatureStore(root)


def changed(place, change):
    """Write an object anew with other bytes, as a fault of the store would."""
    remote.put(str(place), change(bytearray(storage.read_whole(place))))


def flipped(position):
    def change(data):
        data[position] ^= 16
        return bytes(data)

    return change


def two_parts(store, space, count=40):
    digest, rows = random_rows(count)
    add_rows(store, space, digest[: count // 2], rows[: count // 2])
    add_rows(store, space, digest[count // 2 :], rows[count // 2 :])
    return digest, rows


def test_rows_come_back_in_the_callers_order(store, space):
    digest, rows = two_parts(store, space)
    order = np.random.default_rng(2).permutation(40)
    np.testing.assert_array_equal(FeatureStore(store.root).gather(space.id, Keys.plain(digest[order])), rows[order])
    found = {
        key: row
        for where, block in store.blocks(space.id, Keys.plain(digest))
        for key, row in zip(where, block, strict=True)
    }
    np.testing.assert_array_equal([found[key] for key in range(40)], rows)


def test_an_absent_cache_has_nothing_and_is_no_error(store, space):
    assert store.parts(space.id) == [] and store.spaces() == {} and info(store.root).spaces == ()
    assert (verify(store.root).parts, compact(store.root).rows, latest_listing(store.root)) == (0, 0, None)
    with pytest.raises(CacheMissError):
        store.gather(space.id, Keys.plain(random_rows(1)[0]))


def test_publishing_is_one_put_of_the_final_name_and_nothing_else_is_written(store, space, object_store):
    two_parts(store, space)
    save_listing(store.root, listing_of(random_rows(2)[0]))
    put = [path for method, path in object_store.faults.seen if method == "PUT"]
    assert {path.rpartition("/")[2] for path in put if not path.endswith(".h5")} == {".probe", "space.json"}
    assert len([path for path in put if path.endswith(".h5")]) == 3
    assert not [method for method, _ in object_store.faults.seen if method in ("DELETE", "POST")]


def test_a_warm_reader_asks_twice_a_part_and_a_page_a_thousand(store, space, object_store):
    digest, rows = random_rows(60)
    for start in range(0, 60, 5):
        add_rows(store, space, digest[start : start + 5], rows[start : start + 5])
    object_store.faults.reset()
    fresh = FeatureStore(store.root)
    index, _ = fresh.index(space.id)
    assert len(index) == 60 and len(object_store.faults.seen) == 12 * 2 + 1
    fresh.index(space.id)
    assert len(object_store.faults.seen) == 12 * 2 + 2, "what parts say of themselves is asked once"


@pytest.mark.parametrize(
    ("method", "what"), [("PUT", ".h5"), ("PUT", "space.json"), ("GET", ".h5"), ("GET", "/photographs")]
)
def test_refusals_that_pass_are_waited_for(store, space, object_store, method, what):
    object_store.faults.reset(meets=lambda asked, path: asked == method and path.endswith(what), refuse=4)
    digest, rows = two_parts(store, space)
    np.testing.assert_array_equal(FeatureStore(store.root).gather(space.id, Keys.plain(digest)), rows)
    assert object_store.faults.done == {"refuse": 4}


def test_slow_answers_are_waited_for_at_the_same_time(store, space, object_store):
    digest, rows = random_rows(64)
    for start in range(0, 64, 4):
        add_rows(store, space, digest[start : start + 4], rows[start : start + 4])
    object_store.faults.reset(wait=0.2, meets=lambda method, path: path.endswith(".h5"))
    begin = time.monotonic()
    assert len(FeatureStore(store.root).index(space.id)[0]) == 64
    assert 0.4 <= time.monotonic() - begin < 3.2, "32 requests of 0.2 s each"


def test_a_cut_connection_costs_a_range_and_is_no_damage(store, space, object_store, monkeypatch, caplog):
    monkeypatch.setattr(bucket, "RANGE", 1 << 16)
    wide = make_space(dim=512)
    digest, rows = random_rows(300, dim=512)
    add_rows(store, wide, digest, rows)
    object_store.faults.reset(meets=lambda method, path: path.endswith(".h5"), cut=5)
    fresh = FeatureStore(store.root)
    np.testing.assert_array_equal(fresh.gather(wide.id, Keys.plain(digest)), rows)
    assert object_store.faults.done == {"cut": 5}
    (part,) = fresh.parts(wide.id)
    ranges = -(-part.size // (1 << 16))
    gets = [path for method, path in object_store.faults.seen if method == "GET" and path.endswith(".h5")]
    assert ranges > 5 and len(gets) <= 3 + ranges + 5
    assert not caplog.records and "quarantine" not in storage.folders(store.root)


def test_reading_takes_the_memory_of_two_ranges(store, object_store, monkeypatch):
    monkeypatch.setattr(bucket, "RANGE", 1 << 16)
    place = store.root / "object"
    data = np.random.default_rng(0).bytes(1_000_000)
    storage.publish(place, data)
    held, real = [], bucket.read
    monkeypatch.setattr(bucket, "read", lambda *range: held.append(range[1:]) or real(*range))
    with storage.open_file(place) as file:
        first = file.read(10)
        time.sleep(0.2)
        assert held == [(0, 65_536), (65_536, 131_072)], "the range that is read, and the next"
        assert first + file.read(2_000_000) == data
        assert (file.seek(-5, 2), file.read(50)) == (999_995, data[-5:])
        assert file.read(1) == b""


def test_more_parts_than_a_page_holds_are_all_listed_in_order(store, space, object_store):
    names = [f"{number:014x}{'0' * 10}-{'a' * 32}.h5" for number in range(1100)]
    folder = store.space_folder(space.id)
    for name in reversed(names):
        object_store.hold(str(folder / name), b"x")
    assert [part.name for part in store.parts(space.id)] == names
    assert len(object_store.faults.seen) == 2, "of 1,000 names each"


def test_a_flipped_byte_sets_the_part_aside_and_loses_only_its_rows(store, space, caplog):
    digest, rows = two_parts(store, space)
    victim = store.parts(space.id)[1]
    changed(victim, lambda data: flipped(bytes(data).index(rows[20:].tobytes()) + 5)(data))
    with pytest.raises(CacheMissError, match="lacks 20 of 40"):
        store.gather(space.id, Keys.plain(digest))
    assert [place.name for place in storage.files(store.root / "quarantine", ".h5")] == [victim.name]
    assert f"moved to {store.root}/quarantine/{victim.name}" in caplog.text
    np.testing.assert_array_equal(store.gather(space.id, Keys.plain(digest[:20])), rows[:20])
    add_rows(store, space, digest[20:], rows[20:])
    np.testing.assert_array_equal(store.gather(space.id, Keys.plain(digest)), rows)


@pytest.mark.parametrize("change", [lambda data: bytes(data[:700]), lambda _: b"", flipped(700), flipped(30)])
def test_an_object_cut_short_empty_or_with_a_bad_header_is_damaged(store, space, change, object_store):
    two_parts(store, space)
    changed(store.parts(space.id)[0], change)
    fresh = FeatureStore(store.root)
    assert len(fresh.index(space.id)[0]) == 20
    assert info(store.root).quarantined == 1


def test_an_object_that_was_cut_short_since_it_was_listed_is_damaged_too(store, space):
    digest, rows = two_parts(store, space)
    fresh = FeatureStore(store.root)
    first, _ = fresh.parts(space.id)
    fresh.index(space.id)
    changed(first, lambda data: bytes(data[: len(data) // 2]))
    with pytest.raises(DamagedFileError, match="bytes where"):
        read_embeddings(first)
    with pytest.raises(CacheMissError, match="lacks 20 of 40"):
        fresh.gather(space.id, Keys.plain(digest))
    assert info(store.root).quarantined == 1
    np.testing.assert_array_equal(fresh.gather(space.id, Keys.plain(digest[20:])), rows[20:])


def test_damage_that_is_gone_at_the_second_look_is_none(store, space, object_store, monkeypatch):
    digest, rows = two_parts(store, space)
    real, spoilt = bucket.read, []

    def spoils_once(place, start=0, stop=None):
        data = real(place, start, stop)
        if place.name.endswith(".h5") and place.name not in spoilt:
            spoilt.append(place.name)
            return flipped(len(data) // 2)(bytearray(data))
        return data

    monkeypatch.setattr(bucket, "read", spoils_once)
    np.testing.assert_array_equal(FeatureStore(store.root).gather(space.id, Keys.plain(digest)), rows)
    assert len(spoilt) == 2 and info(store.root).quarantined == 0


def test_where_nothing_may_be_moved_damage_is_passed_over(store, space, object_store, caplog):
    digest, rows = two_parts(store, space)
    changed(store.parts(space.id)[0], flipped(700))
    object_store.faults.reset(meets=lambda method, path: method in ("PUT", "DELETE"), forbid="AccessDenied")
    fresh = FeatureStore(store.root)
    for _ in range(2):
        np.testing.assert_array_equal(fresh.gather(space.id, Keys.plain(digest[20:])), rows[20:])
    assert len(fresh.parts(space.id)) == 2 and caplog.text.count("passed over, for it cannot be set aside") == 1
    with pytest.raises(CacheError, match=r"no permission to write s3://photographs/some/cache/\.probe"):
        fresh.prepare(space)


def test_parts_that_go_while_they_are_read_are_listed_again(store, space, monkeypatch):
    digest, rows = two_parts(store, space)
    fresh, real, compacted = FeatureStore(store.root), storage.open_file, []
    fresh.index(space.id)

    def slow(place, *span):
        if place.name.endswith(".h5") and not compacted:
            compacted.append(True)
            compact(store.root, now=True)
        return real(place, *span)

    monkeypatch.setattr("headstart.cache.block.open_file", slow)
    np.testing.assert_array_equal(fresh.gather(space.id, Keys.plain(digest)), rows)
    assert compacted and len(fresh.parts(space.id)) == 1


WRITER = """
import sys
from store_machine import StoreMachine
from support import add_rows, make_space, random_rows
from headstart.cache.store import FeatureStore, cache_dir
store, space = FeatureStore(cache_dir(sys.argv[1])), make_space(dim=4096)
digest, rows = random_rows(900, dim=4096)
for start in (0, 300, 600):
    add_rows(store, space, digest[start : start + 300], rows[start : start + 300])
    print(start + 300, flush=True)
"""


def test_a_writer_killed_in_the_middle_of_a_put_leaves_nothing_of_it(store, object_store):
    space = make_space(dim=4096)
    parts = []  # that were begun to be put

    def meets(method, path):
        if method == "PUT" and path.endswith(".h5"):
            parts.append(path)
            return len(parts) == 2
        return False

    object_store.faults.reset(meets=meets, wait=1)
    path = os.pathsep.join(sys.path)
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(store.root)], env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE
    )
    deadline = time.monotonic() + 60
    while len(parts) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)  # the first bytes of the body are on their way
    assert process.poll() is None
    process.kill()
    assert process.wait() == -signal.SIGKILL and process.stdout.read() == b"300\n"
    time.sleep(1.2)  # the server has found out
    digest, rows = random_rows(900, dim=4096)
    index, _ = store.index(space.id)
    assert (index.find(Keys.plain(digest)) >= 0).tolist() == [True] * 300 + [False] * 600
    assert verify(store.root).bad == [] and len(bucket.everything(store.root)) == 3, ".probe, space.json and a part"
    add_rows(store, space, digest[300:], rows[300:])
    np.testing.assert_array_equal(store.gather(space.id, Keys.plain(digest)), rows)


def test_writers_at_once_lose_nothing(root, space, monkeypatch):
    monkeypatch.setenv("HEADSTART_PART_SECONDS", "0.0001")
    digest, rows = random_rows(120)

    def work(seed):
        store = FeatureStore(root)
        store.prepare(space)
        order = np.random.default_rng(seed).permutation(120)[:100]
        with store.writer(space) as writer:
            for start in range(0, 100, 20):
                writer.add(Keys.plain(digest[order[start : start + 20]]), rows[order[start : start + 20]])

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(FeatureStore(root).gather(space.id, Keys.plain(digest)), rows)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("AccessDenied", "no permission to read s3://photographs/some/cache/spaces (This is not for you.)"),
        ("InvalidAccessKeyId", "s3://photographs does not accept the credentials that it was given"),
        ("SignatureDoesNotMatch", "s3://photographs does not accept the credentials that it was given"),
    ],
)
def test_a_store_that_says_no_is_not_asked_again(store, object_store, code, said):
    object_store.faults.reset(forbid=code)
    with pytest.raises(CacheError) as caught:
        store.space_ids()
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert len(object_store.faults.seen) == 1


def test_what_a_store_said_is_kept_as_the_cause(store):
    said, told = PermissionError("not for you"), CacheError("no permission to read s3://there")
    told.__cause__, told.errno = said, 13
    with pytest.raises(CacheError, match="no permission") as caught:
        raise read_error(told, store.root) from told
    assert caught.value.errno == 13
    assert caught.value.__cause__ is told and told.__cause__ is said


def test_a_bucket_that_is_not_there_is_named_by_readers_and_writers(object_store, space):
    store = FeatureStore(cache_dir("s3://nowhere/cache"))
    for use in (store.space_ids, lambda: store.prepare(space), lambda: info(store.root), lambda: store.space(space.id)):
        with pytest.raises(CacheError, match=r"there is no bucket s3://nowhere: make it, or pass --cache"):
            use()


def test_credentials_that_are_missing_are_asked_for(store, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    remote.filesystem.cache_clear()
    with pytest.raises(CacheError, match=r"nothing says who wants to use s3://photographs .*: set AWS_PROFILE, or"):
        store.space_ids()


def test_a_store_that_is_not_there_is_told_from_one_that_refuses(store, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # where nobody listens
    remote.filesystem.cache_clear()
    with pytest.raises(CacheError, match=r"cannot reach the store of s3://photographs .*: check the network"):
        store.space_ids()


def test_a_store_that_goes_away_says_how_many_images_are_safe(store, space, object_store, monkeypatch):
    digest, rows = random_rows(4)
    store.prepare(space)
    said = pytest.raises(CacheError, match=r"cannot write s3://.* \(Please reduce .*\): 2 images are safe, run again")
    with said, store.writer(space) as writer:
        writer.add(Keys.plain(digest[:2]), rows[:2])
        writer.flush()
        object_store.faults.reset(refuse=1000, meets=lambda method, path: method == "PUT")
        writer.add(Keys.plain(digest[2:]), rows[2:])
    object_store.faults.reset()
    np.testing.assert_array_equal(store.gather(space.id, Keys.plain(digest[:2])), rows[:2])


def test_the_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(MissingExtraError, match=r'run `pip install "headstart\[gs\]"`'):
        FeatureStore(cache_dir("gs://bucket/cache")).space_ids()


def test_compact_merges_reads_back_and_deletes_by_the_clock_of_the_store(store, space, object_store, monkeypatch):
    digest, rows = two_parts(store, space)
    old = {part.name for part in store.parts(space.id)}
    first = compact(store.root)
    assert (first.parts_before, first.parts_after, first.rows, first.waiting) == (2, 1, 40, 2)
    assert len(store.parts(space.id)) == 3
    assert compact(store.root).deleted == 0
    monkeypatch.setattr("headstart.cache.compact.time_at", lambda root: bucket.time_at(root) + 601)
    assert compact(store.root).deleted == 2
    assert not old & {part.name for part in store.parts(space.id)}
    np.testing.assert_array_equal(FeatureStore(store.root).gather(space.id, Keys.plain(digest)), rows)


def test_a_merged_part_that_comes_back_with_other_bytes_deletes_nothing(store, space, monkeypatch):
    digest, rows = two_parts(store, space)
    monkeypatch.setattr("headstart.cache.compact._forget_cached", lambda path: changed(path, flipped(-3)))
    with pytest.raises(CacheError, match="gave other bytes back than were written"):
        compact(store.root, now=True)
    assert len(store.parts(space.id)) == 2
    np.testing.assert_array_equal(store.gather(space.id, Keys.plain(digest)), rows)


def test_pruning_spares_what_was_written_today_for_nobody_knows_who_runs(store, space, monkeypatch):
    digest, rows = random_rows(10)
    add_rows(store, space, digest, rows)
    save_listing(store.root, listing_of(digest[:6]))
    done = compact(store.root, prune=True)
    assert (done.pruned, done.spared) == (0, 4) and "a day after their writing" in " ".join(done.lines())
    monkeypatch.setattr("headstart.cache.compact.time_at", lambda root: bucket.time_at(root) + 90_000)
    assert compact(store.root, prune=True).pruned == 4


def test_runs_of_this_machine_are_announced_here_and_in_no_bucket(root, object_store):
    with running(root) as descriptor:
        assert descriptor is not None and [alive for _, alive in announced(root)] == [True]
        assert not list(announced(cache_dir("s3://photographs/other")))
    assert not list(announced(root)) and object_store.faults.seen == []


def test_there_and_back(store, space, tmp_path):
    digest, rows = two_parts(store, space)
    save_listing(store.root, listing_of(digest))
    here, back = tmp_path / "cache", cache_dir("s3://photographs/back")
    assert merge(here, store.root).rows == merge(back, here).rows == 40
    assert merge(here, store.root).known == 40
    for place in (here, back):
        np.testing.assert_array_equal(FeatureStore(place).gather(space.id, Keys.plain(digest)), rows)
        assert latest_listing(place).says_the_same(latest_listing(store.root))


def test_the_files_of_a_folder_are_the_objects_of_a_bucket(tmp_path, space, root):
    here = FeatureStore(tmp_path / "cache")
    digest, rows = two_parts(here, space)
    save_listing(here.root, listing_of(digest))
    for path in here.root.rglob("*"):  # as `aws s3 sync` does it
        if path.is_file():
            remote.put(f"{root}/{path.relative_to(here.root)}", path.read_bytes())
    np.testing.assert_array_equal(FeatureStore(root).gather(space.id, Keys.plain(digest)), rows)
    assert (info(root).problems, verify(root).bad) == ((), [])
    assert latest_listing(root).says_the_same(latest_listing(here.root))


def test_a_whole_bucket_may_be_a_cache(object_store, space):
    store = FeatureStore(cache_dir(object_store.root))
    digest, rows = two_parts(store, space)
    assert compact(store.root, now=True).parts_after == 1 and store.space_ids() == [space.id]
    np.testing.assert_array_equal(store.gather(space.id, Keys.plain(digest)), rows)


def test_what_is_no_cache_is_left_alone(root):
    remote.put(f"{root}/thesis.tex", b"mine")
    for call in (compact, lambda place: merge(cache_dir("s3://photographs/other"), place)):
        with pytest.raises(CacheMissError, match="is no cache of headstart"):
            call(root)
    assert storage.read_whole(root / "thesis.tex") == b"mine"


def test_a_space_and_a_dataset_are_removed_and_no_more(store, space, object_store):
    digest, _ = two_parts(store, space)
    other = make_space(dim=2)
    add_rows(store, other, *random_rows(3, dim=2))
    listing = listing_of(digest)
    save_listing(store.root, listing)
    assert remove(store.root, space=space.id).count == 40
    assert store.space_ids() == [other.id] and store.parts(space.id) == []
    assert remove(store.root, dataset=listing.dataset_id).count == 1
    assert latest_listing(store.root) is None and len(store.parts(other.id)) == 1
    deleted = [path.rpartition("/")[2] for method, path in object_store.faults.seen if method == "DELETE"]
    assert deleted.index("space.json") == 2, "what describes the parts goes after them"


class BucketMachine(StoreMachine):
    """The same, in a bucket that all examples share, each under a prefix of its own."""

    number = 0

    def make_store(self):
        BucketMachine.number += 1
        return FeatureStore(RemotePath(f"s3://photographs/{BucketMachine.number}"))

    def flip(self, path, where):
        changed(path, flipped(int(where * storage.size_of(path))))

    def exists(self, path):
        return path in self.store.parts(self.space.id)


@pytest.mark.usefixtures("object_store")
class TestBucketMachine(BucketMachine.TestCase):
    settings = settings(max_examples=5, stateful_step_count=6, deadline=None)
