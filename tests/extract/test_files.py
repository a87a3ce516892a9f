import errno
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from headstart.errors import DataError, DecodeError, printable
from headstart.extract.files import NO_STAT, os_reason, read_regular, some
from headstart.extract.tree import Tree, walk

ROOT = hasattr(os, "geteuid") and os.geteuid() == 0
needs_permissions = pytest.mark.skipif(ROOT, reason="root may read what has no permission bits")
needs_posix = pytest.mark.skipif(os.name != "posix", reason="needs links, FIFOs and names of any bytes")


def reason(path: Path | bytes | str, **options: int) -> str:
    with pytest.raises(DecodeError) as caught:
        read_regular(path, **options)
    return str(caught.value)


# Reading


@pytest.mark.parametrize("size", [1, 4096, 3_000_001])
def test_the_whole_file_is_read(tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    (tmp_path / "x").write_bytes(content)
    assert read_regular(tmp_path / "x") == content
    assert read_regular(os.fsencode(tmp_path / "x")) == content
    assert read_regular(str(tmp_path / "x"), max_bytes=size) == content


def test_reasons_for_what_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "large").write_bytes(b"0123456789")
    assert reason(tmp_path / "empty") == "empty file"
    assert reason(tmp_path / "large", max_bytes=9) == "10 bytes exceed the limit of 9 for one file"
    assert reason(tmp_path / "gone") == "not found"
    assert reason(tmp_path / "large" / "below") == "not found"
    assert reason(tmp_path) == "is a directory"
    assert reason(b"a\0b") == "not found (the name holds a NUL byte)"
    assert reason(tmp_path / ("x" * 300)) == "name too long"


@needs_posix
def test_a_loop_of_links_and_a_socket(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    assert reason(tmp_path / "loop") == "symlink loop"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.fspath(tmp_path / "s"))
        assert reason(tmp_path / "s") == "not a regular file"
    assert reason("/dev/zero") == "not a regular file"


@needs_posix
@needs_permissions
def test_f28_a_forbidden_file(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x")
    (tmp_path / "x").chmod(0)
    assert reason(tmp_path / "x") == "permission denied"


@needs_posix
def test_f17_a_fifo_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.jpg")
    code = "import sys; from headstart.extract.files import read_regular; read_regular(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "x.jpg"], capture_output=True, timeout=30)
    assert done.returncode == 1
    assert done.stderr.decode().strip().endswith("DecodeError: not a regular file")


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts descriptors in /proc")
def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for _ in range(20):
        reason(tmp_path / "empty")
        reason(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_rare_errors_keep_the_systems_words() -> None:
    assert os_reason(OSError(errno.EIO, os.strerror(errno.EIO))) == os.strerror(errno.EIO).lower()
    assert os_reason(OSError("no number")) == "oserror"


# Names for people


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (b"a b.jpg", "a b.jpg"),
        ("é雪.jpg", "é雪.jpg"),
        (b"a\nb\x1b[31m", r"a\nb\x1b[31m"),
        (b"\xff\xfe.jpg", r"\xff\xfe.jpg"),
        ("\u202egpj.exe", r"\u202egpj.exe"),
    ],
)
def test_names_are_shown_in_one_printable_line(name: bytes | str, expected: str) -> None:
    assert printable(name) == expected
    assert printable(name).isprintable()


def test_some_of_many_names() -> None:
    assert some(["a", "b", "c"]) == "a, b, c"
    assert some(list("abcdefg")) == "a, b, c and 4 more"
    assert some([]) == ""


# Walking


def make(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def found(root: Path) -> dict[bytes, str | None]:
    tree = walk(os.fsencode(root))
    return {path: tree.reasons.get(index) for index, path in enumerate(tree.paths)}


def test_suffixes_in_any_case_and_nothing_hidden(tmp_path: Path) -> None:
    make(tmp_path, "a.JPG", "b.JpEg", "c.heic", "d/e.tiff", ".h.jpg", "._i.jpg", ".cache/j.jpg")
    make(tmp_path, "__MACOSX/k.jpg", "d/@eaDir/l.jpg", "m.txt", "n.tar.gz", "jpg", "d.x/o")
    assert found(tmp_path) == {b"a.JPG": None, b"b.JpEg": None, b"c.heic": None, b"d/e.tiff": None}
    assert walk(os.fsencode(tmp_path)).ignored == {".txt": 1, ".gz": 1, "no suffix": 2}


def test_the_status_of_each_file_is_kept(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg")
    info = (tmp_path / "a.jpg").stat()
    tree = walk(os.fsencode(tmp_path))
    assert tree.stats.tolist() == [[1, info.st_mtime_ns, info.st_ctime_ns, info.st_ino & (2**63 - 1)]]
    assert tree.folders == [b""] and tree.folder.tolist() == [0]


@needs_posix
def test_f27_links_are_followed_and_each_folder_read_once_where_it_lies(tmp_path: Path) -> None:
    make(tmp_path, "z/real.jpg", "elsewhere.dat")
    (tmp_path / "a").symlink_to("z")
    (tmp_path / "z" / "up").symlink_to(tmp_path)
    (tmp_path / "linked.jpg").symlink_to("z/real.jpg")
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    make(outside, "far.jpg")
    (tmp_path / "far").symlink_to(outside)
    assert set(found(tmp_path)) == {b"z/real.jpg", b"linked.jpg", b"far/far.jpg"}
    assert sorted(walk(os.fsencode(tmp_path)).repeated) == ["a", "z/up"]


@needs_posix
def test_f26_what_cannot_be_an_image_is_listed_with_its_reason(tmp_path: Path) -> None:
    make(tmp_path, "good.jpg", "folder.jpg/inside.png", "folder.png/deep/note.txt")
    (tmp_path / "gone.jpg").symlink_to("nowhere")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "cats").symlink_to("/nowhere/at/all")
    os.mkfifo(tmp_path / "pipe.jpg")
    assert found(tmp_path) == {
        b"good.jpg": None,
        b"folder.jpg/inside.png": None,
        b"folder.png": "is a directory",
        b"gone.jpg": "dangling link",
        b"loop.jpg": "symlink loop",
        b"pipe.jpg": "not a regular file",
    }
    tree = walk(os.fsencode(tmp_path))
    assert tuple(tree.stats[tree.paths.index(b"gone.jpg")]) == NO_STAT
    assert tree.broken == ["cats (dangling link)"]
    assert b"folder.png" not in tree.folders


def plain_images(root: Path, count: int) -> dict[bytes, list[int]]:
    """Make images of several kinds, rights and times, and return the status that each must be listed with."""
    expected = {}
    for number in range(count):
        image = root / f"{number:04}.{('jpg', 'PNG', 'tif')[number % 3]}"
        image.write_bytes(b"x" * (number % 7))
        image.chmod((0o644, 0o600, 0o400)[number % 3])
        os.utime(image, ns=(number, number - 10**18))
        info = image.stat()
        status = [info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino & (2**63 - 1)]
        expected[os.fsencode(image.name)] = status
    return expected


def statuses(tree: Tree) -> dict[bytes, list[int]]:
    return dict(zip(tree.paths, tree.stats.tolist(), strict=True))


@pytest.mark.parametrize("count", [31, 32, 511, 512, 513, 1100])  # around what is asked for at once
def test_folders_of_any_size_are_listed_alike(tmp_path: Path, count: int) -> None:
    expected = plain_images(tmp_path, count)
    make(tmp_path, ".hidden.jpg", "notes.txt", "__MACOSX/x.jpg", "z/y.jpg")
    tree = walk(os.fsencode(tmp_path))
    homes = {path: tree.folders[index] for path, index in zip(tree.paths, tree.folder, strict=True)}
    assert homes == dict.fromkeys(expected, b"") | {b"z/y.jpg": b"z"}
    assert {path: status for path, status in statuses(tree).items() if path != b"z/y.jpg"} == expected
    assert tree.reasons == {} and tree.ignored == {".txt": 1}


@needs_posix
@pytest.mark.parametrize(
    ("make_odd", "why"),
    [
        (lambda path: path.symlink_to("nowhere"), "dangling link"),
        (lambda path: path.symlink_to(path.name), "symlink loop"),
        (lambda path: path.symlink_to("0000.jpg"), None),
        (lambda path: path.mkdir(), "is a directory"),
        (lambda path: os.mkfifo(path), "not a regular file"),
    ],
)
def test_one_odd_name_among_many_images(tmp_path: Path, make_odd: Callable[[Path], None], why: str | None) -> None:
    expected = plain_images(tmp_path, 600)
    make_odd(tmp_path / "odd.jpg")
    tree = walk(os.fsencode(tmp_path))
    assert [tree.reasons.get(index) for index, path in enumerate(tree.paths) if path == b"odd.jpg"] == [why]
    assert len(tree.reasons) == (why is not None)
    found = statuses(tree)
    odd = found.pop(b"odd.jpg")
    assert found == expected
    if why is None:
        assert odd == expected[b"0000.jpg"]


def test_a_folder_named_like_an_image_among_many_is_read(tmp_path: Path) -> None:
    expected = plain_images(tmp_path, 100)
    make(tmp_path, "odd.jpg/inside.png")
    assert found(tmp_path) == dict.fromkeys([*expected, b"odd.jpg/inside.png"])


def test_a_time_beyond_63_bits_among_many(tmp_path: Path) -> None:
    expected = plain_images(tmp_path, 100)
    try:
        os.utime(tmp_path / "0001.PNG", (13_000_000_000, 13_000_000_000))
    except (OSError, OverflowError):
        pytest.skip("this file system refuses the time")
    info = (tmp_path / "0001.PNG").stat()
    expected[b"0001.PNG"][1:3] = min(info.st_mtime_ns, 2**63 - 1), info.st_ctime_ns
    assert statuses(walk(os.fsencode(tmp_path))) == expected


@needs_posix
@needs_permissions
def test_f28_one_forbidden_image_among_many(tmp_path: Path) -> None:
    plain_images(tmp_path, 100)
    (tmp_path / "0050.tif").chmod(0o044)  # the owner's own right counts, not that of others
    assert {path: why for path, why in found(tmp_path).items() if why} == {b"0050.tif": "permission denied"}


@needs_posix
@needs_permissions
def test_f28_forbidden_files_and_folders_are_listed(tmp_path: Path) -> None:
    make(tmp_path, "a/x.jpg", "b.jpg")
    (tmp_path / "b.jpg").chmod(0)
    (tmp_path / "a").chmod(0)
    try:
        assert found(tmp_path) == {b"a": "permission denied", b"b.jpg": "permission denied"}
    finally:
        (tmp_path / "a").chmod(0o700)


@needs_posix
@pytest.mark.parametrize(
    "name",
    [b"with space.jpg", b"new\nline.jpg", b"-rf.jpg", b"\xff\xfe.jpg", "雪é.jpg".encode(), b"<img onerror=x>.jpg"],
)
def test_f25_names_of_any_bytes_come_back_unchanged(tmp_path: Path, name: bytes) -> None:
    path = os.path.join(os.fsencode(tmp_path), name)  # noqa: PTH118
    try:
        Path(os.fsdecode(path)).write_bytes(b"content")
    except OSError:
        pytest.skip("this file system refuses the name")
    assert found(tmp_path) == {name: None}
    assert read_regular(path) == b"content"


@needs_posix
def test_deep_folders_are_no_problem(tmp_path: Path) -> None:
    deep = [os.fspath(tmp_path) + "/d" * depth for depth in range(1, 1501)]
    for folder in deep:
        os.mkdir(folder)  # noqa: PTH102  (Path.mkdir(parents=True) is recursive, and so is the usual removal)
    image = deep[-1] + "/x.jpg"
    Path(image).touch()
    assert list(found(tmp_path)) == [b"d/" * 1500 + b"x.jpg"]
    Path(image).unlink()
    for folder in reversed(deep):
        os.rmdir(folder)  # noqa: PTH106


def test_a_missing_root_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"^cannot read the folder .*gone: not found; name a folder that can be listed$"
    ):
        walk(os.fsencode(tmp_path / "gone"))
