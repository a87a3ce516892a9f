"""A CSV in which an image may have several labels; those of one label an image are tested with the other listings."""

import csv
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headstart.errors import DataError
from headstart.extract.csv_file import unique_lines
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


def test_lines_that_contradict_each_other_are_told_before_a_bad_line_further_down(tmp_path: Path) -> None:
    for bad in ("3.jpg\n", '"3.jpg"x,a\n', ",a\n"):
        with pytest.raises(DataError, match=r"lines 2 and 3: 1\.jpg has more than one label"):
            listed(tmp_path, "path,label\n1.jpg,a\n1.jpg,b\n1.jpg,c\n" + bad)


def test_the_first_contradiction_of_several_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"lines 3 and 5: z\.jpg has more than one split"):
        listed(tmp_path, "path,label,split\na.jpg,a,\nz.jpg,a,val\nz.jpg,a,val\nz.jpg,a,test\na.jpg,b,\n")


cells = st.lists(st.sampled_from(["cat", "dog", " bee", "cat ", "\u00e9", "a\nb"]), max_size=3)
lines = st.lists(
    st.tuples(st.sampled_from(["1.jpg", "./1.jpg", "b//2.jpg", "b/2.jpg", "/x/3.jpg", "\u00e9.jpg", "b/."]), cells,
              st.sampled_from(["", "train", " Val "])), max_size=12,
)  # fmt: skip


def expected_of(rows: list[tuple[str, list[str], str]], several: bool) -> dict[bytes, tuple[list[str], int]] | None:
    """Say what lines mean, one after the other; None where two contradict each other."""
    codes, found = {"": 0, "train": 1, "val": 2}, {}
    for path, names, split in rows:
        parts = [part for part in path.split("/") if part not in ("", ".")]
        name = os.fsencode("/" * path.startswith("/") + "/".join(parts))
        labels = sorted({name.strip() for name in names}) if several else [name.strip() for name in names[:1]]
        says = labels, codes[split.strip().lower()]
        if found.setdefault(name, says) != says:
            return None
    return found


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines, st.booleans())
def test_columns_say_what_the_lines_say(tmp_path: Path, rows: list[tuple[str, list[str], str]], several: bool) -> None:
    data = tmp_path / "list.csv"
    with data.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "labels" if several else "label", "split"])
        writer.writerows(
            (path, "|".join(names) if several else "".join(names[:1]), split) for path, names, split in rows
        )
    expected = expected_of(rows, several)
    if expected is None:
        with pytest.raises(DataError, match="has more than one"):
            unique_lines(data)
        return
    found = unique_lines(data)
    assert found.paths == sorted(expected) and found.merged == len(rows) - len(expected)
    assert list(found.classes) == sorted({name for labels, _ in expected.values() for name in labels})
    assert found.split.tolist() == [expected[path][1] for path in found.paths]
    labels = [[found.classes.index(name) for name in expected[path][0]] for path in found.paths]
    if several:
        assert found.tags.count.tolist() == [len(row) for row in labels]
        assert found.tags.index.tolist() == [number for row in labels for number in row]
    else:
        assert found.tags is None and found.label.tolist() == [row[0] if row else -1 for row in labels]
