"""The command that compares backbones and heads: parses, calls, prints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .cli_options import (
    Pictures,
    cache_option,
    device_options,
    given_of,
    layer_option,
    positive,
    presets,
    result_options,
    seed_option,
    space_options,
)
from .console import common

_OF_RUN = ("device", "batch_size", "workers", "max_pixels")
_OF_SPACE = ("layer", "pool", "resize", "crop", "interpolation", "mean", "std", "store_dtype")


@click.command()
@click.argument("data", type=Pictures, required=False)
@click.option("--backbone", "backbones", metavar="NAME", multiple=True,
              help="May repeat [default: all that DATA was extracted with].")  # fmt: skip
@click.option("--head", "heads", type=click.Choice(["logistic", "linear", "mlp", "knn", "ncm"]), multiple=True,
              help="May repeat [default: logistic].")  # fmt: skip
@click.option("--weights", metavar="default|none|FILE", help="Of all backbones [default: those that are cached].")
@click.option("--cv", type=click.IntRange(min=2), help="Folds of the cross-validation [default: 5].")
@click.option("--val-fraction", type=click.FloatRange(0, 1, max_open=True),
              help="Held out where DATA has no validation split [default: 0.2].")  # fmt: skip
@layer_option
@space_options
@click.option("--views", type=positive, metavar="V", help="Train on V views of each image [default: 1].")
@click.option(
    "--augment", type=presets, help="How they are drawn [default: as those of DATA that are cached, else tutorial]."
)
@device_options
@result_options
@seed_option
@cache_option
@common
def compare(data: Path | None, **given: Any) -> Any:
    """Measure every backbone with every head, by one cross-validation on the training images, in one table.

    What the cache lacks is embedded. The validation images are not looked at; the last line says how to score the row
    that you choose. Without DATA it takes the dataset of the latest extract.

    \b
    headstart compare
    headstart compare photos --backbone resnet18 --backbone efficientnet_lite0 --head logistic --head knn
    headstart compare photos --head logistic --head mlp --out comparisons/heads
    headstart compare photos --views 8
    """
    from .classify.compare import compare as run
    from .classify.pages.comparison import comparison_page
    from .extract.interrupt import stop_on_interrupt
    from .extract.options import RunOptions

    given = given_of(given)
    wanted = {name: given.pop(name) for name in _OF_SPACE if name in given}
    how = RunOptions(**{name: given.pop(name) for name in _OF_RUN if name in given})
    with stop_on_interrupt() as stopped:
        return run(data, wanted=wanted, run=how, page=comparison_page, stopped=stopped, **given)
