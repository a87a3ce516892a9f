"""The figures of docs/recipes: each page's loop and its cached route, as whole processes timed from outside.

The networks of the tutorials need weights that are downloaded; here `efficientnet_lite0`, whose weights are packaged,
stands in for each, on the ants and bees (245 training, 153 validation images) and the hotdogs (200 and 50). Where all
layers are trained the pictures are of 160 pixels instead of 224 and some runs have fewer epochs, so that all pages take
about eleven minutes on two cores; what was changed is in the rows. Prints one table a page, in markdown, for the place
that is marked FIGURES there.

Run: HEADSTART_SAMPLES=... python benchmarks/recipes.py [PAGE ...] [--quick]
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

HEADSTART = [sys.executable, "-c", "from headstart.cli import run; run()"]
QUICK = {"finetune": "--epochs 1 --limit 40 --crop 64", "extract": "--limit 40 --crop 64", "fit-head": ""}

BACKBONE = "--backbone efficientnet_lite0"
SMALL = "--resize 184 --crop 160"
PLAIN_SGD = "--optimizer sgd --momentum 0 --weight-decay 0 --schedule constant"
SGD = "--optimizer sgd --momentum .9 --weight-decay 0 --schedule constant"
ON_VAL = "--select-on val --select-by accuracy"
HALVES = "--mean .5,.5,.5 --std .5,.5,.5"

CATS = f"--head mlp --hidden 1024 {HALVES} --augment crop {PLAIN_SGD} --lr .01 --batch-size 64 --select-on last"
HOTDOG = (
    "--optimizer sgd --momentum 0 --weight-decay .001 --schedule constant --batch-size 128 --epochs 5 "
    f"--augment tutorial --select-on last --val-fraction 0 {SMALL}"
)
VGG = "--head mlp --hidden 4096 --hidden 4096 --dropout .5"
ANTS = f"--augment strong {SGD} --batch-size 16 {ON_VAL}"
ALIEN = f"--augment none {HALVES} {SGD} --lr .001 --batch-size 32 {ON_VAL}"


class Run(NamedTuple):
    """One row: what it is called on the page, the set, and the commands, of which the last one gives the score."""

    name: str
    data: str
    commands: tuple[str, ...]


def finetune(name: str, data: str, options: str, out: str = "") -> Run:
    return Run(name, data, (f"finetune {data} {BACKBONE} {options} --out models/{out or name.replace(' ', '-')}",))


def cached(name: str, data: str, head: str = "", space: str = "") -> Run:
    return Run(name, data, (f"extract {data} {BACKBONE} {space}", f"fit-head {data} {head}"))


PAGES = {
    "cats-and-rabbits": [
        finetune("the loop, 10 epochs", "hymenoptera", f"--train head --resize none --crop 224 --epochs 10 {CATS}"),
        finetune("the loop, 10 epochs", "hotdog", f"--train head --resize none --crop 224 --epochs 10 {CATS}", "hot"),
        finetune("all layers, 5 epochs, 160 pixels", "hymenoptera", f"--head-lr-mult 1 {SMALL} --epochs 5 {CATS}"),
        cached(
            "`extract`, `fit-head`", "hymenoptera", "--head mlp --hidden 1024", f"--resize none --crop 224 {HALVES}"
        ),
        cached("`extract`, `fit-head`", "hotdog", "--head mlp --hidden 1024", f"--resize none --crop 224 {HALVES}"),
        cached("the same, resized as the weights ask", "hymenoptera", "--head mlp --hidden 1024 --out models/resized"),
    ],
    "hotdog": [
        finetune("finetuned at .01", "hotdog", f"--lr .01 --head-lr-mult 10 {HOTDOG}"),
        finetune("random weights at .1", "hotdog", f"--weights none --lr .1 --head-lr-mult 1 {HOTDOG}"),
        finetune("a larger rate, .1", "hotdog", f"--lr .1 --head-lr-mult 10 {HOTDOG}"),
        finetune("fewer weights, `--reinit _blocks.11`", "hotdog", f"--reinit _blocks.11 --lr .01 {HOTDOG}", "fewer"),
        finetune("ImageNet's row", "hotdog", f"--init-head imagenet:hotdog=934 --lr .01 {HOTDOG}"),
        finetune("reused weights frozen", "hotdog", f"--train head --lr .1 {HOTDOG} --resize 256 --crop 224"),
        cached("`extract`, `fit-head`", "hotdog"),
    ],
    "three-ways": [
        finetune(
            "features only, 10 epochs, 224 pixels", "hymenoptera",
            f"--train head {VGG} --lr .0001 --epochs 10 {ON_VAL}",
        ),
        finetune(
            "the architecture alone, 5 epochs", "hymenoptera",
            f"--weights none --head-lr-mult 1 {VGG} --epochs 5 {SMALL} {ON_VAL}", "none",
        ),
        finetune(
            "some layers, `--train _blocks.11`, 5 epochs", "hymenoptera",
            f"--train _blocks.11 --head-lr-mult 1 {VGG} --epochs 5 {SMALL} {ON_VAL}",
            "some",
        ),
        cached("`extract`, `fit-head`, 224 pixels", "hymenoptera"),
    ],
    "ants-and-bees": [
        finetune(
            "the loop: head alone, 15 epochs", "hymenoptera", f"--train head --lr .001 --epochs 15 {ANTS}", "head"
        ),
        finetune(
            "then all layers, 5 epochs, 160 pixels", "hymenoptera",
            f"--init-head models/head --lr .0001 --head-lr-mult 10 --layer-decay .7 --epochs 5 {SMALL} {ANTS}", "all",
        ),
        cached("`extract`, `fit-head`", "hymenoptera"),
        finetune(
            "the cached head, then all layers, 5 epochs", "hymenoptera",
            f"--init-head models/hymenoptera-efficientnet_lite0-logistic --epochs 5 {SMALL}",
        ),
    ],
    "alien-and-predator": [
        finetune(
            "the loop, 25 epochs", "hymenoptera", f"--train head --resize none --crop 224 --epochs 25 {ALIEN}", "ants"
        ),
        finetune("the loop, 25 epochs", "hotdog", f"--train head --resize none --crop 224 --epochs 25 {ALIEN}", "hot"),
        finetune(
            "all layers, 5 epochs, 160 pixels", "hymenoptera", f"--head-lr-mult 1 {SMALL} --epochs 5 {ALIEN}", "all"
        ),
        cached("`extract`, `fit-head`", "hymenoptera", space=f"--resize none --crop 224 {HALVES}"),
        cached("`extract`, `fit-head`", "hotdog", space=f"--resize none --crop 224 {HALVES}"),
    ],
}  # fmt: skip


def measured(run: Run, folder: str, *, quick: bool) -> str:
    """Run the commands in `folder` and return the row."""
    seconds = []
    for command in run.commands:
        words = command.split()
        words += (QUICK[words[0]] if quick else "").split()
        begin = time.perf_counter()
        done = subprocess.run([*HEADSTART, *words, "--json"], cwd=folder, capture_output=True, text=True, check=False)
        seconds.append(time.perf_counter() - begin)
        if done.returncode:
            sys.exit(f"{command}\n{done.stderr}{done.stdout}")
    result = json.loads(done.stdout)
    val = result["val"]
    score = f"{100 * val['accuracy']:.1f} ({100 * val['low']:.1f} to {100 * val['high']:.1f})"
    epochs = f"{result['epochs']}, took {result['best_epoch']}" if "best_epoch" in result else ""
    return f"| {run.name} | {run.data} | {score} | {' + '.join(f'{number:.1f}' for number in seconds)} | {epochs} |"


def main() -> None:
    samples = os.environ.get("HEADSTART_SAMPLES")
    if not samples:
        sys.exit("HEADSTART_SAMPLES names no folder of sample photographs")
    names = [word for word in sys.argv[1:] if word != "--quick"] or list(PAGES)
    if unknown := [name for name in names if name not in PAGES]:
        sys.exit(f"no page {unknown[0]}; there are {', '.join(PAGES)}")
    for name in names:
        print(f"\nFIGURES:{name}\n")
        print("| what | set | validation % (95 % interval) | seconds | epochs |\n|---|---|---|---|---|")
        with tempfile.TemporaryDirectory() as folder:
            for data in ("hymenoptera", "hotdog"):
                (Path(folder) / data).symlink_to(Path(samples).resolve() / data)
            for run in PAGES[name]:
                print(measured(run, folder, quick="--quick" in sys.argv), flush=True)


if __name__ == "__main__":
    main()
