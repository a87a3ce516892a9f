"""The command that writes a model for other programs: parses, calls, prints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .cli_options import Data, Pictures, cache_option, device_options, given_of, positive
from .console import common


@click.command()
@click.argument("model", type=Data)
@click.argument("data", type=Pictures, required=False)
@click.option("--format", type=click.Choice(["onnx", "torch"]), default="onnx", show_default=True,
              help="torch: a program of torch.export.")  # fmt: skip
@click.option("--out", "-o", type=Data, metavar="FILE",
              help="[default: the model's name with .onnx or .pt2, in the working directory]")  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace FILE where it is there.")
@click.option("--input", type=click.Choice(["picture", "crop"]), default="picture", show_default=True,
              help="What the graph begins with: whole pictures, or resized and cropped ones.")  # fmt: skip
@click.option("--pictures", type=positive, metavar="N", help="Compare on N pictures, evenly chosen [default: 32].")
@device_options
@cache_option
@common
def export(model: Path, data: Path | None, **given: Any) -> Any:
    """Write MODEL as one graph, from pixels to probabilities, that runs without headstart.

    Before it is written it is run on pictures of DATA, and compared with what `predict` says of them. Without DATA
    those that the model was trained on are taken.

    \b
    headstart export models/photos-resnet18-logistic
    headstart export models/photos-resnet18-logistic photos/val --out ants.onnx
    headstart export models/photos-resnet18-logistic --format torch
    """
    from .classify.export.job import export as run
    from .extract.interrupt import stop_on_interrupt
    from .extract.options import RunOptions

    given = given_of(given)
    names = ("format", "out", "overwrite", "input", "pictures", "cache")
    own = {name: given.pop(name) for name in names if name in given}
    with stop_on_interrupt() as stopped:
        return run(model, data, run=RunOptions(**given), stopped=stopped, **own)
