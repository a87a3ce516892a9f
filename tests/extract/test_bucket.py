"""Folders in a bucket: a real S3 server on loopback, and what goes wrong on the way to it."""

import os
import uuid
from pathlib import Path

import numpy as np
import pytest
from object_store import ObjectStore
from remote_pictures import SMALL, Gate, hold, upload

import headstart
from headstart.cache import remote
from headstart.cache.datasets import load_listing
from headstart.cache.source import Url, source_of
from headstart.errors import DataError, DataNotFoundError, UsageError
from headstart.extract.access import access_to
from headstart.extract.bucket import UNKNOWN_TIME, examined_all, read_object, stat_of_details, stat_of_object
from headstart.extract.images import list_images, list_paths
from headstart.extract.job import plan_extract

PICTURES = 36  # of `few`


def gets(store: ObjectStore) -> list[str]:
    """Return the paths of objects whose bytes were asked for."""
    return [path for method, path in store.faults.seen if method == "GET" and path.endswith(".jpg")]


@pytest.fixture
def photos(object_store: ObjectStore, few: Path) -> str:
    return upload(few, f"{object_store.root}/photos-{uuid.uuid4().hex}")  # the store outlives a test


def test_a_bucket_reads_as_the_folder_does(photos: str, few: Path) -> None:
    there, here = list_images(photos), list_images(few)
    assert (there.layout, there.classes, list(there.paths)) == (here.layout, here.classes, list(here.paths))
    assert there.label.tolist() == here.label.tolist() and there.split.tolist() == here.split.tolist()
    assert there.stat[:, 0].tolist() == here.stat[:, 0].tolist()
    assert str(there.root) == str(there.base) == photos and isinstance(there.root, Url)


def test_a_slash_at_the_end_and_capitals_in_the_scheme_name_the_same_dataset(photos: str) -> None:
    assert source_of(photos + "/") == source_of(photos) == source_of("S3" + photos[2:])
    with pytest.raises(UsageError, match="has lost a slash"):
        source_of(Path(photos))


def test_pictures_that_were_embedded_from_disk_cost_no_forward_pass_from_a_bucket(
    object_store: ObjectStore, photos: str, few: Path, tmp_path: Path
) -> None:
    here = headstart.extract(few, cache=tmp_path, **SMALL)
    there = headstart.extract(photos, cache=tmp_path, **SMALL)
    assert (here.embedded, there.embedded, there.reused) == (PICTURES, 0, PICTURES)
    assert np.array_equal(here.digest, there.digest)
    assert len(gets(object_store)) == PICTURES  # each in one request
    assert not any(method == "HEAD" for method, _ in object_store.faults.seen)
    assert there.paths[0] == f"{photos}/{os.fsdecode(here.listing.paths[0])}"


def test_a_warm_run_lists_once_and_reads_nothing(object_store: ObjectStore, photos: str, tmp_path: Path) -> None:
    first = headstart.extract(photos, cache=tmp_path, **SMALL)
    assert first.embedded == PICTURES
    object_store.faults.reset()
    again = headstart.extract(photos + "/", cache=tmp_path, **SMALL)
    assert (again.embedded, again.reused) == (0, PICTURES)
    assert object_store.faults.seen == [("GET", f"/{object_store.bucket}")]
    headstart.extract(photos, cache=tmp_path, rehash=True, **SMALL)
    assert len(gets(object_store)) == PICTURES


def test_what_was_replaced_is_read_again_and_nothing_else(
    object_store: ObjectStore, photos: str, few: Path, tmp_path: Path
) -> None:
    headstart.extract(photos, cache=tmp_path, **SMALL)
    names = [os.fsdecode(name) for name in list_images(photos).paths]
    remote.put(f"{photos}/{names[0]}", (few / names[1]).read_bytes())
    object_store.faults.reset()
    again = headstart.extract(photos, cache=tmp_path, **SMALL)
    assert gets(object_store) == [f"/{photos[5:]}/{names[0]}"]
    assert again.digest[0].tobytes() == again.digest[1].tobytes()


def test_keys_come_page_by_page(object_store: ObjectStore) -> None:
    for number in range(1200):
        hold(f"{object_store.root}/many/{'ab'[number % 2]}/{number:04d}.jpg", b"%d" % number)
    for name in ("a/.hidden.jpg", ".dir/x.jpg", "__MACOSX/x.jpg", "a/notes.txt", "a/"):
        hold(f"{object_store.root}/many/{name}", b"x")
    object_store.faults.reset()
    images = list_images(f"{object_store.root}/many")
    assert len(images.paths) == 1200 and images.classes == ("a", "b") and images.layout == "classes"
    assert len(object_store.faults.seen) == 2
    assert "ignored 1 files that are no images (.txt 1)" in images.notes
    assert len(set(images.stat[:, 3].tolist())) == 1200  # a mark of each one's content


@pytest.mark.parametrize("fault", ["refuse", "cut"])
def test_errors_that_pass_are_no_failures(
    object_store: ObjectStore, photos: str, tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.01)
    object_store.faults.reset(meets=lambda method, path: path.endswith(".jpg"), **{fault: 7})
    found = headstart.extract(photos, cache=tmp_path, **SMALL)
    assert (found.embedded, len(found.failures)) == (PICTURES, 0)
    assert object_store.faults.done == {fault: 7} and len(gets(object_store)) == PICTURES + 7


def test_an_object_that_stays_refused_is_a_failure_and_tried_again_next_time(
    object_store: ObjectStore, photos: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.01)
    refused = os.fsdecode(list_images(photos).paths[0])
    object_store.faults.reset(meets=lambda _, path: path.endswith(refused), refuse=10**6)
    found = headstart.extract(photos, cache=tmp_path, **SMALL)
    (path, reason), *others = found.failures
    assert path == f"{photos}/{refused}" and "given up after 6 tries" in reason and not others
    assert found.embedded == PICTURES - 1
    object_store.faults.reset()
    again = headstart.extract(photos, cache=tmp_path, **SMALL)
    assert (again.embedded, len(again.failures), len(gets(object_store))) == (1, 0, 1)


def test_an_object_that_goes_between_listing_and_reading_is_a_failure(object_store: ObjectStore, photos: str) -> None:
    images = list_images(photos)
    remote.filesystem("s3").rm_file(remote.key_of(f"{photos}/{os.fsdecode(images.paths[0])}"))
    access = access_to(os.fsencode(photos), images.paths, images.stat, np.arange(1))
    with pytest.raises(ValueError, match="not found"):
        access.read(0, images.paths[0])


@pytest.mark.parametrize("size", [10, 1_000_000])
def test_an_object_that_is_replaced_between_listing_and_reading_is_taken_as_it_is_now(
    object_store: ObjectStore, photos: str, size: int
) -> None:
    images = list_images(photos)
    url, listed = f"{photos}/{os.fsdecode(images.paths[0])}", tuple(images.stat[0].tolist())
    assert read_object(url, listed)[1] == listed
    remote.put(url, bytes(size))
    data, found = read_object(url, listed)
    assert data == bytes(size) and found == stat_of_object(url) != listed


def test_many_objects_are_read_at_a_time(object_store: ObjectStore, photos: str, tmp_path: Path) -> None:
    gate = Gate(24, ".jpg")
    object_store.faults.reset(meets=gate)
    found = headstart.extract(photos, cache=tmp_path, workers=2, **SMALL)
    assert found.embedded == PICTURES
    assert 24 <= gate.most <= 34  # 32, and the two that decode


def test_what_cannot_be_listed_is_one_line(
    object_store: ObjectStore, photos: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataNotFoundError, match="nothing is there: s3://elsewhere/x"):
        list_images("s3://elsewhere/x")
    with pytest.raises(DataNotFoundError, match="nothing is there"):
        list_images(f"{object_store.root}/nothing")
    remote.put(f"{object_store.root}/texts/a.txt", b"x")
    with pytest.raises(DataError, match=r"no images in s3://photographs/texts: .*\.txt 1"):
        list_images(f"{object_store.root}/texts")
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.001)
    object_store.faults.reset(refuse=10**6)
    with pytest.raises(DataError, match=r"cannot list or read s3://photographs/photos-.*given up.*AWS_ENDPOINT_URL"):
        list_images(photos)


def test_no_network_and_no_credentials_are_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.001)
    remote.filesystem.cache_clear()
    with pytest.raises(DataError, match=r"cannot list or read s3://b/x.*redentials"):
        list_images("s3://b/x")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "anything")
    remote.filesystem.cache_clear()
    with pytest.raises(DataError, match=r"cannot list or read s3://b/x.*given up"):
        list_images("s3://b/x")
    remote.filesystem.cache_clear()


def test_a_csv_may_mix_urls_and_paths(object_store: ObjectStore, photos: str, few: Path, tmp_path: Path) -> None:
    names = sorted(path.relative_to(few) for path in few.rglob("*.jpg"))
    table = tmp_path / "list.csv"
    lines = [f"{photos}/{names[0]},a", f"{few / names[1]},b", f"file://{few / names[2]},b", f"{photos}/gone.jpg,a"]
    table.write_text("path,label\n" + "\n".join(lines) + "\n")
    found = headstart.extract(table, cache=tmp_path / "cache", **SMALL)
    assert found.embedded == 3
    assert list(found.failures) == [(f"{photos}/gone.jpg", "not found")]
    assert set(found.paths) == {f"{photos}/{names[0]}", str(few / names[1]), str(few / names[2])}
    object_store.faults.reset()
    assert headstart.extract(table, cache=tmp_path / "cache", **SMALL).embedded == 0
    assert not gets(object_store)


def test_a_csv_in_a_bucket_names_what_lies_beside_it_and_nothing_of_this_machine(
    object_store: ObjectStore, photos: str, few: Path, tmp_path: Path
) -> None:
    names = sorted(str(path.relative_to(few)) for path in few.rglob("*.jpg"))
    text = "path,label,split\n" + "".join(f"{name},{name.split('/')[1]},{name.split('/')[0]}\n" for name in names)
    remote.put(f"{photos}/list.csv", text.encode())
    remote.put(f"{photos}/table", text.encode())
    for name in ("list.csv", "table"):
        images = list_images(f"{photos}/{name}")
        assert list(map(os.fsdecode, images.paths)) == names and images.layout == "csv" and not images.unreadable
    found = headstart.extract(f"{photos}/list.csv", cache=tmp_path, **SMALL)
    assert found.embedded == PICTURES and found.paths[0] == f"{photos}/{names[0]}"
    remote.put(f"{photos}/evil.csv", b"path,label\n/etc/passwd,a\n")
    with pytest.raises(DataError, match="line 2: /etc/passwd lies on this machine, and the CSV does not"):
        list_images(f"{photos}/evil.csv")
    remote.put(f"{photos}/evil.csv", b"path,label\nfile:///etc/passwd,a\n")
    with pytest.raises(DataError, match="lies on this machine"):
        list_images(f"{photos}/evil.csv")


def test_many_objects_of_one_folder_are_asked_for_by_listing_it(object_store: ObjectStore) -> None:
    urls = [f"{object_store.root}/flat/{number:03d}.jpg" for number in range(100)]
    for url in urls:
        hold(url, b"x")
    object_store.faults.reset()
    found = examined_all([*urls, f"{object_store.root}/flat/none.jpg"])
    assert [reason for _, reason in found] == [None] * 100 + ["not found"]
    assert len(object_store.faults.seen) < 10
    assert found[0] == (stat_of_object(urls[0]), None)  # a list and a single answer say the same


def test_objects_and_prefixes_can_be_named_one_by_one(photos: str, few: Path) -> None:
    names = sorted(path.relative_to(few) for path in few.rglob("*.jpg"))
    one = f"{photos}/{names[0]}"
    images = list_paths([one, f"{photos}/val", few / names[1]])
    assert os.fsencode(one) in images.paths and os.fsencode(few / names[1]) in images.paths
    assert len(images.paths) == 2 + len(list((few / "val").rglob("*.jpg")))
    with pytest.raises(DataNotFoundError, match="no such image"):
        list_paths([f"{photos}/none.jpg"])


def test_names_are_only_names_below_a_url(object_store: ObjectStore, few: Path, tmp_path: Path) -> None:
    """A key that looks like a path of this machine is read from the bucket alone."""
    picture = sorted(few.rglob("*.jpg"))[0]
    (tmp_path / "secret.jpg").write_bytes(picture.read_bytes())
    for name in (f"{tmp_path}/secret.jpg", "a..b/~secret.jpg", "a b/ü#?.jpg", "a//b.jpg", "http://127.0.0.1/x.jpg"):
        hold(f"{object_store.root}/odd/{name}", b"not a picture")
    images = list_images(f"{object_store.root}/odd", layout="flat")
    access = access_to(os.fsencode(str(images.base)), images.paths, images.stat, np.arange(len(images.paths)))
    assert len(images.paths) == 5
    read = {name: access.read(row, name)[0] for row, name in enumerate(images.paths) if row not in images.unreadable}
    assert len(read) == 4 and set(read.values()) == {b"not a picture"}
    assert set(images.unreadable.values()) == {"its name is a URL"}


@pytest.mark.parametrize(
    ("details", "scheme", "expected"),
    [
        ({"Size": 3, "LastModified": "2026-01-01T00:00:00.9Z", "ETag": '"a"'}, "s3", (3, 1767225600 * 10**9, 0)),
        ({"size": 3, "ETag": '"a"', "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"}, "https",
         (3, 1767225600 * 10**9, 1767225600 * 10**9)),
        ({"size": 3, "ETag": '"a"'}, "https", (3, 0, UNKNOWN_TIME)),
        ({"size": None}, "https", (-1, 0, UNKNOWN_TIME)),
        ({"size": 3, "updated": "2026-01-01T00:00:00.5Z", "generation": "7"}, "gs", (3, 1767225600 * 10**9, 0)),
    ],
)  # fmt: skip
def test_what_tells_an_unchanged_object(details: dict, scheme: str, expected: tuple) -> None:
    found = stat_of_details(details, scheme)
    assert found[:3] == expected and bool(found[3]) == (len(details) > 1)


def test_the_dataset_is_found_by_its_url(photos: str, tmp_path: Path) -> None:
    headstart.extract(photos, cache=tmp_path, **SMALL)
    listing = load_listing(tmp_path, source_of(photos + "/"))
    assert listing is not None and (listing.root, listing.source) == (photos, photos)
    dry = plan_extract(photos, cache=tmp_path, **SMALL)
    assert (dry.to_read, dry.missing, dry.reused) == (0, 0, PICTURES)


def test_pictures_one_by_one_may_be_urls(photos: str, few: Path, tmp_path: Path) -> None:
    embedding = headstart.FrozenBackbone(cache=tmp_path, **SMALL)
    files = sorted(few.rglob("*.jpg"))[:3]
    rows = embedding.fit_transform([f"{photos}/{path.relative_to(few)}" for path in files])
    assert np.array_equal(rows, embedding.transform(files))
