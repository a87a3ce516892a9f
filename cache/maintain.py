"""Looking after a cache: what is in it."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from ..errors import HeadstartError, printable
from .listing import load_listings
from .part import read_keys
from .publish import TEMPORARY_SUFFIX
from .store import FeatureStore


@dataclass(frozen=True, slots=True)
class SpaceInfo:
    """One feature space: id, what it is, parts, rows, bytes on disk, time of its newest part in seconds since 1970."""

    id: str
    backbone: str
    layer: str
    dim: int
    parts: int
    rows: int
    bytes: int
    newest: float


@dataclass(frozen=True, slots=True)
class CacheInfo:
    """What a cache holds.

    Attributes
    ----------
    root : Path
    spaces : tuple of SpaceInfo
    datasets : tuple of dict
        Root, images, failures and spaces of each dataset's latest listing.
    temporary, quarantined : int
        Files of unfinished writes, and damaged files that were set aside.
    problems : tuple of str
        What could not be read.
    """

    root: Path
    spaces: tuple[SpaceInfo, ...]
    datasets: tuple[dict[str, Any], ...]
    temporary: int
    quarantined: int
    problems: tuple[str, ...] = field(default=())
    on_stdout: ClassVar[bool] = True

    def lines(self) -> list[str]:
        """Return the same for people."""
        total = self.summary()
        lines = [f"{self.root}: {total['rows']} embeddings in {total['parts']} parts, {total['bytes'] / 1e6:.1f} MB"]
        for space in self.spaces:
            when = time.strftime("%Y-%m-%d %H:%M", time.localtime(space.newest)) if space.parts else "never written"
            what = f"{space.backbone}, layer {space.layer}, {space.dim} wide"
            lines.append(f"  space {space.id}: {what}: {space.rows} rows, {space.bytes / 1e6:.1f} MB, {when}")
        for dataset in self.datasets:
            counts = f"{dataset['images']} images, {dataset['failed']} failed, {dataset['classes']} classes"
            lines.append(f"  dataset {printable(dataset['root'])}: {counts}")
        if self.temporary:
            lines.append(f"  {self.temporary} temporary files of unfinished writes")
        if self.quarantined:
            lines.append(f"  {self.quarantined} damaged files in {self.root / 'quarantine'}")
        return lines + [f"  problem: {problem}" for problem in self.problems]

    def summary(self) -> dict[str, Any]:
        """Return the fields of ``cache info --json``."""
        names = SpaceInfo.__slots__
        return {
            "cache": str(self.root),
            "parts": sum(space.parts for space in self.spaces),
            "rows": sum(space.rows for space in self.spaces),
            "bytes": sum(space.bytes for space in self.spaces),
            "spaces": [{name: getattr(space, name) for name in names} for space in self.spaces],
            "datasets": list(self.datasets),
            "temporary": self.temporary,
            "quarantined": self.quarantined,
            "problems": list(self.problems),
        }


def info(root: Path) -> CacheInfo:
    """Return what the cache under `root` holds; nothing is changed, and an absent cache holds nothing."""
    store = FeatureStore(root)
    problems: list[str] = []
    spaces = tuple(_space_info(store, folder.name, problems) for folder in sorted(root.glob("spaces/*")))
    seen: dict[str, dict[str, Any]] = {}
    for listing in load_listings(root):
        seen.setdefault(
            listing.dataset_id,
            {
                "root": listing.root,
                "images": len(listing),
                "failed": len(listing.failures),
                "classes": len(listing.classes),
                "spaces": list(listing.spaces),
            },
        )
    temporary = sum(1 for _ in root.rglob(f"*{TEMPORARY_SUFFIX}"))
    quarantined = sum(1 for _ in root.glob("quarantine/*"))
    return CacheInfo(root, spaces, tuple(seen.values()), temporary, quarantined, tuple(problems))


def _space_info(store: FeatureStore, space_id: str, problems: list[str]) -> SpaceInfo:
    backbone, layer, dim = "?", "?", 0
    try:
        space = store.space(space_id)
        backbone, layer, dim = space.backbone, space.layer, space.dim
    except HeadstartError as error:
        problems.append(str(error))
    rows = size = 0
    newest = 0.0
    parts = store.parts(space_id)
    for path in parts:
        try:
            rows += len(read_keys(path))
        except HeadstartError as error:
            problems.append(str(error))
        facts = os.stat(path)  # noqa: PTH116  (one call for both)
        size, newest = size + facts.st_size, max(newest, facts.st_mtime)
    return SpaceInfo(space_id, backbone, layer, dim, len(parts), rows, size, newest)
