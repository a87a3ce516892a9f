"""The command that trains a network end to end: parses, calls, prints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .cli_options import (
    Pictures,
    cache_option,
    given_of,
    layer_option,
    layout_option,
    max_pixels_option,
    positive,
    preprocess_options,
    presets,
    result_options,
    seed_option,
)
from .console import NumberOr, Sectioned, common, section

share = click.FloatRange(0, 1, max_open=True)
above_zero = click.FloatRange(0, min_open=True)
at_least_zero = click.FloatRange(0)


@click.command(cls=Sectioned)
@click.argument("data", type=Pictures, default=Path("data"))
@section(
    "What most need",
    click.option("--backbone", metavar="NAME", help="See `headstart backbones` [default: resnet18]."),
    click.option(
        "--train",
        metavar="all|head|LAYER",
        help="Everything, the head alone, or a layer and all behind it [default: all].",
    ),
    click.option("--epochs", type=positive, help="[default: 10]"),
    click.option(
        "--lr", type=NumberOr(float, "auto"), help="Learning rate; auto: by a range test [default: by --optimizer]."
    ),
    click.option("--batch-size", type=positive, metavar="N", help="Images a step, of each process [default: 32]."),
    click.option(
        "--augment",
        type=click.Choice(["none", *presets.choices]),
        help="[default: tutorial, a random resized crop and flip]",
    ),
    click.option(
        "--init-head",
        metavar="MODEL|imagenet:LABEL=CLASS,...",
        help="Start from a fitted head, or from rows of the backbone's own classifier.",
    ),
    click.option("--resume", is_flag=True, help="Go on with the run that was interrupted."),
    result_options,
)
@section(
    "The network and what it starts from",
    click.option("--weights", metavar="default|none|FILE", help="The library's own, random, or a state dict."),
    click.option("--reinit", metavar="LAYER", help="This layer and all behind it start from random weights."),
    layer_option,
    click.option("--head", type=click.Choice(["linear", "mlp"]), help="[default: linear]"),
    click.option(
        "--hidden",
        type=positive,
        multiple=True,
        metavar="N",
        help="Width of a hidden layer; repeat for more layers (mlp) [default: 1024].",
    ),
    click.option("--dropout", type=share, help="Before the last layer, and between hidden ones [default: 0]."),
    click.option(
        "--freeze-norms", is_flag=True, default=None, help="Batch norms keep their statistics, weights and biases."
    ),
)
@section(
    "How it is trained",
    click.option("--optimizer", type=click.Choice(["adamw", "adam", "sgd"]), help="[default: adamw]"),
    click.option(
        "--head-lr-mult",
        type=at_least_zero,
        metavar="X",
        help="The head's rate over the backbone's [default: 10 for a fresh head on trained layers, else 1].",
    ),
    click.option(
        "--layer-decay",
        type=click.FloatRange(0, 1),
        metavar="X",
        help="A block's rate over that of the block behind it [default: 1].",
    ),
    click.option("--momentum", type=share, help="Of sgd [default: 0.9]."),
    click.option("--weight-decay", type=at_least_zero, help="Not of norms and biases [default: 0.01]."),
    click.option("--schedule", type=click.Choice(["cosine", "constant", "step"]), help="[default: cosine]"),
    click.option("--warmup", type=at_least_zero, metavar="EPOCHS", help="While the rate rises from 0 [default: 0]."),
    click.option("--label-smoothing", type=share, help="[default: 0]"),
    click.option("--clip", type=above_zero, metavar="NORM", help="Largest norm of all gradients together."),
    click.option(
        "--precision",
        type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
        help="[default: auto, mixed on an NVIDIA GPU]",
    ),
    click.option(
        "--no-keep-frozen",
        "keep_frozen",
        flag_value=False,
        default=None,
        help="Run frozen layers in every epoch, also where once would do.",
    ),
)
@section(
    "How the epoch is chosen",
    click.option(
        "--select-on",
        type=click.Choice(["dev", "val", "last"]),
        help="dev: a stable part of train; val: as tutorials do, which flatters; last: no choice [default: dev].",
    ),
    click.option("--select-by", type=click.Choice(["loss", "accuracy"]), help="[default: loss]"),
    click.option("--dev-fraction", type=share, help="Of train [default: 0.2]."),
    click.option("--val-fraction", type=share, help="Held out where DATA has no validation split [default: 0.2]."),
    click.option("--patience", type=positive, metavar="N", help="Epochs without gain that end the run."),
)
@section("How pictures are prepared", preprocess_options)
@section(
    "The run",
    click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto", show_default=True),
    click.option("--workers", type=positive, metavar="N", help="Threads that read and decode [default: one a core]."),
    max_pixels_option,
    layout_option,
    click.option("--limit", type=positive, metavar="N", help="Take only N images, spread evenly over the listing."),
    click.option("--dedupe", is_flag=True, help="Use one of copies, none with two labels."),
    click.option("--strict", is_flag=True, help="Exit with 1 when any image failed."),
    seed_option,
    cache_option,
)
@common
def finetune(data: Path, **given: Any) -> Any:
    """Train the backbone itself, end to end, and save a model like any other. The cache is bypassed.

    DATA is what `extract` takes. The epoch is chosen on a stable part of train, and validation is scored once.

    \b
    headstart finetune photos
    headstart finetune photos --init-head models/photos-resnet18-logistic
    headstart finetune photos --train layer4 --augment none --lr auto
    headstart finetune photos --train head --optimizer sgd --lr .001 --schedule constant --batch-size 16 --epochs 15
    """
    from .classify.finetune.job import finetune as run
    from .extract.interrupt import stop_on_interrupt

    with stop_on_interrupt() as stopped:
        return run(data, stopped=stopped, **given_of(given))
