import pickle
from pathlib import Path

import pytest

from headstart.cache.place import RemotePath, below, place_of
from headstart.cache.store import cache_dir, cache_option
from headstart.errors import UsageError


def test_a_folder_is_a_path_and_a_url_is_none():
    assert place_of("a/b") == Path("a/b") and place_of(Path("a")) == Path("a")
    assert place_of("s3://bucket/a//b/") == RemotePath("s3://bucket/a/b")
    assert place_of("S3://Bucket/A") == RemotePath("s3://Bucket/A"), "names have cases, schemes have none"
    assert place_of("gs://bucket") == RemotePath("gs://bucket")
    assert place_of(RemotePath("s3://b")) == RemotePath("s3://b")
    assert not hasattr(RemotePath, "__fspath__"), "nothing may open a file of this machine by a URL"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            "https://host/cache",
            "a cache cannot be at https://host/cache; pass --cache with a folder, s3://bucket/prefix",
        ),
        ("file:///tmp/cache", "a cache cannot be at"),
        ("s3://", "names no bucket"),
        ("s3:///prefix", "names no bucket"),
        (Path("s3://bucket/prefix"), "s3:/bucket/prefix has lost a slash"),
    ],
)
def test_what_no_cache_can_be_at_is_a_mistake(given, said):
    with pytest.raises(UsageError, match=said):
        place_of(given)


def test_a_url_has_the_parts_that_a_path_has():
    part = RemotePath("s3://bucket/cache") / "spaces" / "ab" / "1-2.h5"
    assert (str(part), part.name, part.stem) == ("s3://bucket/cache/spaces/ab/1-2.h5", "1-2.h5", "1-2")
    assert part.parent.name == "ab" and part.parent.parent.parent == RemotePath("s3://bucket/cache")
    assert RemotePath("s3://bucket").parent == RemotePath("s3://bucket")
    assert below(part, RemotePath("s3://bucket/cache")) == "spaces/ab/1-2.h5"
    assert below(Path("a/b/c"), Path("a")) == str(Path("b/c"))


def test_a_place_can_be_sent_to_another_process_sorted_and_looked_up():
    known, anew = RemotePath("s3://b/a", size=5), RemotePath("s3://b/a")
    assert known == anew and hash(known) == hash(anew), "what a listing says of it is no part of the name"
    sent = pickle.dumps(known)
    assert pickle.loads(sent) == known and pickle.loads(sent).size == 5 and len(sent) < 300
    assert sorted([RemotePath("s3://b/b"), known]) == [known, RemotePath("s3://b/b")]


def test_the_option_that_leads_to_a_bucket(monkeypatch):
    assert cache_option(cache_dir("s3://b/a b")) == " --cache 's3://b/a b'"
    monkeypatch.setenv("HEADSTART_CACHE", "s3://b/a/")
    assert cache_dir() == RemotePath("s3://b/a") and cache_option(cache_dir("s3://b/a")) == ""
