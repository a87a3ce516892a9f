"""The command line: parses, calls, prints. Reports go to standard error, tables and JSON to standard output."""

import sys

if __name__ == "__main__" and not __package__:
    # Run as `python cli.py` from a checkout: hand over to the installed package, which this folder must not shadow.
    del sys.path[0]
    try:
        from headstart.cli import run as installed_run
    except ImportError as error:
        sys.exit(f"error: headstart cannot be imported ({error}); run `make demo` or `pip install -e .` first")
    installed_run()

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

from . import __version__
from .cli_cache import cache
from .cli_compare import compare
from .cli_export import export
from .cli_finetune import finetune
from .cli_options import (
    Data,
    Pictures,
    cache_option,
    device_options,
    engine_options,
    given_of,
    grid_options,
    layer_option,
    layout_option,
    made_views_options,
    max_pixels_option,
    memory_options,
    only_one_of,
    positive,
    prediction_options,
    result_options,
    sample_options,
    seed_option,
    space_options,
    test_views_options,
    trained_options,
    views_options,
)
from .cli_report import report
from .cli_serve import serve
from .console import NumberOr, common, run_command
from .errors import UsageError

GC_THRESHOLD = 100_000  # new objects between two looks of the collector; Python's own is 700
RUN_FIELDS = ("device", "batch_size", "workers", "max_pixels")  # those of `device_options`
# The options by which a reader of the cache chooses among feature spaces.
SPACE_FIELDS = ("backbone", "layer", "pool", "resize", "crop", "interpolation", "mean", "std", "store_dtype")


@click.group(
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Start with `headstart demo`, or: headstart extract photos; headstart fit-head; headstart predict MODEL new",
)
@click.version_option(__version__, message="headstart %(version)s")
@click.pass_context
def commands(context: click.Context) -> None:
    """Embed every image once, cache the embeddings, train image classifiers in seconds."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@commands.command()
@click.argument("data", type=Pictures, default=Path("data"))
@click.option("--backbone", metavar="NAME", multiple=True,
              help="See `headstart backbones`; may repeat [default: resnet18].")  # fmt: skip
@click.option("--weights", metavar="default|none|FILE", help="The library's own, random, or a state dict.")
@click.option("--layer", metavar="NAME", multiple=True,
              help="Module whose output is taken; may repeat [default: the classifier's input].")  # fmt: skip
@space_options
@made_views_options
@device_options
@click.option("--precision", type=click.Choice(["auto", "float32", "bfloat16", "float16"]), default="auto")
@click.option("--compile", type=click.Choice(["auto", "always", "never"]), default="auto",
              help="Compile the network [default: where the images left repay it].")  # fmt: skip
@click.option("--decoder", type=click.Choice(["cpu", "gpu"]), default="cpu", show_default=True,
              help="gpu: an NVIDIA GPU decodes JPEGs too; a feature space of its own.")  # fmt: skip
@engine_options
@layout_option
@click.option("--limit", type=positive, metavar="N", help="Take only N images, spread evenly over the listing.")
@click.option("--rehash", is_flag=True, help="Read every file, also those that did not change.")
@click.option("--retry-failed", is_flag=True, help="Try images again that failed before.")
@click.option("--strict", is_flag=True, help="Exit with 1 when any image failed.")
@click.option("--dry-run", is_flag=True, help="Say what would be done and why; write nothing.")
@seed_option
@cache_option
@common
def extract(data: Path, dry_run: bool, strict: bool, **given: Any) -> Any:
    """Embed the images of DATA that the cache lacks.

    DATA is a folder with split folders (train/, val/), a folder of class folders, a CSV file with path,label[,split],
    a flat folder without labels, or tars; here or at a URL. The default is data/ in the working directory.

    \b
    headstart extract photos
    headstart extract photos --backbone efficientnet_lite0
    headstart extract photos --backbone resnet18 --backbone mobilenet_v3_small
    headstart extract photos --backbone vgg16 --layer classifier.3 --resize none --crop 224
    headstart extract photos --views 8 --augment tutorial
    headstart extract s3://bucket/photos
    headstart extract 'shards/{train,val}-{0000..0009}.tar'
    """
    from .extract.interrupt import stop_on_interrupt
    from .extract.job import extract as run
    from .extract.job import plan_extract

    if dry_run and strict:
        raise UsageError("--strict has no meaning with --dry-run: which images fail is known after they are read")
    if dry_run:
        return plan_extract(data, **given_of(given))
    with stop_on_interrupt() as stopped:
        return run(data, stopped=stopped, strict=strict, **given_of(given))


@commands.command("fit-head")
@click.argument("data", type=Pictures, required=False)
@click.option("--head", type=click.Choice(["logistic", "linear", "mlp", "knn", "ncm"]), default="logistic",
              show_default=True, help="knn: nearest neighbours; ncm: nearest class mean.")  # fmt: skip
@click.option("--cv", type=positive, help="Folds of the cross-validation; 1: none [default: 5].")
@click.option("--class-weight", type=click.Choice(["none", "balanced"]),
              help="balanced: each class counts alike (logistic, linear, mlp) [default: none].")  # fmt: skip
@click.option("--l2-norm", is_flag=True, default=None, help="Divide each embedding by its length first.")
@click.option("--pca", type=click.FloatRange(min=0, min_open=True), metavar="N|SHARE",
              help="Keep N principal components, or as many as hold this share of the variance.")  # fmt: skip
@click.option("--C", "C", type=NumberOr(float, "auto"), help="Inverse penalty (logistic) [default: auto].")
@click.option("--k", type=NumberOr(int, "auto"), help="Neighbours that vote (knn) [default: auto].")
@click.option("--metric", type=click.Choice(["cosine", "euclidean"]), help="(knn) [default: cosine]")
@trained_options
@click.option("--val-fraction", type=click.FloatRange(0, 1, max_open=True),
              help="Held out where DATA has no validation split [default: 0.2].")  # fmt: skip
@click.option(
    "--dedupe",
    is_flag=True,
    help="Use one of copies, none with two labels, none of train that another split has or nearly has.",
)
@click.option("--near-copies", type=click.Choice(["auto", "all", "none"]), default="auto", show_default=True,
              help="Look for near copies: among up to 50,000 images, all, none.")  # fmt: skip
@click.option("--features", metavar="BACKBONE[:LAYER]", multiple=True, help="Embeddings to join; may repeat.")
@click.option("--backbone", metavar="NAME", help="Where DATA was extracted with several.")
@layer_option
@space_options
@views_options
@result_options
@click.option("--details", is_flag=True, help="Also the search, classes, doubtful labels, outliers, near copies.")
@click.option("--curve", is_flag=True, help="Also the learning curve: would more labelled images help?")
@click.option("--shots", type=positive, metavar="K",
              help="Also how good the head is with 1, 2, 4 and up to K images a class.")  # fmt: skip
@click.option("--repeats", type=click.IntRange(min=2), metavar="R",
              help="Of each point of --curve and --shots [default: 10].")  # fmt: skip
@memory_options
@seed_option
@cache_option
@common
def fit_head(data: Path | None, **given: Any) -> Any:
    """Train a head on cached embeddings: choose on train, score once on validation, save.

    Without DATA it takes the dataset of the latest extract. Nothing here needs the images or a GPU.

    \b
    headstart fit-head
    headstart fit-head photos --head mlp --hidden 1024 --dropout .5
    headstart fit-head photos --head mlp --hidden 256,1024 --lr .001,.0003
    headstart fit-head --class-weight balanced --out models/balanced
    headstart fit-head --details --curve
    headstart fit-head --shots 16 --repeats 20
    headstart fit-head --views 8
    headstart fit-head --memory 2GiB
    headstart fit-head --C .01 --cv 1 --engine dask --address tcp://10.0.0.1:8786
    headstart fit-head --features resnet18 --features mobilenet_v3_small:features.8
    """
    from .classify.fit import fit_head as run

    given = given_of(given)
    wanted = {name: given.pop(name) for name in SPACE_FIELDS if name in given}
    return run(data, wanted=wanted, **given)


@commands.command()
@click.argument("model", type=Data)
@click.argument("data", type=Pictures, required=False)
@click.option("--split", type=click.Choice(["val", "test", "train"]), default="val", show_default=True)
@click.option("--against", type=Data, metavar="MODEL2", help="Compare with a second model on the same images.")
@test_views_options
@device_options
@cache_option
@common
def evaluate(model: Path, data: Path | None, **given: Any) -> Any:
    """Score MODEL on the images of a split.

    Without DATA the dataset that the model was trained on is taken from the cache.

    \b
    headstart evaluate models/photos-resnet18-logistic
    headstart evaluate models/photos-resnet18-logistic --against models/photos-resnet18-mlp
    headstart evaluate models/photos-resnet18-logistic --views 4 --augment flip
    """
    from .classify.evaluate import evaluate as run
    from .extract.options import RunOptions

    given = given_of(given)
    how = RunOptions(**{name: given.pop(name) for name in RUN_FIELDS if name in given})
    return run(model, data, run=how, **given)


@commands.command()
@click.argument("model", type=Data)
@click.argument("paths", type=Pictures, nargs=-1, required=True, metavar="PATH...")
@prediction_options
@test_views_options
@grid_options
@device_options
@cache_option
@common
def predict(model: Path, paths: tuple[Path, ...], as_csv: bool, as_jsonl: bool, **given: Any) -> Any:
    """Say what MODEL sees in pictures. PATH is a picture, a folder of them, or - for a list on standard input.

    Lines come as pictures are done, sorted by path. One that cannot be read says why, and the exit status stays 0.

    \b
    headstart predict models/photos-resnet18-logistic new/ other.jpg
    find . -name '*.jpg' | headstart predict models/photos-resnet18-logistic - --csv
    headstart predict models/photos-resnet18-logistic new/ --jsonl --min-probability .9
    headstart predict models/photos-resnet18-logistic new/ --sort-into sorted --min-probability .9
    headstart predict models/photos-resnet18-logistic new/ --coverage .95
    headstart predict models/photos-resnet18-logistic new/ --views 4
    headstart predict models/photos-resnet18-logistic photos/val --grid predictions.png
    """
    from .classify.prediction_job import predict as run
    from .classify.prediction_job import read_paths
    from .extract.interrupt import stop_on_interrupt

    context = click.get_current_context()
    only_one_of(context, as_csv="--csv", as_jsonl="--jsonl", as_json="--json")
    form = "csv" if as_csv else "jsonl" if as_jsonl else "table"
    named = read_paths(paths, sys.stdin.buffer)
    stopped = context.with_resource(stop_on_interrupt())  # until all is printed
    return run(model, named, form=form, stopped=stopped, **given_of(given))


@commands.command()
@click.argument("data", type=Pictures, default=Path("data"))
@sample_options
@layout_option
@max_pixels_option
@seed_option
@common
def show(data: Path, **given: Any) -> Any:
    """Draw sample pictures of each class of DATA into one PNG file, to see what a network will see.

    Nothing is embedded or cached. The default of DATA is data/ in the working directory; it is read as `extract` does.

    \b
    headstart show photos
    headstart show photos --split val --per-class 8 -o val.png
    headstart show photos --seed 1 --overwrite
    """
    from .classify.show import show as run

    return run(data, **given_of(given))


@commands.command()
@click.argument("pattern", default="")
@click.option("--download", metavar="NAME", help="Fetch the weights of one backbone.")
@common
def backbones(pattern: str, download: str | None) -> Any:
    """List the backbones whose name contains PATTERN, with width, parameters, input size, licence and weights.

    \b
    headstart backbones
    headstart backbones resnet
    headstart backbones --download resnet18
    """
    from .extract.catalogue import catalogue, download_weights

    return download_weights(download) if download else catalogue(pattern)


@commands.command()
@common
def doctor() -> Any:
    """Show versions, devices, decoders, and where weights are found."""
    from .extract.doctor import examine

    return examine()


@commands.command()
@click.option("--out", "-o", type=Data, default=Path("headstart-demo"), show_default=True, metavar="DIR")
@common
def demo(out: Path) -> Any:
    """Do the main job on pictures that ship with scikit-learn: no network, no data, about half a minute."""
    from .demo import run

    return run(out)


commands.add_command(export)
commands.add_command(finetune)
commands.add_command(compare)
commands.add_command(report)
commands.add_command(serve)
commands.add_command(cache)


def run() -> NoReturn:
    """Run the command of this process's arguments and exit with its status.

    Importing torch makes a million objects that stay. The collector, which would walk over them again and again, is
    told to come less often, and at the end, when all memory goes back anyway, not to look at them
    (`benchmarks/collector.py`).
    """
    gc.set_threshold(GC_THRESHOLD)
    status = main()
    gc.freeze()
    sys.exit(status)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0 done, 1 failed, 2 wrong words, 130 interrupted.

    Parameters
    ----------
    arguments : sequence of str, optional
        The words after the program's name; those of the process where it is None.
    """
    return run_command(commands, sys.argv[1:] if arguments is None else arguments)


if __name__ == "__main__":  # as `python -m headstart.cli`
    run()
