"""The store of embeddings: what is there, gather rows. Any number of processes may use one folder at once."""

from __future__ import annotations

import json
import logging
import os
import shlex
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CacheError, CacheFormatError, CacheMissError, DamagedFileError, HeadstartError, printable
from .index import KeyIndex
from .part import Keys, PartHead, copy_rows, is_part, read_head
from .publish import make_folder, publish, temporary_path, write_error
from .reading import PartGoneError, folders, gone_or_unreadable, read_error, read_json, repeated
from .space import FeatureSpace
from .writer import PartWriter

logger = logging.getLogger("headstart.cache")

DEFAULT_CACHE = ".headstart"
BLOCK_ROWS = 65_536
# More threads than this gain nothing: two of them read from the page cache as fast as memory allows.
READ_THREADS = 4


def cache_dir(given: str | os.PathLike[str] | None = None) -> Path:
    """Return the cache's folder: the one given, else ``HEADSTART_CACHE``, else ``.headstart`` where we are."""
    return Path(given or os.environ.get("HEADSTART_CACHE") or DEFAULT_CACHE)


def cache_option(root: Path) -> str:
    """Return the option that leads a command to a cache, with a space before it; nothing where it is there anyway."""
    return "" if root.absolute() == cache_dir().absolute() else f" --cache {shlex.quote(printable(str(root)))}"


class FeatureStore:
    """Embeddings at rest under one folder.

    Parameters
    ----------
    root : Path
        The cache's folder; it need not exist yet.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._passed_over: set[str] = set()

    def space_folder(self, space_id: str) -> Path:
        """Return the folder of a feature space."""
        return self.root / "spaces" / space_id

    def space_ids(self) -> list[str]:
        """Return the ids of the feature spaces that have a folder, in order."""
        return folders(self.root / "spaces")

    def spaces(self) -> dict[str, FeatureSpace]:
        """Return the feature spaces that this version can read, by id; `headstart cache info` names the others."""
        found = {}
        for space_id in self.space_ids():
            try:
                found[space_id] = self.space(space_id)
            except HeadstartError as error:
                logger.debug("%s", error)
        return found

    def space(self, space_id: str) -> FeatureSpace:
        """Return one feature space: from its description, or, where that is lost or damaged, from one of its parts.

        Raises
        ------
        CacheMissError
            The cache has no such space.
        DamagedFileError
            Its ``space.json`` cannot be read, or describes another space, and there is no part to tell.
        """
        try:
            return self.described_space(space_id)
        except (CacheMissError, DamagedFileError):
            for path in self.parts(space_id):
                try:
                    return read_head(path).space
                except (OSError, HeadstartError) as error:
                    logger.debug("%s tells nothing of its space: %s", path, error)
            raise

    def described_space(self, space_id: str) -> FeatureSpace:
        """Return what ``space.json`` says, and nothing else; it raises as `space` does."""
        path = self.space_folder(space_id) / "space.json"
        try:
            space = FeatureSpace.from_dict(read_json(path)["space"])
        except FileNotFoundError as error:
            raise CacheMissError(
                f"the cache {self.root} has no feature space {space_id}; run `headstart extract`"
            ) from error
        except CacheFormatError as error:
            raise CacheFormatError(f"{path}: {error}") from error
        except DamagedFileError as error:
            raise DamagedFileError(str(error) if str(path) in str(error) else f"{path} is damaged: {error}") from error
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DamagedFileError(f"{path} is damaged: {error}") from error
        if space.id != space_id:
            raise DamagedFileError(f"{path} is damaged: it describes space {space.id}")
        return space

    def facts(self, space_id: str) -> dict[str, Any]:
        """Return what was noted when a space was made, versions of libraries say; empty where that cannot be read."""
        try:
            facts = read_json(self.space_folder(space_id) / "space.json")["facts"]
        except (OSError, ValueError, KeyError, TypeError):
            return {}
        return facts if isinstance(facts, dict) else {}

    def parts(self, space_id: str) -> list[Path]:
        """Return the parts of a space by name, which is by time. A folder that is not there has none."""
        try:
            with os.scandir(self.space_folder(space_id)) as entries:
                paths = [Path(entry.path) for entry in entries]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise read_error(error, self.space_folder(space_id)) from error
        return sorted(path for path in paths if is_part(path))

    def check_writable(self) -> None:
        """Make the cache's folder where it is missing, and try to write in it.

        Raises
        ------
        CacheError
            The cache cannot be written.
        """
        probe = temporary_path(self.root / "probe")
        try:
            make_folder(self.root)
            probe.touch(exist_ok=False)
            probe.unlink()
        except OSError as error:
            raise _unwritable(error, self.root) from error

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
        self.check_writable()
        if not (self.root / ".gitignore").exists():
            publish(self.root / ".gitignore", b"*\n")
        make_folder(self.space_folder(space.id), self.root)
        try:
            self.described_space(space.id)
        except (CacheMissError, DamagedFileError):
            content = {"space": space.as_dict(), "id": space.id, "facts": facts or {}}
            text = json.dumps(content, indent=2, sort_keys=True)
            publish(self.space_folder(space.id) / "space.json", text.encode("ascii"))

    def mark_used(self, space_id: str) -> None:
        """Note when a space was last used, as the time of its description; a cache that is read-only keeps no note."""
        try:
            os.utime(self.space_folder(space_id) / "space.json")
        except OSError as error:
            logger.debug("the use of space %s is not noted: %s", space_id, error)

    def survey(
        self, space_id: str, read: dict[Path, PartHead] | None = None
    ) -> tuple[list[PartHead], list[tuple[Path, HeadstartError]]]:
        """Read what the parts of a space say of themselves; nothing is changed.

        Parameters
        ----------
        space_id : str
        read : dict of Path to PartHead, optional
            Those that the caller has read before, which are not read again; afterwards, those that are there now.

        Returns
        -------
        heads : list of PartHead
            By name, without the parts that others supersede.
        bad : list of tuple of (Path, HeadstartError)
            Parts that are damaged, cannot be read or are of a newer format, and why.
        """
        known: dict[Path, PartHead | HeadstartError] = dict(read or {})

        def look() -> list[Path]:
            paths = self.parts(space_id)
            for path in paths:
                if path not in known:
                    known[path] = _head_or_error(path)
            return paths

        found = [known[path] for path in repeated(self.root, look)]
        if read is not None:
            read.clear()
            read.update((head.path, head) for head in found if isinstance(head, PartHead))
        # A part that was passed over serves nobody, so it supersedes nothing; what is superseded harms nobody.
        heads = [head for head in found if isinstance(head, PartHead) and head.path.name not in self._passed_over]
        superseded = {name for head in heads for name in head.supersedes}
        errors = ((path, error) for path, error in known.items() if isinstance(error, HeadstartError))
        bad = [(path, error) for path, error in errors if path.name not in superseded]
        return [head for head in heads if head.path.name not in superseded], bad

    def heads(self, space_id: str, read: dict[Path, PartHead] | None = None) -> list[PartHead]:
        """Read what the parts of a space say of themselves, by name, without those that others supersede.

        A damaged part is set aside, with a warning, and is not among them. `read` is as `survey` takes it.

        Raises
        ------
        CacheFormatError, CacheError
            A part is of a newer format, or cannot be read.
        """
        heads, bad = self.survey(space_id, read)
        for path, error in bad:
            if not isinstance(error, DamagedFileError):
                raise error
            if path.name not in self._passed_over:
                self.quarantine(path, error)
        return heads

    def index(self, space_id: str) -> tuple[KeyIndex, list[Path]]:
        """Read the keys of all parts of a space.

        Returns
        -------
        index : KeyIndex
        parts : list of Path
            The files that ``index.starts`` counts. A damaged one is set aside, with a warning, and not among them.
        """
        heads = self.heads(space_id)
        return KeyIndex([head.keys for head in heads]), [head.path for head in heads]

    def gather(self, space_id: str, keys: Keys, out: np.ndarray | None = None) -> np.ndarray:
        """Read embeddings in the order of `keys`.

        Every byte of the parts that hold them is checked. Memory is the result and about 100 bytes a row.

        Parameters
        ----------
        space_id : str
        keys : Keys
        out : ndarray of shape (len(keys), D), dtype float32, optional
            Receives the rows; it may be some columns of a wider array. Its content counts only if the call returns.

        Returns
        -------
        ndarray of shape (len(keys), D), dtype float32
            `out` where it was given.

        Raises
        ------
        CacheMissError
            Some keys are not in the cache, or were in a part that turned out to be damaged.
        """
        self.mark_used(space_id)
        dim = self.space(space_id).dim

        def read() -> np.ndarray:
            index, paths = self.index(space_id)
            places = self._found(index, keys, len(keys))
            result = np.empty((len(keys), dim), np.float32) if out is None else out
            self._fill(result, paths, index.by_part(places))
            return result

        return repeated(self.root, read)

    def blocks(
        self, space_id: str, keys: Keys, block_rows: int = BLOCK_ROWS
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Read embeddings block by block, in the order in which they are stored, for what does not fit into memory.

        Each part is read once. Memory is one part's rows; a block is handed out after all of its part was checked.

        Parameters
        ----------
        space_id : str
        keys : Keys
            The rows that are wanted.
        block_rows : int, default 65,536
            Rows a block at most.

        Yields
        ------
        where : ndarray of shape (n,), dtype int64
            Which of `keys` the rows belong to. Over all blocks, each occurs once.
        rows : ndarray of shape (n, D), dtype float32

        Raises
        ------
        CacheMissError
            As `gather`; blocks that came before were right.
        """
        self.mark_used(space_id)
        dim, left = self.space(space_id).dim, np.arange(len(keys))
        while left.size:
            index, paths = self.index(space_id)
            plan = index.by_part(self._found(index, keys[left], len(keys)))
            done = np.zeros(len(left), bool)
            for number, rows, places in plan:
                block = np.empty((len(rows), dim), np.float32)
                try:
                    self._fill(block, paths, [(number, rows, np.arange(len(rows)))])
                except PartGoneError:
                    break
                done[places] = True
                for start in range(0, len(rows), block_rows):
                    yield left[places[start : start + block_rows]], block[start : start + block_rows]
            left = left[~done]

    def writer(
        self,
        space: FeatureSpace,
        on_part: Callable[[int], None] | None = None,
        expected: int = 0,
        *,
        alone: bool = True,
        recipes: dict[str, Any] | None = None,
    ) -> PartWriter:
        """Return a writer of rows in `space`, which `prepare` has been called for; see `PartWriter`."""
        self.mark_used(space.id)
        return PartWriter(self.space_folder(space.id), space, on_part, expected, alone=alone, recipes=recipes)

    def _found(self, index: KeyIndex, keys: Keys, total: int) -> np.ndarray:
        places = index.find(keys)
        missing = int((places < 0).sum())
        if missing:
            raise CacheMissError(
                f"the cache {self.root} lacks {missing} of {total} embeddings; run `headstart extract`"
            )
        return places

    def _fill(self, target: np.ndarray, paths: list[Path], plan: list[tuple[int, np.ndarray, np.ndarray]]) -> None:
        """Copy rows part by part, several at a time.

        Raises
        ------
        PartGoneError
            A part has gone, or was damaged and is set aside: the parts must be listed again.
        """

        def copy(task: tuple[int, np.ndarray, np.ndarray]) -> bool:
            number, rows, places = task
            return self.read_part(paths[number], partial(copy_rows, paths[number], rows, target, places))

        if len(plan) < 2:
            results = [copy(task) for task in plan]
        else:
            from concurrent.futures import ThreadPoolExecutor

            with ThreadPoolExecutor(READ_THREADS, thread_name_prefix="gather") as pool:
                results = list(pool.map(copy, plan))
        if not all(results):
            raise PartGoneError("a damaged part was set aside")

    def read_part(self, path: Path, read: Callable[[], object]) -> bool:
        """Read something of a part; where it is damaged, set it aside and return False.

        Raises
        ------
        PartGoneError
            The part is not there any more.
        CacheError
            It cannot be read.
        """
        try:
            read()
        except DamagedFileError as error:
            self.quarantine(path, error)
            return False
        except OSError as error:
            raise gone_or_unreadable(error, path) from error
        return True

    def quarantine(self, path: Path, reason: Exception) -> None:
        """Set a damaged file aside and say so; where the cache is read-only it is passed over."""
        advice = "run `headstart extract` to embed its images again"
        refused: OSError | None = None
        # Where something is in the way of the folder, another name will do: what is no part is not read.
        for place in (self.root / "quarantine" / path.name, path.with_suffix(".damaged")):
            try:
                make_folder(place.parent, self.root)
                os.replace(path, place)  # noqa: PTH105  (one call that tests can make fail)
            except OSError as error:
                if not os.path.lexists(path):
                    return  # another process was faster
                refused = error
                continue
            logger.warning("%s; moved to %s, %s", reason, place, advice)
            return
        why = refused and (refused.strerror or refused)
        logger.warning("%s; passed over, for it cannot be set aside (%s), %s", reason, why, advice)
        self._passed_over.add(path.name)


def _head_or_error(path: Path) -> PartHead | HeadstartError:
    try:
        return read_head(path)
    except HeadstartError as error:
        return error
    except OSError as error:
        found = gone_or_unreadable(error, path)
        if isinstance(found, PartGoneError):
            raise found from error
        return found


def _unwritable(error: OSError, folder: Path) -> CacheError:
    translated = error if isinstance(error, CacheError) else write_error(error, folder)
    if "read-only" in str(translated):
        translated = CacheError(f"cache {folder} is read-only: pass --cache with a folder that can be written")
        translated.errno = error.errno
    return translated
