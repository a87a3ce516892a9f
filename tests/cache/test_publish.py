import errno
import os

import pytest

from headstart.cache.publish import publish, sortable_id
from headstart.errors import CacheError


def test_it_writes_all_buffers_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "file.h5"
    publish(path, [b"one", bytearray(b"two"), memoryview(b"three")])
    assert path.read_bytes() == b"onetwothree"
    assert [entry.name for entry in path.parent.iterdir()] == ["file.h5"]


def test_it_replaces_in_one_step(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    publish(path, b"new")
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS])
def test_a_failed_call_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, call, code):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(*_arguments, **_options):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(CacheError) as caught:
        publish(path, b"new" * 1_000_000)
    monkeypatch.undo()
    assert caught.value.errno == code
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    expected = {
        errno.ENOSPC: f"disk full writing {tmp_path}: free ~3 MB and run again",
        errno.EROFS: f"{tmp_path} is read-only: pass --cache with a folder that can be written",
    }.get(code, f"cannot write {tmp_path} ({errno.errorcode[code]}: ")
    assert str(caught.value).startswith(expected)


def test_a_file_where_a_folder_should_be(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CacheError, match=r"^a file is in the way of the folder .*file: pass --cache with another one$"):
        publish(tmp_path / "file" / "below", b"new")


def test_short_writes_are_continued(tmp_path, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:7]))
    publish(tmp_path / "file", b"0123456789" * 10)
    assert (tmp_path / "file").read_bytes() == b"0123456789" * 10


def test_ids_sort_by_time_even_when_the_clock_goes_back():
    first = sortable_id()
    later = sortable_id()
    assert len(first) == 24
    assert first[:14] <= later[:14]
    future = "ff" + first[2:]
    assert sortable_id(after=future) > future
