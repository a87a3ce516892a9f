"""The commands that look after the cache: each parses, calls, prints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .cli_options import Data, cache_option, device_options, given_of, layer_option, seed_option, space_options
from .console import common
from .errors import UsageError


@click.group()
def cache() -> None:
    """Look after the cache."""


@cache.command()
@cache_option
@common
def info(cache: str | None) -> Any:
    """Show what the cache holds: spaces, rows, views, bytes, when last used, what is left over. Nothing is changed."""
    from .cache.info import info as run
    from .cache.store import cache_dir

    return run(cache_dir(cache))


@cache.command()
@click.option("--sample", type=click.IntRange(min=0), default=0, metavar="N", help="Embed N cached images anew.")
@device_options
@seed_option
@cache_option
@common
def verify(cache: str | None, sample: int, seed: int, **given: Any) -> Any:
    """Check every byte of the cache; exit with 1 where something is bad. Damaged files are set aside.

    \b
    headstart cache verify
    headstart cache verify --sample 20
    """
    from .cache.store import cache_dir
    from .extract.audit import verify as run

    if not sample and (given["device"] != "auto" or given["batch_size"] or given["workers"] or given["max_pixels"]):
        raise UsageError("--device, --batch-size, --workers and --max-pixels have a meaning with --sample alone")
    from .extract.options import RunOptions

    return run(cache_dir(cache), sample, seed, RunOptions(**given_of(given)))


@cache.command()
@click.option("--prune", is_flag=True, help="Drop the rows of images that no dataset has, unless a run goes on.")
@click.option("--now", is_flag=True, help="Wait for nobody: delete and prune whatever is using the cache.")
@cache_option
@common
def compact(cache: str | None, prune: bool, now: bool) -> Any:
    """Merge small parts, drop copies, remove what is superseded or stale. Safe beside running commands.

    \b
    headstart cache compact
    headstart cache compact --prune --now
    """
    from .cache.compact import compact as run
    from .cache.store import cache_dir

    return run(cache_dir(cache), prune=prune, now=now)


@cache.command()
@click.argument("other")
@cache_option
@common
def merge(cache: str | None, other: str) -> Any:
    """Take in the embeddings and datasets of another cache, from another machine say. OTHER is only read.

    \b
    headstart cache merge /mnt/gpu-machine/.headstart
    headstart cache merge s3://bucket/prefix
    """
    from .cache.merge import merge as run
    from .cache.place import place_of
    from .cache.store import cache_dir

    return run(cache_dir(cache), place_of(other))


@cache.command()
@click.argument("file", type=Data)
@click.argument("data", type=Data, required=False)
@click.option("--backbone", metavar="NAME", help="Where DATA was extracted with several.")
@layer_option
@space_options
@click.option("--overwrite", is_flag=True, help="Replace FILE where it is there.")
@cache_option
@common
def export(cache: str | None, file: Path, data: Path | None, overwrite: bool, **given: Any) -> Any:
    """Write the embeddings, paths, labels and splits of a dataset to one HDF5 file that h5py alone can read.

    Without DATA it takes the dataset of the latest extract.

    \b
    headstart cache export features.h5
    headstart cache export features.h5 photos --backbone resnet18
    """
    from .cache.store import cache_dir
    from .extract.features import load_features

    return load_features(cache_dir(cache), data, given_of(given)).export(file, overwrite=overwrite)


@cache.command()
@click.option("--space", metavar="ID", help="A feature space, by the beginning of its id; see `headstart cache info`.")
@click.option("--dataset", metavar="DATA", help="The listings of a dataset, by its folder, CSV file or id.")
@cache_option
@common
def remove(cache: str | None, space: str | None, dataset: str | None) -> Any:
    """Remove a feature space with its embeddings, or the listings of a dataset.

    \b
    headstart cache remove --space 1a2b
    headstart cache remove --dataset photos
    """
    from .cache.remove import remove as run
    from .cache.store import cache_dir

    return run(cache_dir(cache), space=space, dataset=dataset)
