"""Objects of a real S3 server, read and written through what goes wrong on the way."""

import pytest

from headstart.cache.remote import is_url, passes, put, read_range, retried, scheme_of
from headstart.errors import MissingExtraError, UsageError


def test_a_url_has_a_scheme_and_a_drive_has_none():
    assert is_url("s3://bucket/key") and is_url("HTTPS://host/a.jpg")
    assert not is_url("C://pictures") and not is_url("a/b") and not is_url("s3:/bucket")
    assert scheme_of("S3://b/k") == "s3"


def test_an_object_comes_back_whole_and_in_ranges(object_store):
    url = f"{object_store.root}/a/b.bin"
    put(url, bytes(range(256)) * 100)
    assert read_range(url) == bytes(range(256)) * 100
    assert read_range(url, 250, 260) == bytes([250, 251, 252, 253, 254, 255, 0, 1, 2, 3])


@pytest.mark.parametrize("fault", ["refuse", "cut"])
def test_an_error_that_passes_is_tried_again(object_store, fault):
    url = f"{object_store.root}/a.bin"
    put(url, b"x" * 500_000)
    object_store.faults.reset(meets=lambda method, path: path.endswith("a.bin"), **{fault: 3})
    assert read_range(url) == b"x" * 500_000
    assert object_store.faults.done == {fault: 3}


def test_a_put_that_is_refused_is_tried_again(object_store):
    url = f"{object_store.root}/a.bin"
    object_store.faults.reset(meets=lambda method, path: method == "PUT", refuse=2)
    put(url, b"content")
    assert read_range(url) == b"content" and object_store.faults.done == {"refuse": 2}


def test_what_is_not_there_is_said_at_once(object_store):
    with pytest.raises(FileNotFoundError):
        read_range(f"{object_store.root}/absent")
    assert len([path for _, path in object_store.faults.seen if "absent" in path]) == 1


def test_an_unknown_scheme_is_a_mistake_and_a_missing_package_names_the_extra(monkeypatch):
    with pytest.raises(UsageError, match="nothing is known of nonsense://"):
        read_range("nonsense://a/b")
    monkeypatch.setitem(__import__("sys").modules, "gcsfs", None)
    with pytest.raises(MissingExtraError, match=r'pip install "headstart\[gs\]"'):
        read_range("gs://a/b")


def test_what_a_library_says_in_its_own_words_is_an_error_of_the_system():
    from botocore.exceptions import NoCredentialsError, ParamValidationError

    def fails(error):
        raise error

    with pytest.raises(PermissionError, match="Unable to locate credentials"):
        retried(lambda: fails(NoCredentialsError()), "s3://b")
    with pytest.raises(OSError, match="Invalid bucket name"):
        retried(lambda: fails(ParamValidationError(report="Invalid bucket name")), "s3://B B")
    with pytest.raises(PermissionError, match="Forbidden: gs://b"):
        retried(lambda: fails(OSError("Forbidden: gs://b")), "gs://b")
    with pytest.raises(ZeroDivisionError):
        retried(lambda: 1 / 0, "s3://b")


def test_errors_that_pass_are_told_from_those_that_stay():
    assert passes(TimeoutError()) and passes(ConnectionResetError()) and passes(OSError(5, "io"))
    assert not passes(FileNotFoundError()) and not passes(PermissionError()) and not passes(ValueError())
