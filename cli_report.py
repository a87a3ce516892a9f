"""The command that writes a report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .cli_options import Data, Pictures, cache_option, device_options, given_of
from .console import common


@click.command()
@click.argument("model", type=Data)
@click.argument("data", type=Pictures, required=False)
@click.option("--out", "-o", type=Data, default=Path("report.html"), show_default=True, metavar="FILE.html")
@click.option("--overwrite", is_flag=True, help="Replace FILE.html where it is there.")
@click.option("--split", type=click.Choice(["val", "test", "train"]), default="val", show_default=True)
@click.option("--projection", type=click.Choice(["pca", "umap"]), default="pca", show_default=True,
              help="How the map of embeddings is laid out; umap needs the extra of that name.")  # fmt: skip
@device_options
@cache_option
@common
def report(
    model: Path, data: Path | None, out: Path, overwrite: bool, split: str, projection: str, cache: str | None,
    **given: Any,
) -> Any:  # fmt: skip
    """Write one HTML file to look at MODEL: its score, what it mistakes, odd pictures, a map, how it was made.

    Without DATA the dataset that the model was trained on is taken from the cache, its pictures from where they lay.
    The file needs no network and no other file.

    \b
    headstart report models/photos-resnet18-logistic
    headstart report models/photos-resnet18-logistic -o ants.html --projection umap
    headstart report models/photos-resnet18-logistic other-photos --split test
    """
    from .classify.pages.report import report as run
    from .extract.options import RunOptions

    return run(
        model, data, out=out, overwrite=overwrite, split=split, projection=projection, cache=cache,
        run=RunOptions(**given_of(given)),
    )  # fmt: skip
