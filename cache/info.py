"""What is in a cache: spaces, rows, bytes, datasets, and what is left over."""

from __future__ import annotations

import errno
import time
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import numpy as np

from ..errors import CacheError, CacheMissError, DamagedFileError, HeadstartError, printable
from .datasets import digests_in_use, listing_paths
from .index import KeyIndex
from .listing import Listing, read_listing
from .part import PLAIN_RECIPE, Keys, recipe_name, recipe_words, recipes_of
from .place import Place
from .running import announced
from .storage import entries, files
from .store import FeatureStore
from .temporary import temporary_files


@dataclass(frozen=True, slots=True)
class ViewsInfo:
    """The views of one recipe in a feature space, beside the plain crops, which belong to every recipe.

    Attributes
    ----------
    augment : str
        The preset; of a recipe that is described in another way, its description.
    version : int or None
        The preset's number; None where the description has none.
    images : int
        Images that have such a view.
    views : int
        How many the image with most of them has, by the highest number of a view; the plain crop is among them.
    rows : int
        Different keys of this recipe; fewer than ``images * (views - 1)`` where some images have fewer views.
    """

    augment: str
    version: int | None
    images: int
    views: int
    rows: int

    def words(self) -> str:
        """Return the same for people."""
        most = "" if self.rows == self.images * (self.views - 1) else "up to "
        return f"{most}{self.views} of {recipe_words(self.augment, self.version)} for {self.images} images"


@dataclass(frozen=True, slots=True)
class SpaceInfo:
    """One feature space.

    Attributes
    ----------
    id, backbone, layer : str
    dim : int
    parts, rows, bytes : int
        Parts that readers look at, different keys in them, and bytes on disk, superseded parts included.
    copies, orphans : int
        Rows that an earlier part holds too; rows of images that no dataset's latest listing has.
    superseded : int
        Parts that a compaction replaced and that wait to be deleted.
    newest, used : float
        When a part was last added, and when rows were last read or added; seconds since 1970, 0 for never.
    views : tuple of ViewsInfo
        One a recipe.
    """

    id: str
    backbone: str
    layer: str
    dim: int
    parts: int
    rows: int
    bytes: int
    copies: int
    orphans: int
    superseded: int
    newest: float
    used: float
    views: tuple[ViewsInfo, ...]


@dataclass(frozen=True, slots=True)
class CacheInfo:
    """What a cache holds.

    Attributes
    ----------
    root : Path or RemotePath
    spaces : tuple of SpaceInfo
    datasets : tuple of dict
        Id, root, images, failures, classes and spaces of each dataset's latest listing.
    temporary, quarantined, running : int
        Files of unfinished writes; damaged files that were set aside; runs that are going on.
    problems : tuple of str
        What could not be read.
    """

    root: Place
    spaces: tuple[SpaceInfo, ...]
    datasets: tuple[dict[str, Any], ...]
    temporary: int
    quarantined: int
    running: int
    problems: tuple[str, ...] = field(default=())
    on_stdout: ClassVar[bool] = True

    @property
    def backbones(self) -> list[str]:
        """Names of the backbones that there are embeddings of."""
        return sorted({space.backbone for space in self.spaces if space.backbone != "?"})

    def lines(self) -> list[str]:
        """Return the same for people."""
        total = self.summary()
        lines = [f"{self.root}: {total['rows']} embeddings in {total['parts']} parts, {total['bytes'] / 1e6:.1f} MB"]
        for space in self.spaces:
            lines += _space_lines(space)
        for dataset in self.datasets:
            counts = f"{dataset['images']} images, {dataset['failed']} failed, {dataset['classes']} classes"
            lines.append(f"  dataset {printable(dataset['root'])}: {counts}")
        if self.temporary:
            lines.append(
                f"  {self.temporary} temporary files of unfinished writes; `headstart cache compact` removes those "
                "that are a day old"
            )
        if self.quarantined:
            lines.append(f"  {self.quarantined} damaged files in {self.root / 'quarantine'}")
        if self.running:
            lines.append(f"  {self.running} runs are using the cache")
        return lines + [f"  problem: {printable(problem)}" for problem in self.problems]

    def summary(self) -> dict[str, Any]:
        """Return the fields of ``cache info --json``."""
        return {
            "cache": str(self.root),
            "parts": sum(space.parts for space in self.spaces),
            "rows": sum(space.rows for space in self.spaces),
            "bytes": sum(space.bytes for space in self.spaces),
            "backbones": self.backbones,
            "orphans": sum(space.orphans for space in self.spaces),
            "spaces": [asdict(space) for space in self.spaces],
            "datasets": list(self.datasets),
            "temporary": self.temporary,
            "quarantined": self.quarantined,
            "running": self.running,
            "problems": list(self.problems),
        }


def _space_lines(space: SpaceInfo) -> list[str]:
    what = printable(f"{space.backbone}, layer {space.layer}, {space.dim} wide")
    used = f"last used {_when(space.used)}" if space.parts else "empty"
    lines = [f"  space {space.id}: {what}: {space.rows} rows, {space.bytes / 1e6:.1f} MB, {used}"]
    if space.views:
        lines.append(f"    views: {', '.join(views.words() for views in space.views)}")
    leftovers = []
    if space.orphans:
        leftovers.append(f"{space.orphans} rows of images that no dataset has now (`headstart cache compact --prune`)")
    if space.copies:
        leftovers.append(f"{space.copies} copies")
    if space.superseded:
        leftovers.append(f"{space.superseded} superseded parts (`headstart cache compact`)")
    return lines + ([f"    {', '.join(leftovers)}"] if leftovers else [])


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def info(root: Place) -> CacheInfo:
    """Return what the cache under `root` holds; nothing is changed, and an absent cache holds nothing."""
    store = FeatureStore(root)
    problems: list[str] = []
    listings = _readable_listings(root, problems)
    listed = KeyIndex([Keys.plain(digests_in_use(found)) for found in listings.values()])
    return CacheInfo(
        root,
        spaces=tuple(_space_info(store, space_id, listed, problems) for space_id in store.space_ids()),
        datasets=tuple(_dataset_info(dataset, found[0]) for dataset, found in listings.items()),
        temporary=sum(1 for _ in temporary_files(root)),
        quarantined=_quarantined(root),
        running=sum(alive for _, alive in announced(root)),
        problems=tuple(problems),
    )


def _quarantined(root: Place) -> int:
    try:
        return len(files(root / "quarantine", ""))
    except CacheError as error:
        if error.errno != errno.ENOTDIR:  # a file is in the way of the folder: then nothing was moved there
            raise
        return 0


def _readable_listings(root: Place, problems: list[str]) -> dict[str, list[Listing]]:
    """Return the listings of each dataset that can be read and count, by id; the latest first."""
    found: dict[str, list[Listing]] = {}
    for path in listing_paths(root):
        known = found.setdefault(path.parent.name, [])
        if known and not known[-1].partial:
            continue
        try:
            known.append(read_listing(path))
        except FileNotFoundError:
            continue
        except (OSError, HeadstartError) as error:
            problems.append(str(error))
    return {dataset: listings for dataset, listings in found.items() if listings}


def _dataset_info(dataset: str, listing: Listing) -> dict[str, Any]:
    return {
        "id": dataset,
        "root": listing.root,
        "images": len(listing),
        "failed": len(listing.failures),
        "classes": len(listing.classes),
        "spaces": list(listing.spaces),
    }


def _space_info(store: FeatureStore, space_id: str, listed: KeyIndex, problems: list[str]) -> SpaceInfo:
    backbone, layer, dim = "?", "?", 0
    try:
        space = store.space(space_id)
        backbone, layer, dim = space.backbone, space.layer, space.dim
        store.described_space(space_id)
    except (CacheMissError, DamagedFileError) as error:
        problems.append(f"{error}; `headstart cache verify` writes it again where that is possible")
    except HeadstartError as error:
        problems.append(str(error))
    heads, bad = store.survey(space_id)
    problems += [str(error) for _, error in bad]
    index = KeyIndex([head.keys for head in heads])
    first = index.first()
    unlisted = listed.find(Keys.plain(index.keys.digest)) < 0
    files = entries(store.space_folder(space_id))
    parts = [path for path in store.parts(space_id) if path.name in files]
    live, damaged = {head.path for head in heads}, {path for path, _ in bad}
    return SpaceInfo(
        space_id,
        backbone,
        layer,
        dim,
        parts=len(heads),
        rows=int(first.sum()),
        bytes=sum(files[path.name].size for path in parts),
        copies=int((~first).sum()),
        orphans=int(np.count_nonzero(first & unlisted)),
        superseded=sum(path not in live and path not in damaged for path in parts),
        newest=max((files[path.name].modified for path in parts), default=0.0),
        used=files["space.json"].modified if "space.json" in files else 0.0,
        views=_views_info(index.keys[first], recipes_of(heads)),
    )


def _views_info(keys: Keys, recipes: dict[str, Any]) -> tuple[ViewsInfo, ...]:
    """Count the views of each recipe among different keys."""
    found = []
    for recipe in np.unique(keys.recipe[keys.recipe != PLAIN_RECIPE]).tolist():
        mine = keys[keys.recipe == recipe]
        images = int(KeyIndex([Keys.plain(mine.digest)]).first().sum())
        augment, version = recipe_name(recipes.get(str(recipe)))
        found.append(ViewsInfo(augment, version, images, int(mine.view.max()) + 1, len(mine)))
    return tuple(sorted(found, key=lambda views: (views.augment, views.version or 0)))
