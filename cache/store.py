"""The store of embeddings: what is there, add rows, gather rows. Any number of processes may use one folder at once."""

from __future__ import annotations

import json
import logging
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CacheError, CacheFormatError, CacheMissError, DamagedFileError
from .index import KeyIndex
from .part import Keys, is_part, read_embeddings, read_keys, write_part
from .publish import publish, write_error
from .space import FeatureSpace

logger = logging.getLogger("headstart.cache")

DEFAULT_CACHE = ".headstart"
PART_BYTES = 64 << 20
FIRST_PART_SECONDS = 2.0
LONGEST_PART_SECONDS = 30.0


def cache_dir(given: str | os.PathLike[str] | None = None) -> Path:
    """Return the cache's folder: the one given, else ``HEADSTART_CACHE``, else ``.headstart`` where we are."""
    return Path(given or os.environ.get("HEADSTART_CACHE") or DEFAULT_CACHE)


class FeatureStore:
    """Embeddings at rest under one folder.

    Parameters
    ----------
    root : Path
        The cache's folder; it need not exist yet.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def space_folder(self, space_id: str) -> Path:
        """Return the folder of a feature space."""
        return self.root / "spaces" / space_id

    def spaces(self) -> dict[str, FeatureSpace]:
        """Return the feature spaces that the cache holds, by id."""
        return {
            path.parent.name: self.space(path.parent.name) for path in sorted(self.root.glob("spaces/*/space.json"))
        }

    def space(self, space_id: str) -> FeatureSpace:
        """Return one feature space.

        Raises
        ------
        CacheMissError
            The cache has no such space.
        DamagedFileError
            Its ``space.json`` cannot be read, or describes another space.
        """
        path = self.space_folder(space_id) / "space.json"
        try:
            space = FeatureSpace.from_dict(json.loads(path.read_bytes())["space"])
        except FileNotFoundError as error:
            raise CacheMissError(
                f"the cache {self.root} has no feature space {space_id}; run `headstart extract`"
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, CacheFormatError):
                raise
            raise DamagedFileError(f"{path} is damaged: {error}") from error
        if space.id != space_id:
            raise DamagedFileError(f"{path} is damaged: it describes space {space.id}")
        return space

    def parts(self, space_id: str) -> list[Path]:
        """Return the parts of a space by name, which is by time. A folder that is not there has none."""
        try:
            with os.scandir(self.space_folder(space_id)) as entries:
                paths = [Path(entry.path) for entry in entries]
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(path for path in paths if is_part(path))

    def prepare(self, space: FeatureSpace, facts: dict[str, Any] | None = None) -> None:
        """Make the folder of a space, with its readable description, before anything costly begins.

        Parameters
        ----------
        space : FeatureSpace
            The space that rows will be added to.
        facts : dict, optional
            Kept beside the description and not part of it: versions of libraries, say.

        Raises
        ------
        CacheError
            The cache cannot be written.
        """
        probe = self.root / f".probe-{secrets.token_hex(6)}.tmp"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            probe.touch(exist_ok=False)
            probe.unlink()
        except OSError as error:
            raise _unwritable(error, self.root) from error
        if not (self.root / ".gitignore").exists():
            publish(self.root / ".gitignore", b"*\n")
        path = self.space_folder(space.id) / "space.json"
        if not path.exists():
            content = {"space": space.as_dict(), "id": space.id, "facts": facts or {}}
            publish(path, json.dumps(content, indent=2, sort_keys=True).encode("ascii"))

    def index(self, space_id: str) -> tuple[KeyIndex, list[Path]]:
        """Read the keys of all parts of a space.

        Returns
        -------
        index : KeyIndex
        parts : list of Path
            The files that ``index.part`` counts. A damaged one is set aside, with a warning, and not among them.
        """
        paths, keys = [], []
        for path in self.parts(space_id):
            try:
                keys.append(read_keys(path))
                paths.append(path)
            except FileNotFoundError:
                logger.debug("%s went away while the cache was read", path)
            except DamagedFileError as error:
                self.quarantine(path, error)
        return KeyIndex(keys), paths

    def gather(self, space_id: str, keys: Keys) -> np.ndarray:
        """Read embeddings in the order of `keys`.

        Memory is the result and one part.

        Returns
        -------
        ndarray of shape (len(keys), D), dtype float32

        Raises
        ------
        CacheMissError
            Some keys are not in the cache, or were in a part that turned out to be damaged.
        """
        while True:
            index, paths = self.index(space_id)
            places = index.find(keys)
            missing = int((places < 0).sum())
            if missing:
                raise CacheMissError(
                    f"the cache {self.root} lacks {missing} of {len(keys)} embeddings; run `headstart extract`"
                )
            result = np.empty((len(keys), self.space(space_id).dim), np.float32)
            if self._fill(result, index, paths, places):
                return result

    def _fill(self, result: np.ndarray, index: KeyIndex, paths: list[Path], places: np.ndarray) -> bool:
        """Copy rows part by part; False when a part was damaged or has gone, and the index must be read again."""
        part = index.part[places]
        for number in np.unique(part):
            wanted = np.flatnonzero(part == number)
            try:
                result[wanted] = read_embeddings(paths[number])[index.row[places[wanted]]]
            except FileNotFoundError:
                return False
            except DamagedFileError as error:
                self.quarantine(paths[number], error)
                return False
        return True

    def quarantine(self, path: Path, reason: Exception) -> None:
        """Set a damaged file aside and say so; where the cache is read-only it raises, for it cannot be passed over."""
        place = self.root / "quarantine" / path.name
        try:
            place.parent.mkdir(exist_ok=True)
            os.replace(path, place)  # noqa: PTH105  (one call that tests can make fail)
        except FileNotFoundError:
            return
        except OSError as error:
            raise DamagedFileError(f"{reason}; it cannot be set aside ({error.strerror})") from error
        logger.warning("%s; moved to %s, run `headstart extract` to embed its images again", reason, place)

    def writer(self, space: FeatureSpace, on_part: Callable[[int], None] | None = None) -> PartWriter:
        """Return a writer of rows in `space`, which `prepare` has been called for."""
        return PartWriter(self, space, on_part)


def _unwritable(error: OSError, folder: Path) -> CacheError:
    translated = write_error(error, folder)
    if "read-only" in str(translated):
        translated = CacheError(f"cache {folder} is read-only: pass --cache with a folder that can be written")
    return translated


class PartWriter:
    """Collects rows and cuts them into parts: after 2 s, then at doubling intervals to 30 s, or at 64 MiB.

    So a killed process loses seconds of work, and a long one leaves few files. ``HEADSTART_PART_SECONDS`` fixes the
    interval, for tests. Use it as a context manager: leaving it publishes what is left, whatever the reason.

    Parameters
    ----------
    store : FeatureStore
    space : FeatureSpace
    on_part : callable, optional
        Called with the number of rows that are safe, after each part.
    """

    def __init__(self, store: FeatureStore, space: FeatureSpace, on_part: Callable[[int], None] | None = None) -> None:
        self._folder = store.space_folder(space.id)
        self._space = space
        self._on_part = on_part
        self._fixed = float(os.environ.get("HEADSTART_PART_SECONDS") or 0)
        self._interval = self._fixed or FIRST_PART_SECONDS
        self._rows: list[np.ndarray] = []
        self._digests: list[np.ndarray] = []
        self._bytes = 0
        self._since = time.monotonic()
        self.published = 0

    def __enter__(self) -> PartWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.flush()

    def add(self, digest: np.ndarray, embedding: np.ndarray) -> None:
        """Add rows of view 0.

        Parameters
        ----------
        digest : ndarray of shape (n, 32), dtype uint8
        embedding : ndarray of shape (n, D)
            Converted to the space's dtype.

        Raises
        ------
        CacheError
            A part could not be written. What was published before is safe.
        """
        rows = np.ascontiguousarray(embedding, dtype=self._space.dtype)
        self._rows.append(rows)
        self._digests.append(digest)
        self._bytes += rows.nbytes
        if self._bytes >= PART_BYTES or time.monotonic() - self._since >= self._interval:
            self.flush()
            if not self._fixed:
                self._interval = min(2 * self._interval, LONGEST_PART_SECONDS)

    def flush(self) -> None:
        """Publish what was added since the last part."""
        if self._rows:
            rows = np.concatenate(self._rows)
            keys = Keys.plain(np.concatenate(self._digests))
            self._rows, self._digests, self._bytes = [], [], 0
            try:
                write_part(self._folder, self._space, keys, rows, {})
            except CacheError as error:
                error.args = (f"{error.args[0]}; {self.published} images of this run are safe",)
                raise
            self.published += len(rows)
            if self._on_part:
                self._on_part(self.published)
        self._since = time.monotonic()
