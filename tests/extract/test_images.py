import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from headstart.errors import DataError, DataNotFoundError, UsageError
from headstart.extract.images import LAYOUTS, SPLITS, ImageList, count_table, list_images, list_paths

ROOT = hasattr(os, "geteuid") and os.geteuid() == 0
needs_posix = pytest.mark.skipif(os.name != "posix", reason="needs links and names of any bytes")


def make(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def table(images: ImageList) -> dict[str, tuple[str, str]]:
    """Return path -> (class, split), in words."""
    names = (*images.classes, "")
    pairs = zip(images.label.tolist(), images.split.tolist(), strict=True)
    return {
        os.fsdecode(path): (names[label], SPLITS[split])
        for path, (label, split) in zip(images.paths, pairs, strict=True)
    }


def message(data: Path, kind: type[Exception] = DataError, **options: str) -> str:
    with pytest.raises(kind) as caught:
        list_images(data, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Layouts


def test_split_folders(tmp_path: Path) -> None:
    make(tmp_path, "train/b/1.jpg", "train/a/2.jpg", "train/a/deep/er/3.jpg", "val/a/4.jpg", "test/c/5.jpg")
    images = list_images(tmp_path)
    assert (images.layout, images.classes, images.root, images.base) == ("splits", ("a", "b", "c"), tmp_path, tmp_path)
    assert images.paths == sorted(images.paths)
    assert table(images) == {
        "test/c/5.jpg": ("c", "test"),
        "train/a/2.jpg": ("a", "train"),
        "train/a/deep/er/3.jpg": ("a", "train"),
        "train/b/1.jpg": ("b", "train"),
        "val/a/4.jpg": ("a", "val"),
    }
    assert images.label.dtype == np.int32 and images.split.dtype == np.uint8
    assert images.stat.dtype == np.int64 and images.stat.shape == (5, 4)
    info = (tmp_path / "test/c/5.jpg").stat()
    assert images.stat[0].tolist() == [1, info.st_mtime_ns, info.st_ctime_ns, info.st_ino & (2**63 - 1)]
    assert images.unreadable == {} and images.notes == ()


@pytest.mark.parametrize("name", ["Train", "train-cat-rabbit", "train_2", "TRAIN.old", "train set"])
@pytest.mark.parametrize("other", ["val", "VALID", "validation-1", "test_images"])
def test_names_of_split_folders(tmp_path: Path, name: str, other: str) -> None:
    make(tmp_path, f"{name}/a/1.jpg", f"{other}/a/2.jpg")
    images = list_images(tmp_path)
    assert images.layout == "splits"
    assert set(table(images).values()) == {("a", "train"), ("a", "test" if "test" in other else "val")}


@pytest.mark.parametrize("other", ["valley", "training", "tested", "trainer", "validations"])
def test_names_of_classes_that_only_look_like_splits(tmp_path: Path, other: str) -> None:
    make(tmp_path, "train/1.jpg", f"{other}/2.jpg")
    images = list_images(tmp_path)
    assert images.layout == "classes"
    assert images.classes == tuple(sorted(("train", other)))
    assert images.notes == (
        f"read as classes, although train may be a split: {other} is no split; --layout splits reads it as one",
    )


def test_split_folders_without_training_are_classes_with_a_note(tmp_path: Path) -> None:
    make(tmp_path, "val/a/1.jpg", "test/a/2.jpg")
    images = list_images(tmp_path)
    assert images.layout == "classes" and images.classes == ("test", "val")
    assert "test, val may be a split: no split folder for training holds images" in images.notes[0]
    assert table(list_images(tmp_path, layout="splits")) == {"test/a/2.jpg": ("a", "test"), "val/a/1.jpg": ("a", "val")}


def test_folders_of_one_split_merge(tmp_path: Path) -> None:
    make(tmp_path, "train-cat/cat/1.jpg", "train-dog/dog/2.jpg", "valid/cat/3.jpg", "validation/dog/4.jpg")
    images = list_images(tmp_path)
    assert images.classes == ("cat", "dog")
    assert count_table(images) == [("cat", {"train": 1, "val": 1}), ("dog", {"train": 1, "val": 1})]


def test_a_folder_without_images_does_not_hide_the_splits(tmp_path: Path) -> None:
    make(tmp_path, "train/a/1.jpg", "val/a/2.jpg", "annotations/a.xml", "labels.csv")
    images = list_images(tmp_path)
    assert images.layout == "splits" and images.classes == ("a",)
    assert "ignored folders that are no split: annotations (0 images)" in images.notes
    assert "ignored 2 files that are no images (.csv 1, .xml 1)" in images.notes


def test_a_split_of_bare_images_is_unlabelled_and_strays_are_left_out(tmp_path: Path) -> None:
    make(tmp_path, "train/a/1.jpg", "train/stray.jpg", "test-images/2.jpg", "test-images/xml/2.xml", "root.jpg")
    images = list_images(tmp_path)
    assert table(images) == {"train/a/1.jpg": ("a", "train"), "test-images/2.jpg": ("", "test")}
    assert images.label.tolist() == [-1, 0]
    assert images.notes[0] == "ignored 2 images that lie beside the class folders"
    assert count_table(images) == [("a", {"train": 1, "test": 0}), ("", {"train": 0, "test": 1})]


def test_class_folders(tmp_path: Path) -> None:
    make(tmp_path, "b/1.jpg", "a/x/y/2.png", "a/3.gif", "stray.jpg")
    (tmp_path / "empty").mkdir()
    images = list_images(tmp_path)
    assert (images.layout, images.classes) == ("classes", ("a", "b", "empty"))
    assert table(images) == {"a/3.gif": ("a", ""), "a/x/y/2.png": ("a", ""), "b/1.jpg": ("b", "")}
    assert images.notes == (
        "ignored 1 images that lie beside the class folders",
        "class folders without images: empty",
    )
    assert count_table(images) == [("a", {"": 2}), ("b", {"": 1}), ("empty", {"": 0})]


def test_an_empty_class_of_one_split_only_has_a_note_when_it_is_empty_everywhere(tmp_path: Path) -> None:
    make(tmp_path, "train/a/1.jpg", "train/b/2.jpg", "val/a/3.jpg")
    (tmp_path / "val/b").mkdir()
    (tmp_path / "val/c").mkdir()
    images = list_images(tmp_path)
    assert images.classes == ("a", "b", "c")
    assert images.notes == ("class folders without images: c",)


def test_one_folder_around_the_splits_is_pointed_out(tmp_path: Path) -> None:
    make(tmp_path, "download/train/a/1.jpg", "download/val/a/2.jpg")
    images = list_images(tmp_path)
    assert images.classes == ("download",)
    assert images.notes == (
        "read as one class, although download holds split folders; name that folder as DATA to use them",
    )


def test_a_flat_folder(tmp_path: Path) -> None:
    make(tmp_path, "b.jpg", "a.jpg", "notes/readme.txt")
    images = list_images(tmp_path)
    assert (images.layout, images.classes, images.paths) == ("flat", (), [b"a.jpg", b"b.jpg"])
    assert images.label.tolist() == [-1, -1] and images.split.tolist() == [0, 0]
    assert count_table(images) == [("", {"": 2})]


def test_the_layout_can_be_said(tmp_path: Path) -> None:
    make(tmp_path, "train/a/1.jpg", "val/a/2.jpg", "extra/b/3.jpg")
    assert list_images(tmp_path).layout == "classes"
    splits = list_images(tmp_path, layout="splits")
    assert set(table(splits)) == {"train/a/1.jpg", "val/a/2.jpg"} and splits.classes == ("a",)
    assert splits.notes == ("ignored folders that are no split: extra (1 images)",)
    classes = list_images(tmp_path, layout="classes")
    assert classes.classes == ("extra", "train", "val") and classes.notes == ()
    assert list_images(tmp_path, layout="flat").label.tolist() == [-1, -1, -1]


@needs_posix
def test_links_between_classes(tmp_path: Path) -> None:
    make(tmp_path, "train/b/1.jpg")
    (tmp_path / "train/a").symlink_to("b")
    (tmp_path / "train/c").mkdir()
    (tmp_path / "train/c/linked.jpg").symlink_to("../b/1.jpg")
    images = list_images(tmp_path)
    assert table(images) == {"train/b/1.jpg": ("b", "train"), "train/c/linked.jpg": ("c", "train")}
    assert images.notes == ("skipped links to folders that are listed already: train/a",)


@needs_posix
def test_unreadable_entries_keep_their_place_after_sorting(tmp_path: Path) -> None:
    make(tmp_path, "train/a/m.jpg", "train/a/dir.jpg/readme.txt", "train/b/n.jpg")
    (tmp_path / "train/a/z.jpg").symlink_to("nowhere")
    (tmp_path / "train/a/a.jpg").symlink_to("a.jpg")
    (tmp_path / "stray.jpg").symlink_to("nowhere")
    images = list_images(tmp_path)
    reasons = {images.paths[index]: reason for index, reason in images.unreadable.items()}
    assert reasons == {
        b"train/a/a.jpg": "symlink loop",
        b"train/a/dir.jpg": "is a directory",
        b"train/a/z.jpg": "dangling link",
    }
    assert images.classes == ("a", "b") and len(images.paths) == 5
    assert images.stat[images.paths.index(b"train/a/z.jpg")].tolist() == [0, 0, 0, 0]


@needs_posix
@pytest.mark.skipif(ROOT, reason="root may read what has no permission bits")
def test_a_forbidden_class_folder_is_an_unreadable_entry_of_its_class(tmp_path: Path) -> None:
    make(tmp_path, "train/a/1.jpg", "train/b/2.jpg")
    (tmp_path / "train/b").chmod(0)
    try:
        images = list_images(tmp_path)
    finally:
        (tmp_path / "train/b").chmod(0o700)
    assert images.unreadable == {1: "permission denied"} and images.paths[1] == b"train/b"


@needs_posix
def test_class_names_of_any_bytes(tmp_path: Path) -> None:
    try:
        (tmp_path / os.fsdecode(b"\xffclass")).mkdir()
    except OSError:
        pytest.skip("this file system refuses the name")
    make(tmp_path, os.fsdecode(b"\xffclass/1.jpg"), "a\nb/2.jpg")
    (tmp_path / os.fsdecode(b"\xfe")).mkdir()
    images = list_images(tmp_path)
    assert [os.fsencode(name) for name in images.classes] == [b"a\nb", b"\xfe", b"\xffclass"]
    assert images.paths == [b"a\nb/2.jpg", b"\xffclass/1.jpg"] and images.label.tolist() == [0, 2]
    assert images.notes == (r"class folders without images: \xfe",)


def test_times_beyond_63_bits_are_clipped(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg")
    try:
        os.utime(tmp_path / "a.jpg", (13_000_000_000, 13_000_000_000))
    except (OSError, OverflowError):
        pytest.skip("this file system refuses the time")
    if (tmp_path / "a.jpg").stat().st_mtime_ns < 2**63:
        pytest.skip("this file system clips the time itself")
    assert list_images(tmp_path).stat[0, 1] == 2**63 - 1


# Nothing there


def test_errors_say_what_was_looked_for(tmp_path: Path) -> None:
    text = message(tmp_path / "gone", DataNotFoundError)
    expected = f"no such folder or file: {tmp_path}/gone; name a folder of images or a CSV with the columns path,label"
    assert text == expected
    make(tmp_path, "notes.txt")
    text = message(tmp_path)
    assert text.startswith(f"no images in {tmp_path}: looked for .avif .bmp .gif ")
    assert "found 1 files that are no images (.txt 1); name a folder that holds images" in text
    make(tmp_path, "a.jpg")
    text = message(tmp_path, layout="classes")
    assert "looked in class folders for" in text and "found 1 images elsewhere in it" in text
    assert "looked in split folders (train, val, test) for" in message(tmp_path, layout="splits")


def test_wrong_layouts(tmp_path: Path) -> None:
    assert message(tmp_path, UsageError, layout="tree") == (f"unknown layout 'tree'; use auto, {', '.join(LAYOUTS)}")
    assert "which is a folder" in message(tmp_path, UsageError, layout="csv")
    make(tmp_path, "x.csv")
    assert "which is a file" in message(tmp_path / "x.csv", UsageError, layout="splits")


@needs_posix
def test_a_fifo_is_no_data(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.csv")
    assert "neither a folder nor a regular file" in message(tmp_path / "x.csv")


# CSV


def write_csv(root: Path, text: str | bytes) -> Path:
    data = root / "list.csv"
    data.write_bytes(text.encode() if isinstance(text, str) else text)
    return data


def test_a_csv_with_splits(tmp_path: Path) -> None:
    make(tmp_path, "x/1.jpg", "2.jpg", "3.bin")
    outside = tmp_path.parent / f"{tmp_path.name}.jpg"
    outside.write_bytes(b"x")
    lines = ["path,extra,label,split", "x/1.jpg,e,dog,Train", "./2.jpg,,cat,validation", "3.bin,,,", ""]
    rows = "\r\n".join([*lines, f"{outside},,dog,test", ""])
    data = write_csv(tmp_path, b"\xef\xbb\xbf" + rows.encode())
    images = list_images(data)
    assert (images.layout, images.root, images.base, images.classes) == ("csv", data, tmp_path, ("cat", "dog"))
    assert table(images) == {
        "x/1.jpg": ("dog", "train"),
        "2.jpg": ("cat", "val"),
        "3.bin": ("", ""),
        outside.as_posix(): ("dog", "test"),
    }
    assert images.paths == sorted(images.paths)
    assert images.unreadable == {} and images.stat[:, 0].tolist() == [1, 1, 1, 1]


@needs_posix
def test_csv_paths_of_any_bytes(tmp_path: Path) -> None:
    make(tmp_path, 'a, "b"\n.jpg')
    try:
        make(tmp_path, os.fsdecode(b"\xff.jpg"))
    except OSError:
        pytest.skip("this file system refuses the name")
    data = write_csv(tmp_path, b'label,path\nc,"a, ""b""\n.jpg"\n\xfe,\xff.jpg\n')
    images = list_images(data)
    assert images.paths == [b'a, "b"\n.jpg', b"\xff.jpg"]
    assert [os.fsencode(name) for name in images.classes] == [b"c", b"\xfe"]
    assert images.unreadable == {}


@needs_posix
def test_csv_lines_that_lead_to_no_image(tmp_path: Path) -> None:
    make(tmp_path, "good.jpg", "folder/x")
    (tmp_path / "dangling.jpg").symlink_to("nowhere")
    data = write_csv(tmp_path, "path,label\ngood.jpg,a\ngone.jpg,a\nfolder,a\ndangling.jpg,b\n")
    images = list_images(data)
    assert images.paths == [b"dangling.jpg", b"folder", b"gone.jpg", b"good.jpg"]
    assert images.unreadable == {0: "dangling link", 1: "is a directory", 2: "not found"}


def test_csv_lines_that_agree_merge(tmp_path: Path) -> None:
    make(tmp_path, "1.jpg")
    images = list_images(write_csv(tmp_path, "path,label\n1.jpg,a\n./1.jpg,a\n.//1.jpg, a\n"))
    assert images.paths == [b"1.jpg"]
    assert images.notes == ("merged 2 lines that say the same of an image",)


def test_a_csv_keeps_no_object_an_image(tmp_path: Path) -> None:
    """As objects, a path, its line, status and reason were 660 bytes; a listing of a few names is no measure."""
    rows = "".join(f"class_{n // 1000:04d}/photo_{n:08d}.jpg,class_{n // 1000:04d}\n" for n in range(20_000))
    data = write_csv(tmp_path, "path,label\n" + rows)
    tracemalloc.start()
    try:
        images = list_images(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(images.paths) == len(images.unreadable) == 20_000
    assert peak < 250 * 20_000


HEADER = "line 1 must name the columns path,label[,split]"
NO_CSV = "{} is no CSV in UTF-8; name a folder, or a CSV with the columns path,label"
CSV_ERRORS: list[tuple[str | bytes, str]] = [
    (
        "path,label\n1.jpg,a\n2.jpg,a\n1.jpg,b\n",
        "{}, lines 2 and 4: 1.jpg has more than one label; keep one of the lines",
    ),
    (
        "path,label,split\n1.jpg,a,val\n1.jpg,a,train\n",
        "{}, lines 2 and 3: 1.jpg has more than one split; keep one of the lines",
    ),
    (
        "path,label,split\n1.jpg,a,dev\n",
        "{}, line 2: unknown split 'dev'; use train, val or test, or leave it empty",
    ),
    ("path,label\na.jpg,a\nb\0.jpg,a\n", r"{}, line 3: the path b\x00.jpg holds a NUL byte; name a file"),
    ("path,label\n,a\n", "{}, line 2: the path is empty; name an image"),
    ("path,label\n./,a\n", "{}, line 2: the path is empty; name an image"),
    ("path,label\n\n1.jpg\n", "{}, line 3: 1 fields, the header promises more; fill in the line"),
    ("path,label\n", "{} lists no images below its header; add lines of path,label"),
    ("file,label\n", f"{{}}: {HEADER}, path is missing (found: file,label); add the header, or name a folder"),
    ("", f"{{}}: {HEADER}, path and label are missing (found: nothing); add the header, or name a folder"),
    (
        b"\x89PNG\r\n\x1a\n\0\0",
        f"{{}}: {HEADER}, path and label are missing (found: \\x89PNG); add the header, or name a folder",
    ),
    (b"\xff\xd8\xff\xe0\0\x10JFIF", NO_CSV),
    ("path,label\n".encode("utf-16"), NO_CSV),
]


@pytest.mark.parametrize(("text", "expected"), CSV_ERRORS)
def test_csv_errors_name_the_line(tmp_path: Path, text: str | bytes, expected: str) -> None:
    data = write_csv(tmp_path, text)
    assert message(data) == expected.format(data)


def test_broken_quoting_names_the_line(tmp_path: Path) -> None:
    data = write_csv(tmp_path, 'path,label\na.jpg,a\n"b.jpg"x,a\n')
    text = message(data)
    assert text.startswith(f"{data}, line 3: broken CSV (") and text.endswith("; mend the quoting")


# Paths one by one


def test_images_and_folders_named_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "one.dat", "d/2.jpg", "d/e/3.jpg", "d/x.txt")
    monkeypatch.chdir(tmp_path)
    images = list_paths([Path("one.dat"), Path("d"), Path("d/e"), tmp_path / "d/e/3.jpg"])
    absolute = (tmp_path / "d/e/3.jpg").as_posix().encode()
    assert images.paths == sorted([b"d/2.jpg", b"d/e/3.jpg", b"one.dat", absolute])
    assert (images.layout, images.classes, images.base) == ("flat", (), Path.cwd())
    assert images.label.tolist() == [-1] * 4 and images.split.tolist() == [0] * 4
    assert images.notes == ("ignored 1 files that are no images (.txt 1)",)
    assert set(list_paths([Path()]).paths) == {b"d/2.jpg", b"d/e/3.jpg"}


def test_absolute_paths_do_not_need_the_working_directory(tmp_path: Path) -> None:
    make(tmp_path, "1.jpg")
    images = list_paths([tmp_path])
    assert images.base == Path(tmp_path.anchor)
    assert images.paths == [(tmp_path / "1.jpg").as_posix().encode()]


@needs_posix
def test_named_paths_that_are_no_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe.jpg")
    Path("gone.jpg").symlink_to("nowhere")
    images = list_paths([Path("pipe.jpg"), Path("gone.jpg")])
    assert images.unreadable == {0: "dangling link", 1: "not a regular file"}
    with pytest.raises(DataNotFoundError, match=r"^no such image or folder: missing\.jpg; check the name$"):
        list_paths([Path("pipe.jpg"), Path("missing.jpg")])
    Path("empty").mkdir()
    with pytest.raises(DataError, match=r"^no images in empty: looked for \.avif .*; name images or a folder"):
        list_paths([Path("empty")])
    with pytest.raises(DataError, match=r"^no images in nothing: "):
        list_paths([])


# Real sets


def test_sample_photographs(samples: Path) -> None:
    images = list_images(samples / "hymenoptera")
    assert (images.layout, images.classes) == ("splits", ("ants", "bees"))
    assert count_table(images) == [("ants", {"train": 124, "val": 70}), ("bees", {"train": 121, "val": 83})]
    assert list_images(samples / "hymenoptera" / "val").layout == "classes"
