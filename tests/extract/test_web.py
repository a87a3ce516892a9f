"""Pictures on a web server: pages that list files, CSVs, tars; a real server on loopback."""

import functools
import http.server
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from remote_pictures import SMALL
from tar_files import samples_of, write_tar

import headstart
from headstart.cache import remote
from headstart.cache.source import Url
from headstart.errors import DataError, DataNotFoundError
from headstart.extract import bucket, tars, web
from headstart.extract.access import access_to, read_anywhere
from headstart.extract.images import list_images, list_paths


@dataclass
class Site:
    """A server, what it was asked for, and what it is to answer otherwise."""

    url: str
    folder: Path
    seen: list[tuple[str, str]] = field(default_factory=list)
    answers: dict[str, int] = field(default_factory=dict)  # path -> status, to requests of any kind
    bare: bool = False  # neither a time nor an ETag
    ranges: bool = False


class Handler(http.server.SimpleHTTPRequestHandler):
    site: Site
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def _refused(self) -> bool:
        self.site.seen.append((self.command, self.path))
        status = self.site.answers.get(self.path)
        if status:
            self.send_error(status)
        return bool(status)

    def do_GET(self) -> None:
        path = self.translate_path(self.path)
        wanted = self.headers.get("Range")
        if self._refused():
            return
        if self.site.ranges and wanted and Path(path).is_file():
            data = Path(path).read_bytes()
            first, last = (int(word or len(data)) for word in wanted.removeprefix("bytes=").split("-"))
            part = data[first : last + 1]
            self.send_response(206)
            self.send_header("Content-Length", str(len(part)))
            self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(data)}")
            self.end_headers()
            self.wfile.write(part)
            return
        super().do_GET()

    def do_HEAD(self) -> None:
        if not self._refused():
            super().do_HEAD()

    def send_header(self, keyword: str, value: str) -> None:
        if not (self.site.bare and keyword == "Last-Modified"):
            super().send_header(keyword, value)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.01)
    folder = tmp_path / "site"
    folder.mkdir()
    found = Site("", folder)
    handler = functools.partial(type("Own", (Handler,), {"site": found}), directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    found.url = f"http://127.0.0.1:{server.server_port}"
    remote.filesystem.cache_clear()
    yield found
    server.shutdown()
    server.server_close()
    remote.filesystem.cache_clear()


@pytest.fixture
def photos(site: Site, few: Path) -> str:
    """Put the photographs there under names that a URL has to escape; old enough to be believed."""
    for number, path in enumerate(sorted(few.rglob("*.jpg"))):
        target = site.folder / "photos" / path.parent.parent.name / path.parent.name / f"ü {number}#%.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
        os.utime(target, (1_700_000_000, 1_700_000_000))
    return f"{site.url}/photos"


def gets(site: Site) -> list[str]:
    return [path for method, path in site.seen if method == "GET" and path.endswith(".jpg")]


def test_pages_that_list_files_read_as_folders_do(site: Site, photos: str, tmp_path: Path) -> None:
    there, here = list_images(photos), list_images(site.folder / "photos")
    assert list(there.paths) == list(here.paths) and there.classes == here.classes == ("ants", "bees")
    assert there.split.tolist() == here.split.tolist() and not there.unreadable
    found = headstart.extract(photos, cache=tmp_path / "cache", **SMALL)
    local = headstart.extract(site.folder / "photos", cache=tmp_path / "cache", **SMALL)
    assert (found.embedded, local.embedded) == (36, 0)
    assert "/train/ants/%C3%BC%20" in found.paths[0] and found.paths[0].endswith("%23%25.jpg")
    site.seen.clear()
    assert headstart.extract(photos + "/", cache=tmp_path / "cache", **SMALL).embedded == 0
    assert not gets(site)


def test_pictures_that_nothing_tells_an_edit_of_are_read_each_time(site: Site, photos: str, tmp_path: Path) -> None:
    site.bare = True
    found = headstart.extract(photos, cache=tmp_path / "cache", **SMALL)
    site.seen.clear()
    again = headstart.extract(photos, cache=tmp_path / "cache", **SMALL)
    assert (found.embedded, again.embedded, len(gets(site))) == (36, 0, 36)
    assert [note for note in list_images(photos).notes if "read again by each extract" in note] == [
        "36 pictures: their server does not say when they were written, so they are read again by each extract"
    ]


@pytest.mark.parametrize(("status", "reason"), [(403, "the server answers 403"), (404, "not found"), (503, "given up")])
def test_an_answer_that_stays_is_a_failure_of_that_picture(
    site: Site, photos: str, tmp_path: Path, status: int, reason: str
) -> None:
    images = list_images(photos)
    access = access_to(os.fsencode(photos), images.paths, images.stat, np.arange(1))
    path = next(path for _, path in site.seen if path.endswith(".jpg") and "/train/ants/" in path)
    site.answers[path] = status
    site.seen.clear()
    found = headstart.extract(photos, cache=tmp_path / "cache", **SMALL)
    assert found.embedded == 35
    assert len(found.failures) == 1
    row = next(row for row, why in list_images(photos).unreadable.items())
    with pytest.raises(ValueError, match=reason):
        access_to(os.fsencode(photos), images.paths, images.stat, np.array([row])).read(row, images.paths[row])
    assert access.in_flight == 32
    if status != 503:
        assert site.seen.count(("GET", path)) <= 3  # another try would change nothing
    site.answers.clear()
    assert headstart.extract(photos, cache=tmp_path / "cache", **SMALL).embedded == 1


def test_what_is_not_there_is_one_line(site: Site) -> None:
    with pytest.raises(DataNotFoundError, match="nothing is there: http://"):
        list_images(f"{site.url}/none")
    with pytest.raises(DataNotFoundError, match="no such image"):
        list_paths([f"{site.url}/none.jpg"])
    with pytest.raises(DataError, match=r"no images in http://"):
        list_images(site.url)
    site.answers["/list.csv"] = 403
    with pytest.raises(DataError, match=r"permission denied|the server answers 403"):
        list_images(f"{site.url}/list.csv")


def test_a_csv_and_links_beside_it(site: Site, photos: str, tmp_path: Path) -> None:
    names = [os.fsdecode(name) for name in list_images(photos).paths]
    lines = [f'"{names[0]}",a', f'"{names[1]}",b', f"{photos}/none.jpg,a"]
    for name in ("list.csv", "export.txt"):
        (site.folder / "photos" / name).write_text("path,label\n" + "\n".join(lines) + "\n")
        found = headstart.extract(f"{photos}/{name}", cache=tmp_path / name, **SMALL)
        assert found.embedded == 2 and list(found.failures) == [(f"{photos}/none.jpg", "not found")]


def test_tars_and_members_whose_names_have_to_be_escaped(site: Site, few: Path, tmp_path: Path) -> None:
    site.ranges = True
    pictures = sorted((few / "val").rglob("*.jpg"))
    entries = [(f"{path.parent.name}/ü {number}.jpg", path.read_bytes()) for number, path in enumerate(pictures)]
    write_tar(site.folder / "some shards" / "a b.tar", entries)
    for data in ("some%20shards/a%20b.tar", "some%20shards"):
        found = headstart.extract(f"{site.url}/{data}", cache=tmp_path / "cache", **SMALL)
        assert len(found.paths) == 12 and not found.failures and found.classes == ("ants", "bees")
        for path, picture in zip(sorted(found.paths), sorted(entries), strict=True):
            assert read_anywhere(path)[0] == picture[1]


def test_pages_without_end_are_left(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "MOST_PAGES", 20)
    page, opened = "/photos/", []

    def ls(_: object, where: str, detail: bool) -> list[dict[str, str]]:
        opened.append(where)
        return [{"name": where + "photos/"}]

    monkeypatch.setattr(type(remote.filesystem("http")), "ls", ls)
    with pytest.raises(DataError, match="leads to more than 20 pages"):
        list(web.links_below(Url(site.url + page.rstrip("/"))))
    assert len(opened) == 20


def test_links_are_read_as_a_browser_reads_them(site: Site, few: Path, tmp_path: Path) -> None:
    picture = next((few / "val").rglob("*.jpg")).read_bytes()
    for folder in ("cats&dogs", "it's"):
        (site.folder / "p" / folder).mkdir(parents=True)
        (site.folder / "p" / folder / "1.jpg").write_bytes(picture)
    (site.folder / "p" / "index.html").write_text(
        '<a href="cats&amp;dogs/1.jpg">1</a><a href="it&#39;s/1.jpg">2</a><a href="x%00.jpg">3</a>'
    )
    found = list_images(f"{site.url}/p")
    assert list(found.paths) == [b"cats&dogs/1.jpg", b"it's/1.jpg"] and not found.unreadable


def test_a_large_tar_is_not_fetched_again_for_each_of_its_parts(
    site: Site, few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket, "_WHOLE_FOR_A_PART", 10_000)
    write_tar(site.folder / "shards" / "a.tar", samples_of(sorted((few / "val").rglob("*.jpg"))))
    monkeypatch.setattr(tars, "FETCHED", 5_000)
    images = list_images(f"{site.url}/shards")
    assert [why for _, why in images.unreadable.items()] == [
        "cannot be read: the server gives no parts of files, and this one is large: copy it first"
    ]


@pytest.mark.parametrize("ranges", [True, False])
def test_tars_of_a_web_server(site: Site, few: Path, tmp_path: Path, ranges: bool) -> None:
    """A server that knows no ranges sends all of a tar, of which what was asked for is taken."""
    site.ranges = ranges
    for split in ("train", "val"):
        write_tar(site.folder / "shards" / f"{split}-0.tar", samples_of(sorted((few / split).rglob("*.jpg"))))
    for data in ("shards", "shards/{train,val}-0.tar"):
        found = headstart.extract(f"{site.url}/{data}", cache=tmp_path / "cache", **SMALL)
        assert sorted(found.split.tolist()) == ["train"] * 24 + ["val"] * 12
        assert not found.failures
    local = headstart.extract(few, cache=tmp_path / "cache", **SMALL)
    assert local.embedded == 0


def test_links_lead_nowhere_else(site: Site, photos: str) -> None:
    """A page may link to anything; only what lies below it is listed, and only once."""
    (site.folder / "photos" / "index.html").write_text(
        '<a href="train/">t</a> <a href="train/?C=N;O=D">sorted</a> <a href="../secret.jpg">up</a>'
        '<a href="http://127.0.0.1:1/evil.jpg">there</a> <a href="/other/x.jpg">root</a> <a href="train/">again</a>'
    )
    images = list_images(photos)
    assert len(images.paths) == 24 and all(name.startswith((b"ants/", b"bees/", b"train/")) for name in images.paths)
    assert not any("secret" in path or "other" in path for _, path in site.seen)
