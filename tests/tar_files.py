"""Tars as webdataset writes them, and broken in ways that are met in the wild."""

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

Entry = tuple[str | bytes, bytes]


def tar_of(entries: Iterable[Entry], **options: object) -> bytes:
    """Pack names and contents in this order; names may be any bytes."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", encoding="utf-8", errors="surrogateescape", **options) as tar:
        for name, content in entries:
            info = tarfile.TarInfo(name if isinstance(name, str) else name.decode("utf-8", "surrogateescape"))
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return packed.getvalue()


def samples_of(paths: Iterable[Path], labelled: bool = True) -> list[Entry]:
    """Return photographs as samples of webdataset: a picture and, if wanted, the name of its folder as its class."""
    entries: list[Entry] = []
    for number, path in enumerate(paths):
        entries.append((f"{number:06d}.jpg", path.read_bytes()))
        if labelled:
            entries.append((f"{number:06d}.cls", path.parent.name.encode()))
    return entries


def write_tar(path: Path, entries: Iterable[Entry], **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tar_of(entries, **options))
    return path
