"""A CSV in which an image may have several labels; those of one label an image are tested with the other listings."""

import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from headstart.errors import DataError
from headstart.extract.images import ImageList, count_table, list_images
from headstart.extract.plan import limited


def listed(root: Path, text: str | bytes) -> ImageList:
    data = root / "list.csv"
    data.write_bytes(text if isinstance(text, bytes) else text.encode())
    return list_images(data)


def names(images: ImageList) -> dict[str, list[str] | None]:
    """Return path -> names of its labels."""
    ends = np.cumsum(images.tags.sizes)
    assert ends[-1] == len(images.tags.index)
    rows = np.split(images.tags.index, ends[:-1])
    return {
        os.fsdecode(path): [images.classes[label] for label in row]
        for path, row in zip(images.paths, rows, strict=True)
    }


def test_a_cell_holds_any_number_of_names(tmp_path: Path) -> None:
    images = listed(tmp_path, "path,labels,split\nc.jpg,dog|cat,train\na.jpg,,val\nb.jpg, bird | cat ,\n")
    assert (images.layout, images.classes) == ("csv", ("bird", "cat", "dog"))
    assert names(images) == {"a.jpg": [], "b.jpg": ["bird", "cat"], "c.jpg": ["cat", "dog"]}
    assert images.tags.count.tolist() == [0, 2, 2], "none of the labels is there; it is not unknown"
    assert images.tags.count.dtype == images.tags.index.dtype == images.label.dtype == np.int32
    assert images.label.tolist() == [-1, -1, -1]
    assert images.split.tolist() == [2, 0, 1]
    assert images.notes == ()


def test_the_same_name_twice_counts_once(tmp_path: Path) -> None:
    assert names(listed(tmp_path, "path,labels\na.jpg,dog|cat|dog | dog\n")) == {"a.jpg": ["cat", "dog"]}


@pytest.mark.parametrize("header", ["path,labels", " Path , LABELS ", "\ufeffpath,labels"])
def test_windows_line_ends_a_mark_of_the_byte_order_and_capitals(tmp_path: Path, header: str) -> None:
    images = listed(tmp_path, f"{header}\r\na.jpg,dog|cat\r\n\r\nb.jpg,\r\n")
    assert names(images) == {"a.jpg": ["cat", "dog"], "b.jpg": []}


def test_names_may_hold_commas_line_breaks_quotes_and_any_bytes(tmp_path: Path) -> None:
    images = listed(tmp_path, b'labels,path\n"tench, fish|a\nb|say ""x""",a.jpg\n\xff|\xc3\xa9,b.jpg\n')
    assert names(images) == {"a.jpg": ["a\nb", 'say "x"', "tench, fish"], "b.jpg": ["é", "\udcff"]}
    assert images.notes == ()


def test_a_csv_of_one_label_an_image_and_a_folder_keep_names_with_bars(tmp_path: Path) -> None:
    images = listed(tmp_path, "path,label\na.jpg,cat|dog\n")
    assert (images.classes, images.tags, images.label.tolist()) == (("cat|dog",), None, [0])
    if os.name == "posix":
        (tmp_path / "data" / "cat|dog").mkdir(parents=True)
        (tmp_path / "data" / "cat|dog" / "a.jpg").write_bytes(b"x")
        images = list_images(tmp_path / "data")
        assert (images.classes, images.tags) == (("cat|dog",), None)


def test_lines_that_say_the_same_in_any_order_merge(tmp_path: Path) -> None:
    images = listed(tmp_path, "path,labels\n1.jpg,a|b\n./1.jpg,b| a|b\n2.jpg,\n.//2.jpg,  \n")
    assert names(images) == {"1.jpg": ["a", "b"], "2.jpg": []}
    assert images.notes == ("merged 2 lines that say the same of an image",)


def test_an_image_counts_under_each_of_its_labels(tmp_path: Path) -> None:
    text = "path,labels,split\n1.jpg,a|b,train\n2.jpg,b,train\n3.jpg,,val\n4.jpg,a|b|c,val\n5.jpg,,val\n"
    assert count_table(listed(tmp_path, text)) == [
        ("a", {"train": 1, "val": 1}),
        ("b", {"train": 2, "val": 1}),
        ("c", {"train": 0, "val": 1}),
        ("", {"train": 0, "val": 2}),
    ]
    assert count_table(listed(tmp_path, "path,labels\n1.jpg,a|b\n")) == [("a", {"": 1}), ("b", {"": 1})]
    assert count_table(listed(tmp_path, "path,labels\n1.jpg,\n")) == [("", {"": 1})]


def test_a_part_of_the_images_keeps_their_labels(tmp_path: Path) -> None:
    images = listed(tmp_path, "path,labels\n" + "".join(f"{n}.jpg,{'|'.join('abc'[: n % 4])}\n" for n in range(10)))
    every = names(images)
    assert names(limited(images, 4)) == {path: every[path] for path in ("0.jpg", "3.jpg", "6.jpg", "9.jpg")}


ERRORS: list[tuple[str | bytes, str]] = [
    ("path,labels\na.jpg,a\nb.jpg,a||b\n", "line 3: the labels 'a||b' hold an empty name; "),
    ("path,labels\na.jpg,a| |b\n", "line 2: the labels 'a| |b' hold an empty name; "),
    ("path,labels\na.jpg,|a\n", "line 2: the labels '|a' hold an empty name; "),
    ("path,labels\na.jpg,a|\n", "line 2: the labels 'a|' hold an empty name; "),
    ("path,labels\na.jpg,|\n", "line 2: the labels '|' hold an empty name; "),
    ("path,labels\na.jpg,|||\n", "line 2: the labels '|||' hold an empty name; take out the bar, or name the label"),
    ("path,labels\r\na.jpg,a\r\n\r\nb.jpg,\x1b||\r\n", r"line 4: the labels '\x1b||' hold an empty name; "),
    ("path,labels\na.jpg,a|b\0\n", r"line 2: the label b\x00 holds a NUL byte; name the class otherwise"),
    ("path,label\na.jpg,b\0\n", r"line 2: the label b\x00 holds a NUL byte; name the class otherwise"),
    ("path,labels\na.jpg\n", "line 2: 1 fields, the header promises more; fill in the line"),
    ("path,labels,split\na.jpg,a|b,dev\n", "line 2: unknown split 'dev'; use train, val or test, or leave it empty"),
    (
        "path,labels\n1.jpg,a|b\n2.jpg,a\n1.jpg,b|c\n",
        "lines 2 and 4: 1.jpg has more than one set of labels; "
        "keep one of the lines, with all names in it, as in cat|dog",
    ),
    ("path,labels\n1.jpg,a\n1.jpg,\n", "lines 2 and 3: 1.jpg has more than one set of labels; "),
    (
        "path,labels,split\n1.jpg,a|b,val\n1.jpg,b|a,train\n",
        "lines 2 and 3: 1.jpg has more than one split; keep one of the lines",
    ),
]


@pytest.mark.parametrize(("text", "expected"), ERRORS)
def test_errors_name_the_line(tmp_path: Path, text: str | bytes, expected: str) -> None:
    with pytest.raises(DataError) as caught:
        listed(tmp_path, text)
    assert str(caught.value).startswith(f"{tmp_path / 'list.csv'}, {expected}")
    assert "\n" not in str(caught.value)


def test_a_long_cell_is_not_repeated_in_full(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        listed(tmp_path, "path,labels\na.jpg,|" + "x" * 10_000 + "\n")
    assert len(str(caught.value)) < 250 + len(str(tmp_path))


@pytest.mark.parametrize("header", ["path,label,labels", "labels,split,path,Label"])
def test_both_columns_are_refused(tmp_path: Path, header: str) -> None:
    with pytest.raises(DataError) as caught:
        listed(tmp_path, f"{header}\na.jpg,a,a|b,\n")
    assert str(caught.value) == (
        f"{tmp_path / 'list.csv'}: line 1 names the columns label and labels; keep label where an image has one class, "
        "labels where it may have several, as in cat|dog"
    )


def test_a_header_without_a_path_names_the_columns_that_are_meant(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"must name the columns path,labels\[,split\], path is missing"):
        listed(tmp_path, "file,labels\na.jpg,a\n")


@pytest.mark.parametrize("text", ["a.jpg,cat;dog", 'a.jpg,"cat,dog"'])
def test_another_separator_is_told_of(tmp_path: Path, text: str) -> None:
    images = listed(tmp_path, f"path,labels\n{text}\nb.jpg,\n")
    assert len(images.classes) == 1
    said = f"taken as one label each: {images.classes[0]}; several names need bars between them, as in cat|dog"
    assert images.notes == (said,)
    assert listed(tmp_path, f"path,labels\n{text}\nb.jpg,x|y\n").notes == (), "whoever uses bars means the comma"
    assert listed(tmp_path, f"path,label\n{text}\n").notes == ()


def test_memory_grows_with_the_labels_that_are_there_and_not_with_those_that_might_be(tmp_path: Path) -> None:
    """A table of 4,000 images and 10,000 classes would be 40 MB."""
    rng = np.random.default_rng(0)
    lines = ["|".join(f"label {label}" for label in rng.permutation(10_000)[:5]) for _ in range(4000)]
    tracemalloc.start()
    try:
        images = listed(tmp_path, "path,labels\n" + "".join(f"{n:04d}.jpg,{line}\n" for n, line in enumerate(lines)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (len(images.tags.count), len(images.tags.index)) == (4000, 20_000)
    assert len(images.classes) > 8000
    assert peak < 20e6
    images.tags.check(4000, len(images.classes))
    assert names(images)["0007.jpg"] == sorted(lines[7].split("|"))
