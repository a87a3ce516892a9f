"""Tars of pictures as DATA: webdataset's layout, on this machine and in a bucket, whole and broken."""

import io
import os
import tarfile
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from object_store import ObjectStore
from remote_pictures import SMALL, Gate, hold
from tar_files import Entry, samples_of, tar_of, write_tar

import headstart
from headstart.cache import remote
from headstart.errors import DataError, DataNotFoundError
from headstart.extract import access, tars
from headstart.extract.access import access_to, in_order_of_bytes, read_anywhere
from headstart.extract.images import ImageList, list_images, list_paths
from headstart.extract.job import plan_extract
from headstart.extract.tar_index import read_index
from headstart.extract.tars import expanded


def pictures(few: Path, split: str) -> list[Path]:
    return sorted((few / split).rglob("*.jpg"))


def shards_of(few: Path) -> dict[str, bytes]:
    """Pack 24 photographs to train on into two shards, and 12 to validate into one."""
    train, val = pictures(few, "train"), pictures(few, "val")
    halves = {"train-0000.tar": train[::2], "train-0001.tar": train[1::2], "val-0000.tar": val}
    return {name: tar_of(samples_of(paths)) for name, paths in halves.items()}


@pytest.fixture
def shards(few: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "shards"
    folder.mkdir()
    for name, content in shards_of(few).items():
        (folder / name).write_bytes(content)
        os.utime(folder / name, (1_700_000_000, 1_700_000_000))
    return folder


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let files that were written a moment ago be old enough to be believed."""
    monkeypatch.setattr("headstart.cache.listing.RACY_NS", 0)


def counts(images: ImageList) -> dict[tuple[str, int], int]:
    names = [images.classes[label] if label >= 0 else "" for label in images.label.tolist()]
    found: dict[tuple[str, int], int] = {}
    for key in zip(names, images.split.tolist(), strict=True):
        found[key] = found.get(key, 0) + 1
    return found


def contents(images: ImageList) -> dict[bytes, bytes]:
    """Read all images that can be read, in the order of their bytes."""
    todo = np.setdiff1d(np.arange(len(images.paths)), images.unreadable.rows)
    todo = in_order_of_bytes(images.paths, images.stat, todo)
    reader = access_to(os.fsencode(str(images.base)), images.paths, images.stat, todo)
    return {images.paths[row]: reader.read(row, images.paths[row])[0] for row in todo.tolist()}


def listed(tmp_path: Path, entries: list[Entry], name: str = "one.tar", **options: object) -> ImageList:
    return list_images(write_tar(tmp_path / name, entries, **options))


# What is in them


@pytest.mark.parametrize("data", ["", "{train,val}-{0000..0001}.tar"])
def test_samples_have_their_class_and_the_split_of_their_tar(shards: Path, data: str) -> None:
    if data:
        (shards / "val-0001.tar").write_bytes((shards / "val-0000.tar").read_bytes())
    images = list_images(shards / data if data else shards)
    val = 12 if data else 6
    assert images.layout == "splits" and images.classes == ("ants", "bees")
    assert counts(images) == {("ants", 1): 12, ("bees", 1): 12, ("ants", 2): val, ("bees", 2): val}
    assert images.paths[0] == b"train-0000.tar/000000.jpg" and images.paths.ascends()
    assert images.base == shards


def test_a_tar_that_is_not_there_is_named(shards: Path) -> None:
    with pytest.raises(DataNotFoundError, match=r"no such tar: .*/train-0002\.tar; check the name and the braces"):
        list_images(shards / "train-{0000..0003}.tar")


def test_members_are_the_very_files(few: Path, shards: Path) -> None:
    images = list_images(shards)
    assert sorted(contents(images).values()) == sorted(path.read_bytes() for path in few.rglob("*.jpg"))


def test_one_tar_and_webdataset_agree(few: Path, shards: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    for name in ("train-0000.tar", "val-0000.tar"):
        theirs = {
            (sample["__key__"], sample["cls"].decode(), sample["jpg"])
            for sample in webdataset.WebDataset(str(shards / name), shardshuffle=False)
        }
        images = list_images(shards / name)
        read = contents(images)
        ours = {
            (os.fsdecode(path).split("/", 1)[1].removesuffix(".jpg"), images.classes[label], read[path])
            for path, label in zip(images.paths, images.label.tolist(), strict=True)
        }
        assert ours == theirs


def test_what_webdataset_writes_is_read(few: Path, tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    with webdataset.TarWriter(str(tmp_path / "written.tar")) as writer:
        for number, path in enumerate(pictures(few, "val")):
            writer.write({"__key__": f"a/{number}", "jpg": path.read_bytes(), "cls": number % 3, "json": {"x": 1}})
    images = list_images(tmp_path / "written.tar")
    assert images.classes == ("0", "1", "2") and counts(images) == {(name, 0): 4 for name in "012"}


LABELS: list[tuple[list[Entry], dict[str, str]]] = [
    ([("a.jpg", b"x"), ("a.cls", b"7\n"), ("b.JPG", b"x"), ("b.cls", b" cat ")], {"a.jpg": "7", "b.JPG": "cat"}),
    ([("a.cls", b"1"), ("a.left.png", b"x"), ("a.right.png", b"x")], {"a.left.png": "1", "a.right.png": "1"}),
    ([("a.jpg", b"x"), ("a.json", b'{"label": 3}')], {"a.jpg": "3"}),
    ([("a.jpg", b"x"), ("a.json", b'{"label": "n/a"}'), ("b.jpg", b"x"), ("b.json", b'{"label": "n!"}')],
     {"a.jpg": "n/a", "b.jpg": "n!"}),
    ([("a.jpg", b"x"), ("a.json", b'{"label": 3}'), ("a.cls", b"4")], {"a.jpg": "4"}),
    ([("x/a.jpg", b"x"), ("y/a.jpg", b"x"), ("x/a.cls", b"1"), ("y/a.cls", b"2")], {"x/a.jpg": "1", "y/a.jpg": "2"}),
    ([("./cat/1.jpg", b"x"), ("./dog/2.v1.jpg", b"x")], {"cat/1.jpg": "cat", "dog/2.v1.jpg": "dog"}),
    ([("a.jpg", b"x"), ("a.txt", b"a caption"), ("a.json", b"[1]")], {"a.jpg": ""}),
    ([("a.jpg", b"x"), ("a.json", b"{" * 100_000)], {"a.jpg": ""}),
]  # fmt: skip


@pytest.mark.parametrize(("entries", "expected"), LABELS)
def test_where_labels_come_from(tmp_path: Path, entries: list[Entry], expected: dict[str, str]) -> None:
    images = listed(tmp_path, entries)
    names = [images.classes[label] if label >= 0 else "" for label in images.label.tolist()]
    found = {os.fsdecode(path).split("/", 1)[1]: name for path, name in zip(images.paths, names, strict=True)}
    assert found == expected
    assert list(images.classes) == sorted(images.classes)


def test_folders_inside_a_tar_are_read_as_folders_are(few: Path, tmp_path: Path) -> None:
    files = sorted(few.rglob("*.jpg"))
    images = listed(tmp_path, [(str(path.relative_to(few)), path.read_bytes()) for path in files])
    here = list_images(few)
    assert (images.layout, images.classes) == (here.layout, here.classes) == ("splits", ("ants", "bees"))
    assert images.label.tolist() == here.label.tolist() and images.split.tolist() == here.split.tolist()


def test_tars_in_split_folders(few: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_tar(tmp_path / "data" / split / "0.tar", samples_of(pictures(few, split)))
    images = list_images(tmp_path / "data")
    assert counts(images) == {("ants", 1): 12, ("bees", 1): 12, ("ants", 2): 6, ("bees", 2): 6}
    assert images.paths[0].startswith(b"train/0.tar/")
    assert list_images(tmp_path / "data", layout="classes").split.any() == False  # noqa: E712


def test_a_folder_with_pictures_is_a_folder_of_pictures(few: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    write_tar(tmp_path / "b.tar", [("c.jpg", b"x")])
    images = list_images(tmp_path)
    assert list(images.paths) == [b"a.jpg"] and "ignored 1 files that are no images (.tar 1)" in images.notes


@pytest.mark.parametrize(
    ("text", "count", "first", "last"),
    [
        ("a-{0000..0129}.tar", 130, "a-0000.tar", "a-0129.tar"),
        ("a-{8..11}.tar", 4, "a-8.tar", "a-11.tar"),
        ("{x,y}/{0..1}.tar", 4, "x/0.tar", "y/1.tar"),
        ("{x}.tar", 1, "{x}.tar", "{x}.tar"),
        ("a-{2..0}.tar", 3, "a-2.tar", "a-0.tar"),
    ],
)
def test_braces(text: str, count: int, first: str, last: str) -> None:
    found = expanded(text)
    assert (len(found), found[0], found[-1]) == (count, first, last)


def test_braces_without_end_are_refused(tmp_path: Path) -> None:
    for text in ("a-{0..99999999}.tar", "{0..999}{0..999}.tar"):
        with pytest.raises(DataError, match="more than 100000 tars"):
            list_images(tmp_path / text)


# Broken ones


def test_names_of_any_bytes_are_only_names(tmp_path: Path) -> None:
    names: list[str | bytes] = [
        "a\nb/1.jpg",
        b"\xff\xfe/2.jpg",
        "/etc/3.jpg",
        "a/../../4.jpg",
        "x" * 300 + "/5.jpg",
        ".6.jpg",
    ]
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        images = listed(tmp_path, [(name, b"%d" % place) for place, name in enumerate(names)], format=form)
        found = contents(images)
        assert found == {
            b"one.tar/a\nb/1.jpg": b"0", b"one.tar/\xff\xfe/2.jpg": b"1", b"one.tar//etc/3.jpg": b"2",
            b"one.tar/a/../../4.jpg": b"3", b"one.tar/" + b"x" * 300 + b"/5.jpg": b"4",
        }  # fmt: skip
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.tar"]


def test_a_tar_that_was_cut_off_is_a_failure_and_what_came_before_is_used(few: Path, tmp_path: Path) -> None:
    whole = tar_of(samples_of(pictures(few, "val")))
    for size in (len(whole) // 2, 512 * 3 + 100, 512, 511):
        (tmp_path / "cut.tar").write_bytes(whole[:size])
        images = list_images(tmp_path / "cut.tar")
        reasons = {images.paths[row]: reason for row, reason in images.unreadable.items()}
        assert b"cut.tar" in reasons
        assert "cut off" in reasons[b"cut.tar"] or "no tar" in reasons[b"cut.tar"]
        for path, data in contents(images).items():
            assert data == next(
                content for name, content in samples_of(pictures(few, "val")) if path.endswith(os.fsencode(name))
            )
    half = tmp_path / "half.tar"
    half.write_bytes(whole[: len(whole) // 2])
    found = headstart.extract(half, cache=tmp_path / "cache", **SMALL)
    assert 0 < found.embedded < 12
    assert {reason.split(":")[0].split(" at")[0] for _, reason in found.failures} == {"cut off"}
    again = headstart.extract(half, cache=tmp_path / "cache", **SMALL)
    assert list(again.failures) == list(found.failures)


def test_a_tar_with_a_damaged_header(few: Path, tmp_path: Path) -> None:
    entries = samples_of(pictures(few, "val"), labelled=False)
    whole = bytearray(tar_of(entries))
    place = whole.index(b"000006.jpg")
    whole[place : place + 100] = bytes(range(100, 200))
    (tmp_path / "one.tar").write_bytes(whole)
    images = list_images(tmp_path / "one.tar")
    assert len(contents(images)) == 6
    assert list(images.unreadable.values()) == [f"damaged at byte {place}: no header of a member"]


def test_a_tar_without_the_mark_of_its_end(few: Path, tmp_path: Path) -> None:
    whole = tar_of([("a.jpg", bytes(512))])
    (tmp_path / "one.tar").write_bytes(whole[:1024])
    images = list_images(tmp_path / "one.tar")
    assert list(images.unreadable.values()) == ["cut off: it ends at byte 1024 without the mark of an end"]


def test_links_holes_and_empty_members_are_failures_each(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "one.tar", "w") as tar:
        for name, kind in (("a.jpg", tarfile.SYMTYPE), ("b.jpg", tarfile.LNKTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        tar.addfile(tarfile.TarInfo("c.jpg"))
        info = tarfile.TarInfo("d.jpg")
        info.type = tarfile.FIFOTYPE
        tar.addfile(info)
        info = tarfile.TarInfo("e.jpg")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"xyz"))
    images = list_images(tmp_path / "one.tar")
    reasons = {images.paths[row]: reason for row, reason in images.unreadable.items()}
    assert reasons == dict.fromkeys([b"one.tar/a.jpg", b"one.tar/b.jpg"], "a link inside its tar, to /etc/passwd")
    reader = access_to(os.fsencode(tmp_path), images.paths, images.stat, np.arange(len(images.paths)))
    with pytest.raises(ValueError, match="empty file"):
        reader.read(2, b"one.tar/c.jpg")
    assert reader.read(3, b"one.tar/e.jpg")[0] == b"xyz"


def test_a_name_that_comes_twice_is_taken_once(tmp_path: Path) -> None:
    images = listed(tmp_path, [("a.jpg", b"first"), ("a.jpg", b"second")])
    assert contents(images) == {b"one.tar/a.jpg": b"first"}
    assert "1 members of tars with the name of an earlier one: left out" in images.notes


@pytest.mark.parametrize("name", ["one.tar.gz", "one.tgz", "one.tar.zst"])
def test_compressed_tars_are_refused_in_a_line(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x1f\x8b")
    with pytest.raises(DataError, match=r"is a compressed tar, .*uncompress it"):
        list_images(tmp_path / name)


def test_what_is_named_like_a_tar_and_is_none(tmp_path: Path) -> None:
    for content, reason in ((b"\x1f\x8b\x08" + bytes(600), "compressed with gzip"), (b"", "empty file"),
                            (b"x" * 2000, "no tar"), (bytes(1024), "no images")):  # fmt: skip
        (tmp_path / "one.tar").write_bytes(content)
        try:
            images = list_images(tmp_path / "one.tar")
            assert list(images.paths) == [b"one.tar"] and reason in images.unreadable[0]
        except DataError as error:
            assert reason in str(error)


def test_headers_that_lead_back_end_the_walk() -> None:
    info = tarfile.TarInfo("a.jpg")
    info.size = 3
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\xff" * 8 + (-1024).to_bytes(4, "big", signed=True)  # a size below zero
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header[:512])
    begin = time.monotonic()
    index = read_index(io.BytesIO(bytes(header) + bytes(2048)), 512 + 2048)
    assert time.monotonic() - begin < 1 and index.damage


@pytest.mark.parametrize("seed", range(30))
def test_flipped_bytes_never_hang_or_crash(seed: int, few: Path) -> None:
    rng = np.random.default_rng(seed)
    whole = bytearray(tar_of([(f"{number}.jpg", b"x" * 700) for number in range(8)], format=tarfile.PAX_FORMAT))
    for place in rng.integers(0, len(whole), 6):
        whole[place] = rng.integers(0, 256)
    index = read_index(io.BytesIO(whole), len(whole))
    assert len(index.members) <= 8
    for member in index.members:
        assert member.reason or member.offset + member.size <= len(whole)


# Warm runs


def test_an_unchanged_tar_is_not_opened(
    shards: Path, tmp_path: Path, settled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = headstart.extract(shards, cache=tmp_path / "cache", **SMALL)
    opened: list[bytes] = []
    index = tars._index
    monkeypatch.setattr(tars, "_index", lambda base, name, tar: opened.append(name) or index(base, name, tar))
    again = headstart.extract(shards, cache=tmp_path / "cache", **SMALL)
    assert (opened, again.embedded, again.reused) == ([], 0, 36)
    for name in ("paths", "label", "split", "stat", "classes", "layout"):
        assert np.array_equal(getattr(first.listing, name), getattr(again.listing, name)), name
    dry = plan_extract(shards, cache=tmp_path / "cache", **SMALL)
    assert (opened, dry.to_read) == ([], 0)
    headstart.extract(shards, cache=tmp_path / "cache", layout="classes", **SMALL)
    assert len(opened) == 3  # what was read in another way is gone through anew
    opened.clear()
    headstart.extract(shards, cache=tmp_path / "cache", rehash=True, **SMALL)
    assert len(opened) == 3


def test_a_changed_tar_is_gone_through_and_the_others_are_not(
    few: Path, shards: Path, tmp_path: Path, settled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    headstart.extract(shards, cache=tmp_path / "cache", **SMALL)
    opened: list[bytes] = []
    index = tars._index
    monkeypatch.setattr(tars, "_index", lambda base, name, tar: opened.append(name) or index(base, name, tar))
    more = [*samples_of(pictures(few, "val")), ("x.jpg", pictures(few, "train")[0].read_bytes()), ("x.cls", b"wasp")]
    write_tar(shards / "val-0000.tar", more)
    again = headstart.extract(shards, cache=tmp_path / "cache", **SMALL)
    assert opened == [b"val-0000.tar"]
    assert again.classes == ("ants", "bees", "wasp") and len(again.listing) == 37
    assert counts(list_images(shards)) == counts(list_images(shards, cache=tmp_path / "cache"))


@pytest.mark.parametrize("labelled", [True, False])
def test_what_comes_to_tars_is_read_as_all_at_once_would_be(
    few: Path, tmp_path: Path, settled: None, labelled: bool
) -> None:
    """Whether samples say what they are is a matter of all tars, also of those that are not opened."""
    with_labels, cache = samples_of(pictures(few, "train")), tmp_path / "cache"
    in_folders = [(f"imgs/{number}.jpg", path.read_bytes()) for number, path in enumerate(pictures(few, "val"))]
    first, later = (with_labels, in_folders) if labelled else (in_folders, with_labels)
    write_tar(tmp_path / "tars" / "a.tar", first)
    headstart.extract(tmp_path / "tars", cache=cache, **SMALL)
    write_tar(tmp_path / "tars" / "b.tar", later)
    expected = counts(list_images(tmp_path / "tars"))
    assert expected == {("ants", 0): 12, ("bees", 0): 12}
    for _ in range(2):  # and at the next run, which opens again what gave nothing
        found = headstart.extract(tmp_path / "tars", cache=cache, **SMALL)
        assert found.classes == ("ants", "bees") and len(found.listing) == 24
        assert counts(list_images(tmp_path / "tars", cache=cache)) == expected


def test_labels_of_half_a_character_are_none(few: Path, tmp_path: Path) -> None:
    entries: list[Entry] = []
    for number, path in enumerate(pictures(few, "val")):
        label = rb'"\ud83d"' if number == 0 else b'"bee"'
        entries += [(f"{number}.jpg", path.read_bytes()), (f"{number}.json", b'{"label": ' + label + b"}")]
    found = listed(tmp_path, entries)
    assert found.classes == ("bee",) and len(found.paths) == len(entries) // 2 - 1


def test_a_limited_listing_is_not_taken_for_the_whole(shards: Path, tmp_path: Path, settled: None) -> None:
    assert len(headstart.extract(shards, cache=tmp_path / "cache", limit=5, **SMALL).listing) == 5
    assert len(headstart.extract(shards, cache=tmp_path / "cache", **SMALL).listing) == 36


def test_a_tar_that_is_replaced_between_listing_and_reading(few: Path, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "one.tar", samples_of(pictures(few, "val")))
    images = list_images(path)
    write_tar(path, samples_of(pictures(few, "train")))
    reader = access_to(os.fsencode(tmp_path), images.paths, images.stat, np.arange(12))
    with pytest.raises(ValueError, match="another one by now"):
        reader.read(0, images.paths[0])


# In the order of their bytes


def test_members_are_read_in_the_order_of_their_bytes(few: Path, tmp_path: Path) -> None:
    files = pictures(few, "train")
    order = np.random.default_rng(0).permutation(len(files))
    entries = [(f"{name:02d}.jpg", files[name].read_bytes()) for name in order.tolist()]
    images = listed(tmp_path, entries)
    todo = in_order_of_bytes(images.paths, images.stat, np.arange(len(files)))
    assert [os.fsdecode(images.paths[row])[8:] for row in todo] == [name for name, _ in entries]
    found = headstart.extract(tmp_path / "one.tar", cache=tmp_path / "cache", **SMALL)
    assert found.embedded == len(files)
    expected = {f"{number:02d}.jpg": path.read_bytes() for number, path in enumerate(files)}
    assert {os.fsdecode(path)[8:]: data for path, data in contents(images).items()} == expected


# In a bucket


@pytest.fixture
def remote_shards(object_store: ObjectStore, few: Path) -> str:
    prefix = f"{object_store.root}/shards"
    for name, content in shards_of(few).items():
        hold(f"{prefix}/{name}", content)
    object_store.faults.reset()
    return prefix


@pytest.mark.parametrize("data", ["", "/{train-0000,train-0001,val-0000}.tar"])
def test_shards_in_a_bucket_are_read_in_large_ranges(
    object_store: ObjectStore, remote_shards: str, few: Path, tmp_path: Path, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same digests as from files; about size / range requests to list and as many to read; then none."""
    block = 400_000
    monkeypatch.setattr(tars, "FETCHED", block)
    monkeypatch.setattr(access, "FETCHED", block)
    headstart.extract(few, cache=tmp_path, **SMALL)
    object_store.faults.reset()
    found = headstart.extract(remote_shards + data, cache=tmp_path, **SMALL)
    assert (found.embedded, found.reused) == (0, 36)
    assert found.split.tolist().count("val") == 12
    size = sum(len(content) for content in shards_of(few).values())
    requests = [path for method, path in object_store.faults.seen if method == "GET" and path.endswith(".tar")]
    assert size // block <= len(requests) <= 2 * (size // block + 3 * 2)
    object_store.faults.reset()
    again = headstart.extract(remote_shards + data, cache=tmp_path, **SMALL)
    assert again.embedded == 0
    assert not [path for method, path in object_store.faults.seen if method == "GET" and path.endswith(".tar")]


def test_shards_in_a_bucket_that_keeps_versions(
    object_store: ObjectStore, remote_shards: str, tmp_path: Path, settled: None
) -> None:
    """S3 tells the version of an object that is asked for alone, and not of those that it lists."""
    import boto3

    client = boto3.client("s3", endpoint_url=object_store.url)
    client.put_bucket_versioning(Bucket=object_store.bucket, VersioningConfiguration={"Status": "Enabled"})
    for entry in client.list_objects_v2(Bucket=object_store.bucket)["Contents"]:
        body = client.get_object(Bucket=object_store.bucket, Key=entry["Key"])["Body"].read()
        client.put_object(Bucket=object_store.bucket, Key=entry["Key"], Body=body)
    found = headstart.extract(remote_shards, cache=tmp_path / "cache", **SMALL)
    assert (found.embedded, len(found.failures)) == (36, 0)


@pytest.mark.parametrize("fault", ["refuse", "cut"])
def test_ranges_are_tried_again(
    object_store: ObjectStore, remote_shards: str, tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.01)
    object_store.faults.reset(meets=lambda method, path: method == "GET" and path.endswith(".tar"), **{fault: 4})
    found = headstart.extract(remote_shards, cache=tmp_path, **SMALL)
    assert (found.embedded, len(found.failures)) == (36, 0) and object_store.faults.done == {fault: 4}


def test_a_shard_that_stays_refused_fails_and_is_tried_again(
    object_store: ObjectStore, remote_shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.01)
    object_store.faults.reset(meets=lambda method, path: method == "GET" and "train-0001" in path, refuse=10**6)
    found = headstart.extract(remote_shards, cache=tmp_path, **SMALL)
    ((path, reason),) = found.failures
    assert path == f"{remote_shards}/train-0001.tar" and "cannot be read: " in reason
    assert found.embedded == 24
    object_store.faults.reset()
    again = headstart.extract(remote_shards, cache=tmp_path, **SMALL)
    assert (again.embedded, len(again.failures)) == (12, 0)


def test_each_byte_is_fetched_once_and_few_ranges_are_held(
    object_store: ObjectStore, remote_shards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "FETCHED", 200_000)
    images = list_images(remote_shards)
    asked: list[tuple[int, int]] = []
    read_part = access.read_part
    monkeypatch.setattr(
        access, "read_part", lambda url, start, stop: asked.append((start, stop)) or read_part(url, start, stop)
    )
    todo = in_order_of_bytes(images.paths, images.stat, np.arange(12))
    reader = access_to(os.fsencode(remote_shards), images.paths, images.stat, todo)
    for row in todo.tolist():
        reader.read(row, images.paths[row])
    asked.sort()
    assert all(one[1] <= next_one[0] for one, next_one in pairwise(asked))
    tar = next(iter(reader._tars.values()))
    assert tar._ranges and not [one for one in tar._ranges if one._data is not None]  # each was dropped after its last


def test_ranges_are_fetched_ahead(
    object_store: ObjectStore, remote_shards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A single reader keeps several requests under way: the server lets the first through when four wait."""
    monkeypatch.setattr(access, "FETCHED", 100_000)
    images = list_images(remote_shards)
    todo = in_order_of_bytes(images.paths, images.stat, np.arange(12))
    reader = access_to(os.fsencode(remote_shards), images.paths, images.stat, todo)
    gate = Gate(4, ".tar")
    object_store.faults.reset(meets=gate)
    reader.read(int(todo[0]), images.paths[int(todo[0])])
    assert gate.most == 4


def test_one_member_by_its_name_alone(remote_shards: str, shards: Path, few: Path) -> None:
    for base in (remote_shards, str(shards)):
        data, found = read_anywhere(f"{base}/val-0000.tar/000003.jpg")
        assert data == pictures(few, "val")[3].read_bytes() and found[0] == len(data)
        with pytest.raises(ValueError, match="not found"):
            read_anywhere(f"{base}/val-0000.tar/none.jpg")
    images = list_paths([f"{remote_shards}/val-0000.tar/000003.jpg", shards / "val-0000.tar/000003.jpg"])
    assert len(set(contents(images).values())) == 1 and len(images.paths) == 2
    assert len(list_paths([shards, f"{remote_shards}/train-0000.tar"]).paths) == 36 + 12


def test_a_folder_may_be_named_like_a_tar(object_store: ObjectStore, few: Path, tmp_path: Path) -> None:
    picture = pictures(few, "val")[0].read_bytes()
    (tmp_path / "data" / "cats.tar").mkdir(parents=True)
    (tmp_path / "data" / "cats.tar" / "1.jpg").write_bytes(picture)
    remote.put(f"{object_store.root}/named/cats.tar/1.jpg", picture)
    for data in (tmp_path / "data", f"{object_store.root}/named"):
        images = list_images(data)
        assert images.classes == ("cats.tar",) and contents(images) == {b"cats.tar/1.jpg": picture}
    assert list(list_images(tmp_path / "data" / "cats.tar").paths) == [b"1.jpg"]
