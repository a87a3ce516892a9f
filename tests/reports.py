"""Datasets whose names try to break out of a page, and reports on them."""

import csv
import http.server
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from headstart.classify.fit import fit_head
from headstart.classify.pages.report import Report, report
from headstart.extract.job import extract

BACKBONE = "efficientnet_lite0"
HOSTILE_FILE = "<img src=x onerror=alert(1)>.jpg"
SCRIPT = "ants\"'></td><script>alert(2)</script>"


@dataclass
class Beacon:
    """A server on loopback that notes who asks it for anything."""

    port: int = 0
    asked: list[str] = field(default_factory=list)

    @property
    def label(self) -> str:
        """A class name that would have a browser ask it."""
        return f"bees <img src=http://127.0.0.1:{self.port}/beacon onerror=alert(3)> & {{{{7*7}}}}"


@contextmanager
def beacon() -> Iterator[Beacon]:
    """Listen on a free port while the block runs."""
    found = Beacon()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found.asked.append(self.path)
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.port = server.server_port
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def hostile_dataset(samples: Path, folder: Path, label: str, per_class: tuple[int, int] = (30, 12)) -> Path:
    """Copy real photographs under hostile names into `folder`, listed by a CSV file with hostile classes."""
    folder.mkdir(parents=True)
    rows = []
    for kind, shown in (("ants", SCRIPT), ("bees", label)):
        for split, count in zip(("train", "val"), per_class, strict=True):
            paths = sorted((samples / "hymenoptera" / split / kind).glob("*.jpg"))[:count]
            for number, path in enumerate(paths):
                name = HOSTILE_FILE if not rows else f"{kind}-{split}-{number:02} & <b>.jpg"
                shutil.copyfile(path, folder / name)
                rows.append((name, shown, split))
    # The same picture in train and validation, and one that is taken for the other class most likely: a wrong label.
    shutil.copyfile(folder / rows[0][0], folder / "twin.jpg")
    rows.append(("twin.jpg", SCRIPT, "val"))
    rows[5] = (rows[5][0], label, "train")
    table = folder / "pictures.csv"
    with table.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("path", "label", "split"), *rows])
    return table


def reported(data: Path, folder: Path, **options: object) -> tuple[Report, str]:
    """Extract, fit with a learning curve and few shots, and report; return the report and its text."""
    cache, out = folder / "cache", folder / "report.html"
    extract(data, backbone=BACKBONE, cache=cache)
    fit = fit_head(data, cache=cache, out=folder / "model", curve=True, shots=4, repeats=5)
    made = report(fit.out, out=out, cache=cache, **options)
    return made, out.read_text("utf-8")


def data_of(page: str) -> str:
    """Return the JSON that a page's script reads."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert found
    return found.group(1)
