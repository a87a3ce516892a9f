"""The pictures of a dataset to train on: listed, looked at once, and divided into train, dev, val and test."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from ...cache.listing import Listing
from ...cache.place import Place
from ...cache.source import Source, Url
from ...cache.store import FeatureStore
from ...errors import DataError, DecodeError, TrainingError, printable
from ...extract.access import access_to
from ...extract.decode import decode
from ...extract.elsewhere import location
from ...extract.failures import NamedFailures, report_failures
from ...extract.features import Features, dataset_folder
from ...extract.images import list_images
from ...extract.job import describe
from ...extract.options import RunOptions
from ...extract.plan import base_folder, failure_rules, limited, recall_listing
from ...extract.progress import progress_bar
from ..dataset import LabelledSet, labelled_set, warn_of_copies
from ..splits import check_trainable, hold_out
from .ranks import Ranks

logger = logging.getLogger("headstart.finetune")

DEV = "dev"


@dataclass(frozen=True, slots=True)
class Subset:
    """Some of the pictures, n of them.

    Attributes
    ----------
    names : list of bytes
        Absolute paths, or URLs.
    y : ndarray of shape (n,), dtype int64
        Index into the classes.
    digest : ndarray of shape (n, 32), dtype uint8
        SHA-256 of each file's bytes.
    """

    names: list[bytes]
    y: np.ndarray
    digest: np.ndarray

    def __len__(self) -> int:
        return len(self.names)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the pictures' content and labels, in their order."""
        return hashlib.sha256(self.digest.tobytes() + self.y.astype("<i8").tobytes()).hexdigest()


@dataclass(frozen=True, slots=True)
class Pictures:
    """The labelled pictures of a dataset, divided.

    Attributes
    ----------
    data : LabelledSet
        Whose split is "dev" for the training pictures that are held out to choose by.
    base : bytes
        The folder that paths are relative to.
    failures : sequence of (str, str)
        Path, below the dataset's root as it was named, and reason of each picture that could not be used.
    """

    data: LabelledSet
    base: bytes
    failures: Sequence[tuple[str, str]]

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of the labels."""
        return self.data.features.classes

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the content and labels of all pictures that a run trains on, is chosen by or is scored on."""
        parts = [self.part(split).fingerprint for split in ("train", DEV, "val")]
        return hashlib.sha256("".join(parts).encode()).hexdigest()

    def part(self, split: str) -> Subset:
        """Return the pictures of one split."""
        features = self.data.features
        mine = self.data.rows[self.data.split == split]
        paths = features.listing.paths
        names = [location(self.base, name) for name in paths.take(features.rows[mine])]
        return Subset(names, self.data.y[self.data.split == split].astype(np.int64), features.digest[mine])


def load_pictures(
    data: Source,
    cache: Place,
    run: RunOptions,
    ranks: Ranks,
    *,
    layout: str = "auto",
    limit: int | None = None,
    val_fraction: float = 0.2,
    dev_fraction: float = 0.2,
    dedupe: bool = False,
    strict: bool = False,
    stopped: Callable[[], bool] = lambda: False,
) -> Pictures:
    """List a dataset, find out which pictures can be read, and divide them.

    What the cache's listing of the dataset knows of files that have not changed is believed, so after an `extract`
    nothing is read. The cache is not written.

    Parameters
    ----------
    data : Path or Url
    cache : Path or RemotePath
        The cache's folder; it need not be there.
    run : RunOptions
    ranks : Ranks
        Each process looks at its share of the pictures.
    layout : str, default "auto"
    limit : int, optional
        Take only so many pictures, spread evenly over the listing.
    val_fraction : float, default 0.2
        Share held out where the dataset has no validation split, by the first eight bytes of the digest, as `fit-head`
        holds it out.
    dev_fraction : float, default 0.2
        Share of the training pictures that becomes "dev", by the next eight bytes.
    dedupe : bool, default False
        Leave copies out, as `headstart.classify.dataset.without_copies` says.
    strict : bool, default False
        Raise where a picture failed.
    stopped : callable, optional

    Raises
    ------
    DataError, TrainingError
        There is nothing to train on.
    """
    scanned = time.time_ns()
    images = limited(list_images(data, layout=layout, cache=cache), limit)
    describe(images)
    if isinstance(images.base, Url):
        logger.info("pictures are fetched anew in every epoch; from a copy on this machine they come faster")
    base = base_folder(images)
    listing = recall_listing(cache, images, failure_rules(run.max_pixels), scanned_ns=scanned)
    _look(listing, base, run, ranks, stopped)
    folder = dataset_folder(listing, listing.root)  # as `extract` names them
    failures = NamedFailures(listing, folder)
    report_failures(failures, len(listing), strict=strict)
    if listing.tags is not None:
        raise DataError(
            f"{printable(data)} may have several labels an image, and finetune trains one class an image; "
            "use `headstart fit-head`"
        )
    features = Features(listing, (), FeatureStore(cache))
    labelled = labelled_set(features, val_fraction, dedupe=dedupe)
    warn_of_copies(labelled)
    pictures = Pictures(_with_dev(labelled, dev_fraction), base, failures)
    _check(pictures)
    return pictures


def _look(listing: Listing, base: bytes, run: RunOptions, ranks: Ranks, stopped: Callable[[], bool]) -> None:
    """Fill in digests and failures of pictures that nothing is known of."""
    unknown = ~listing.known
    unknown[listing.failures.rows] = False
    # Machines may know of different pictures; all look at what any does not know.
    rows = np.unique(np.concatenate(ranks.gather(np.flatnonzero(unknown))))
    mine = ranks.share(rows)
    found: dict[int, tuple[bytes, str]] = {}
    with progress_bar(len(mine), "looking at pictures") as progress:
        for row, digest, reason in _looked_at(listing, mine, base, run):
            if stopped():
                raise KeyboardInterrupt("interrupted before the training began; nothing was written")
            found[row] = digest, reason
            progress(1)
    for part in ranks.gather(found):
        for row, (digest, reason) in part.items():
            if digest:
                listing.digest[row] = np.frombuffer(digest, np.uint8)
            if reason:
                listing.failures[row] = reason


def _looked_at(listing: Listing, rows: np.ndarray, base: bytes, run: RunOptions) -> Iterator[tuple[int, bytes, str]]:
    access = access_to(base, listing.paths, listing.stat, rows)

    def look(row: int) -> tuple[int, bytes, str]:
        digest = b""
        try:
            content, _ = access.read(row, listing.paths[row])
            digest = hashlib.sha256(content).digest()
            decode(content, max_pixels=run.max_pixels)
        except DecodeError as error:
            return row, digest, str(error)
        return row, digest, ""

    pool = ThreadPoolExecutor(run.threads + access.in_flight, thread_name_prefix="look")
    try:
        yield from pool.map(look, rows.tolist())
    finally:
        pool.shutdown(cancel_futures=True)


def _with_dev(data: LabelledSet, fraction: float) -> LabelledSet:
    """Let a stable part of the training pictures be "dev": those whose digest says so, as it does for validation.

    Other bytes of the digest decide than for validation, or no picture that is left in train would fall below.
    """
    held = hold_out(data.features.digest[data.rows][:, 8:16], fraction) & (data.split == "train")
    return replace(data, split=np.where(held, DEV, data.split))


def _check(pictures: Pictures) -> None:
    data = pictures.data
    y = data.y[data.split == "train"]
    if not len(y):
        raise TrainingError(f"{printable(data.features.listing.root)} has no training image with a label")
    if len(pictures.classes) < 2:
        check_trainable(y, pictures.classes, 1)
    missing = np.flatnonzero(np.bincount(y, minlength=len(pictures.classes)) == 0)
    if missing.size:
        held = ((data.split == DEV) & (data.y == missing[0])).any()
        why, advice = (
            (", for those that there are were held out as dev", "add some, or pass --select-on last")
            if held
            else ("", "add some, or remove the class")
        )
        raise TrainingError(f"class {printable(pictures.classes[missing[0]])!r} has no training image{why}: {advice}")
