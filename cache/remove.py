"""Remove a feature space, or the listings of a dataset, from a cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import CacheMissError, UsageError
from .datasets import listing_paths, load_named
from .listing import dataset_id
from .place import Place
from .source import source_of
from .storage import remove_folder
from .store import FeatureStore


@dataclass(frozen=True, slots=True)
class Removal:
    """What was removed: its kind ("space" or "dataset"), its id, what it was, rows or listings, and bytes on disk."""

    kind: str
    id: str
    name: str
    count: int
    bytes: int

    def summary(self) -> dict[str, Any]:
        """Return the fields of ``cache remove --json``."""
        return {
            "removed": self.kind,
            "id": self.id,
            "name": self.name,
            "rows" if self.kind == "space" else "listings": self.count,
            "bytes": self.bytes,
        }

    def lines(self) -> list[str]:
        """Return the same for people."""
        if self.kind == "space":
            return [f"removed space {self.id} ({self.name}): {self.count} rows, {self.bytes / 1e6:.1f} MB"]
        return [
            f"removed {self.count} listings of {self.name}; its embeddings are still there: "
            "`headstart cache compact --prune` drops those that no other dataset has"
        ]


def remove(root: Place, *, space: str | None = None, dataset: str | None = None) -> Removal:
    """Remove a feature space or a dataset, whichever is named.

    Raises
    ------
    UsageError
        Neither is named, or both are.
    """
    if (space is None) == (dataset is None) or dataset == "":
        raise UsageError("say what to remove: either --space ID or --dataset DATA; `headstart cache info` lists both")
    return remove_space(root, space) if space is not None else remove_dataset(root, str(dataset))


def remove_space(root: Place, wanted: str) -> Removal:
    """Remove a feature space with all its rows.

    Parameters
    ----------
    root : Path or RemotePath
        The cache's folder.
    wanted : str
        The id of the space, or the beginning of it.

    Raises
    ------
    CacheMissError
        There is no such space.
    UsageError
        The beginning fits several.
    """
    store = FeatureStore(root)
    fitting = [space_id for space_id in store.space_ids() if wanted and space_id.startswith(wanted)]
    if not fitting:
        there = ", ".join(store.space_ids()) or "none"
        raise CacheMissError(
            f"the cache {root} has no feature space {wanted!r} (it has {there}); see `headstart cache info`"
        )
    if len(fitting) > 1:
        raise UsageError(f"{wanted!r} fits {len(fitting)} feature spaces: {', '.join(fitting)}; give more of the id")
    space_id = fitting[0]
    space = store.spaces().get(space_id)
    name = f"{space.backbone}, layer {space.layer}" if space else "unreadable"
    rows = sum(len(head.keys) for head in store.survey(space_id)[0])
    return Removal("space", space_id, name, rows, remove_folder(store.space_folder(space_id)))


def remove_dataset(root: Place, wanted: str) -> Removal:
    """Remove the listings of a dataset; its embeddings stay until they are pruned.

    Parameters
    ----------
    root : Path or RemotePath
        The cache's folder.
    wanted : str
        The dataset's folder or CSV file, or its id, as `headstart cache info --json` shows it.

    Raises
    ------
    CacheMissError
        The cache has no such dataset.
    """
    known = {path.parent.name for path in listing_paths(root)}
    dataset = wanted if wanted in known else dataset_id(source_of(wanted))
    paths = listing_paths(root, dataset) if dataset in known else []
    if not paths:
        names = sorted({f"{name} ({dataset})" for dataset in known for name in load_named(root, dataset)})
        raise CacheMissError(f"the cache {root} holds no dataset {wanted} (it has {', '.join(names) or 'none'})")
    name = next(load_named(root, dataset), wanted)
    return Removal("dataset", dataset, name, len(paths), remove_folder(root / "datasets" / dataset))
