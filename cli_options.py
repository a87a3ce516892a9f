"""Options that several commands share, and long lists of options of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .console import NumberOr, Numbers, Several, joined, options

Data = click.Path(path_type=Path)


class _Pictures(click.Path):
    """A path, or a URL, which stays text: a path object would drop one of its slashes."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if isinstance(value, str) and "://" in value else super().convert(value, param, ctx)


Pictures = _Pictures(path_type=Path)


def _cache_place(_context: click.Context, _option: click.Parameter, value: str | None) -> str | None:
    if value == "":  # a variable of the shell that is not set, most often
        raise click.BadParameter("it is empty; name a folder, or leave the option out")
    return value  # as text: a path would make s3:/bucket of s3://bucket


cache_option = click.option(
    "--cache",
    metavar="DIR",
    callback=_cache_place,
    help="The cache's folder, or s3://BUCKET/PREFIX [default: $HEADSTART_CACHE, else .headstart].",
)
positive = click.IntRange(min=1)
layer_option = click.option(
    "--layer", metavar="NAME", help="Module whose output is taken [default: the classifier's input]."
)
preprocess_options = options(
    click.option(
        "--pool", type=click.Choice(["avg", "max", "gem", "token", "none"]), help="How a map becomes a vector."
    ),
    click.option("--resize", type=NumberOr(int, "none"), help="Short side in pixels [default: the weights' own]."),
    click.option("--crop", type=positive, metavar="N", help="Side of the centre crop [default: the weights' own]."),
    click.option("--interpolation", type=click.Choice(["nearest", "bilinear", "bicubic"]), help="How to resize."),
    click.option("--mean", type=Numbers(), help="Normalisation of values from 0 to 1."),
    click.option("--std", type=Numbers(), help="Normalisation of values from 0 to 1."),
)
space_options = options(
    preprocess_options,
    click.option("--store-dtype", type=click.Choice(["float32", "float16"]), help="What the cache keeps."),
)
presets = click.Choice(["flip", "crop", "tutorial", "strong", "randaugment", "trivial"])
made_views_options = options(
    click.option("--views", type=positive, metavar="V",
                 help="Embed V views of each image: the plain crop, and V - 1 that are augmented [default: 1]."),
    click.option("--augment", type=presets, help="How they are drawn [default: tutorial]."),
    click.option("--views-split", type=click.Choice(["all", "train", "val", "test"]),
                 help="Images of other splits get the plain crop alone [default: all]."),
)  # fmt: skip
views_options = options(
    click.option("--views", type=positive, metavar="V",
                 help="Train on V views of each image [default: as many as DATA was extracted with]."),
    click.option("--augment", type=presets, help="Their preset [default: that of the latest extract with views]."),
)  # fmt: skip
test_views_options = options(
    click.option("--views", type=positive, metavar="V",
                 help="Average the probabilities of V views of each picture [default: 1]."),
    click.option("--augment", type=presets, help="How they are drawn [default: as in training, else tutorial]."),
)  # fmt: skip
layout_option = click.option(
    "--layout", type=click.Choice(["auto", "splits", "classes"]), default="auto", help="How to read DATA."
)
max_pixels_option = click.option(
    "--max-pixels", type=positive, metavar="N", help="Larger images are failures [default: 89478485]."
)
device_options = options(
    click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto", show_default=True),
    click.option("--batch-size", type=positive, metavar="N", help="Images a forward pass [default: found out]."),
    click.option("--workers", type=positive, metavar="N", help="Threads that read and decode [default: one a core]."),
    max_pixels_option,
)
cluster_options = options(
    click.option("--engine", type=click.Choice(["local", "dask", "ray"]), default="local", show_default=True,
                 help="Have the workers of a cluster do the work."),
    click.option("--address", metavar="ADDRESS", help="The cluster's: tcp://HOST:8786, or Ray's HOST:6379 or auto."),
)  # fmt: skip
engine_options = options(
    click.option("--processes", type=positive, metavar="N",
                 help="Share the work between N [default: one a GPU, four for long runs]."),
    cluster_options,
    click.option("--shard-images", type=positive, metavar="N",
                 help="Images that a worker is given at a time [default: 2000, fewer where there are few]."),
)  # fmt: skip
prediction_options = options(
    click.option("--csv", "as_csv", is_flag=True, help="Print a CSV table."),
    click.option("--jsonl", "as_jsonl", is_flag=True, help="Print a JSON object a line, each as soon as it is known."),
    click.option("--top", type=positive, metavar="K",
                 help="Show the K likeliest classes [default: 1; in JSON all]."),
    click.option("--min-probability", type=click.FloatRange(0, 1), default=0.0, metavar="P",
                 help="Unsure, with no label, where the likeliest class has less [default: 0]."),
    click.option("--coverage", type=click.FloatRange(0, 1, min_open=True, max_open=True), metavar="SHARE",
                 help="Also sets of classes that hold the right one this often, .95 say."),
    click.option("--sort-into", type=Data, metavar="DIR",
                 help="Also copy each picture into DIR/CLASS, where the model is unsure into DIR/_unsure."),
)  # fmt: skip
grid_options = options(
    click.option("--grid", type=Data, metavar="FILE.png",
                 help="Also draw the pictures, marked right or wrong where their folder is named like a class."),
    click.option("--grid-limit", type=positive, metavar="N", help="Draw N, evenly chosen [default: 64]."),
    click.option("--overwrite", is_flag=True, help="Replace FILE.png where it is there."),
)  # fmt: skip
several: dict[str, Any] = {"multiple": True, "callback": joined, "metavar": "X[,X...]"}
# Of the heads that are trained by mini-batches. Where several values are given, every combination is cross-validated.
trained_options = options(
    click.option("--lr", type=Several(float), **several,
                 help="Learning rate, or several to try (linear, mlp)."),
    click.option("--weight-decay", type=Several(float), **several,
                 help="Or several to try (linear, mlp) [default: 0.01]."),
    click.option("--hidden", type=Several(int), multiple=True, metavar="N[,N...]",
                 help="Width of a hidden layer, or several to try; repeat for more layers (mlp) [default: 256]."),
    click.option("--dropout", type=Several(float), **several,
                 help="Share of units dropped, or several to try (mlp) [default: 0.5]."),
    click.option("--optimizer", type=click.Choice(["adamw", "adam", "sgd"]), help="(linear, mlp) [default: adamw]"),
    click.option("--momentum", type=click.FloatRange(0, 1, max_open=True), help="Of sgd (linear, mlp) [default: 0.9]."),
    click.option("--schedule", type=click.Choice(["constant", "cosine", "step"]),
                 help="Of the learning rate over --epochs (linear, mlp) [default: constant]."),
    click.option("--epochs", type=positive, help="At most so many (linear, mlp) [default: 100]."),
    click.option("--patience", type=positive, metavar="N",
                 help="Epochs without gain that end a search (linear, mlp) [default: 10, with --schedule constant]."),
    click.option("--batch-size", type=positive, metavar="N", help="Rows a step (linear, mlp) [default: 64 or more]."),
    click.option("--label-smoothing", type=click.FloatRange(0, 1, max_open=True), help="(linear, mlp) [default: 0]"),
    click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), help="(not knn, ncm) [default: auto]"),
)  # fmt: skip
memory_options = options(
    click.option(
        "--memory", metavar="SIZE", help="Go by blocks where more would be taken: 500MB, 2GiB [default: auto]."
    ),
    cluster_options,
)
seed_option = click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
result_options = options(
    click.option("--out", "-o", type=Data, metavar="DIR", help="Where to write the result."),
    click.option("--overwrite", is_flag=True, help="Replace a result that is there."),
)
sample_options = options(
    click.option("--out", "-o", type=Data, default=Path("samples.png"), show_default=True, metavar="FILE.png"),
    click.option("--overwrite", is_flag=True, help="Replace FILE.png where it is there."),
    click.option("--per-class", type=positive, default=5, show_default=True, metavar="N", help="Pictures of each."),
    click.option("--split", type=click.Choice(["train", "val", "test"]), help="Show one split [default: all]."),
    click.option("--max-classes", type=positive, default=20, show_default=True, metavar="N",
                 help="Of more classes, N are shown, evenly chosen."),
)  # fmt: skip


def only_one_of(context: click.Context, **words: str) -> None:
    """Refuse options that exclude each other.

    Parameters
    ----------
    context : click.Context
    **words : str
        What the user writes, by the name of the parameter.
    """
    given = [word for name, word in words.items() if context.params[name]]
    if len(given) > 1:
        raise click.UsageError(f"{' and '.join(given)} exclude each other; give one of them")


def given_of(values: dict[str, Any]) -> dict[str, Any]:
    """Return the options that were given; None and the empty tuple mean that one was not."""
    return {name: value for name, value in values.items() if value is not None and value != ()}
