"""The command that puts a model behind HTTP: parses, calls, prints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .cli_options import Data, device_options, given_of, positive
from .console import Sectioned, common, section


@click.command(cls=Sectioned)
@click.argument("model", type=Data)
@section(
    "Where it listens",
    click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS",
                 help="By default only this machine can reach it; there is no authentication."),
    click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True,
                 help="0 takes a free one, which the first line names."),
    click.option("--allow-host", "allow_hosts", multiple=True, metavar="NAME",
                 help="A further name under which requests may come; may repeat."),
)  # fmt: skip
@section(
    "What it takes",
    click.option("--max-bytes", type=positive, metavar="N", help="Of one request [default: 33554432]."),
    click.option("--max-pictures", type=positive, metavar="N", help="In one request [default: 64]."),
    click.option("--queue", type=positive, metavar="N", help="Pictures that may wait, of all requests [default: 256]."),
    click.option("--timeout", type=click.FloatRange(0, min_open=True), metavar="SECONDS",
                 help="To send a request, and again to answer it [default: 30]."),
)  # fmt: skip
@section(
    "How it works",
    click.option("--coverage", type=click.FloatRange(0, 1, min_open=True, max_open=True), metavar="SHARE",
                 help="Also sets of classes that hold the right one this often, .95 say."),
    click.option("--max-wait-ms", type=click.FloatRange(0), default=0, show_default=True, metavar="MS",
                 help="How long a batch that is not full waits for more pictures."),
    device_options,
)  # fmt: skip
@common
def serve(model: Path, **given: Any) -> Any:
    """Put MODEL behind HTTP: a page to drop pictures on, and POST /predict for programs.

    Pictures of all who ask at the same time go through the network together. Nothing of them is kept.

    \b
    headstart serve models/photos-resnet18-logistic
    headstart serve models/photos-resnet18-logistic --port 0 --coverage .95
    curl -F image=@new.jpg http://127.0.0.1:8000/predict
    """
    from .classify.serve.limits import Limits
    from .classify.serve.server import serve as run
    from .extract.options import RunOptions

    given = given_of(given)
    limits = {name: given.pop(name) for name in ("max_bytes", "max_pictures", "queue", "timeout") if name in given}
    how = {name: given.pop(name) for name in ("device", "batch_size", "workers", "max_pixels") if name in given}
    return run(model, limits=Limits(**limits), run=RunOptions(**how), **given)
