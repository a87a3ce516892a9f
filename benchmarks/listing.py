"""Listing at scale: a CSV of ten million made-up paths, and a folder of 100,000 files; each step in its own process.

A step's seconds are its own, by the clock and of the processor; its memory is the most that its process ever held, with
Python and numpy and with what the step was given. The files of the CSV are not there: each costs two calls of the file
system that fail, where a file that is there costs one. Beside them stand the same steps with a Python object a path, as
they were done before there were columns, on a tenth of the paths.

Run: python benchmarks/listing.py [number of paths [number of files]]
"""

import csv
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from headstart.cache.index import KeyIndex
from headstart.cache.listing import Listing, carry_over, read_listing, save_listing
from headstart.cache.part import Keys
from headstart.extract.csv_file import unique_lines
from headstart.extract.images import list_images
from headstart.extract.plan import to_look_at, unread_listing
from headstart.extract.status import all_examined, examined

PATHS, FILES, CLASSES = 10_000_000, 100_000, 1000
STRIDE = 7_368_787  # a prime: every so-manieth line comes next where lines are shuffled
LONG_AGO = 10**18  # nanoseconds: what is known of files that old is believed


def lines_of(count: int, stride: int = 1) -> Iterator[str]:
    """Yield a line of the CSV for each image; they are sorted by path where the stride is 1."""
    each = -(-count // CLASSES)
    for place in range(count):
        number = place * stride % count
        label = f"class_{number // each:04d}"
        yield f"{label}/photo_{number:08d}.jpg,{label},{'train' if number % 5 else 'val'}\n"


def make_csv(path: Path, count: int, stride: int = 1) -> None:
    with path.open("w") as file:
        file.write("path,label,split\n")
        file.writelines(lines_of(count, stride))


def make_files(folder: Path, count: int) -> None:
    for line in lines_of(count):
        path = folder / line.partition(",")[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


# Steps in columns


class Clock:
    """The seconds of a step, without those that it takes to make what it is given."""

    seconds = processor = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count what is done within."""
        begin, work = time.perf_counter(), time.process_time()
        yield
        self.seconds, self.processor = time.perf_counter() - begin, time.process_time() - work


def saved(folder: Path) -> Listing:
    return read_listing(max((folder / "cache").rglob("*.h5"), key=lambda path: path.name))


def read_lines(data: Path, clock: Clock) -> None:
    with clock.running():
        unique_lines(data)


def read_shuffled(data: Path, clock: Clock) -> None:
    with clock.running():
        unique_lines(data.with_name("shuffled.csv"))


def ask(data: Path, clock: Clock) -> None:
    names = unique_lines(data).paths
    with clock.running():
        all_examined(os.fsencode(data.parent), names)


def list_all(data: Path, clock: Clock) -> None:
    with clock.running():
        list_images(data)


def sort(data: Path, clock: Clock) -> None:
    names = list_images(data).paths if data.is_dir() else unique_lines(data).paths
    names = names.take(np.random.default_rng(0).permutation(len(names)))
    with clock.running():
        names.take(names.order())


def save(data: Path, clock: Clock) -> None:
    listing = unread_listing(list_images(data), "rules", 2 * LONG_AGO)
    random = np.random.default_rng(0)
    listing.stat[:] = random.integers(0, LONG_AGO, listing.stat.shape)
    listing.digest.view(np.uint64)[:] = random.integers(1, 1 << 63, (len(listing), 4), np.uint64)
    (data.parent / "cache").mkdir()
    with clock.running():
        save_listing(data.parent / "cache", replace(listing, failures={}))


def load(data: Path, clock: Clock) -> None:
    with clock.running():
        saved(data.parent)


def compare(data: Path, clock: Clock) -> None:
    """Compare with a listing of the same files, as a warm run does when it begins and when it ends."""
    before, now = saved(data.parent), saved(data.parent)
    with clock.running():
        rows = carry_over(before, now.paths, now.stat)
        same = before.says_the_same(now)
    if not same or (rows < 0).any():
        sys.exit("the two are the same")


def compare_changed(data: Path, clock: Clock) -> None:
    """Compare with a listing of files of which every hundredth has gone."""
    before = saved(data.parent)
    left = np.flatnonzero(np.arange(len(before)) % 100)
    paths, stat = before.paths.take(left), before.stat[left]
    with clock.running():
        rows = carry_over(before, paths, stat)
    if (rows != left).any():
        sys.exit("some were not found")


def look_up(data: Path, clock: Clock) -> None:
    """Find out which images have no row in a space that holds all of them but every thousandth."""
    listing = saved(data.parent)
    held = np.flatnonzero(np.random.default_rng(1).permutation(len(listing)) % 1000)
    with clock.running():
        todo = to_look_at(listing, [KeyIndex([Keys.plain(listing.digest[held])])])
    if len(todo) != len(listing) - len(held):
        sys.exit("the wrong images are looked at")


# The same with an object a path


def objects_list(data: Path, clock: Clock) -> None:
    with clock.running():
        lines: dict[bytes, tuple[int, str, str]] = {}
        with data.open(newline="") as file:
            reader = csv.reader(file)
            next(reader)
            for path, label, split in reader:
                lines.setdefault(os.fsencode(path), (reader.line_num, label, split))
        found = {path: examined(os.path.join(os.fsencode(data.parent), path)) for path in lines}  # noqa: PTH118
        stat = np.array([status for status, _ in found.values()], np.int64)
        reasons = {row: reason for row, (_, reason) in enumerate(found.values()) if reason}
        order = sorted(range(len(lines)), key=[*lines].__getitem__)
    if not len(stat) == len(reasons) == len(order):
        sys.exit("these files are not there")


def objects_sort(data: Path, clock: Clock) -> None:
    names = [*unique_lines(data).paths]
    names = [names[row] for row in np.random.default_rng(0).permutation(len(names))]
    with clock.running():
        names.sort()


def objects_load(data: Path, clock: Clock) -> None:
    joined = unique_lines(data).paths.joined
    with clock.running():
        joined.tobytes().split(b"\0")


def objects_compare(data: Path, clock: Clock) -> None:
    before = [*unique_lines(data).paths]
    left = [name for row, name in enumerate(before) if row % 100]
    with clock.running():
        places = {name: row for row, name in enumerate(before)}
        np.array([places.get(name, -1) for name in left], np.int64)


OF_CSV = [read_lines, read_shuffled, ask, list_all, sort, save, load, compare, compare_changed, look_up]
OF_FOLDER = [list_all, sort, save, load, compare, compare_changed, look_up]
OF_OBJECTS = [objects_list, objects_sort, objects_load, objects_compare]
BESIDE = [list_all, sort, load, compare_changed]
STEPS: dict[str, Callable[[Path, Clock], None]] = {step.__name__: step for step in OF_CSV + OF_OBJECTS}


def measured(step: Callable[[Path, Clock], None], data: Path) -> tuple[float, float, int]:
    """Take a step in a process of its own; return its seconds, both kinds, and the process's greatest size in bytes."""
    command = [sys.executable, __file__, "--step", step.__name__, str(data)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    seconds, processor, size = json.loads(done.stdout)
    return seconds, processor, size


def take(name: str, data: Path) -> None:
    clock = Clock()
    STEPS[name](data, clock)
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps([clock.seconds, clock.processor, size if sys.platform == "darwin" else size * 1024]))


def report(what: str, count: int, steps: list[Callable[[Path, Clock], None]], data: Path) -> None:
    print(f"{what}, {count:,} of them")
    for step in steps:
        seconds, processor, size = measured(step, data)
        each = f"{processor / count * 1e6:.2f} us and {size / count:.0f} bytes a path"
        taken = f"{seconds:7.2f} s, {processor:7.2f} s of the processor"
        print(f"  {step.__name__:16s} {taken}, at most {size / 1e9:.2f} GB: {each}", flush=True)


def main() -> None:
    if sys.argv[1:2] == ["--step"]:
        take(sys.argv[2], Path(sys.argv[3]))
        return
    paths, files = [*map(int, sys.argv[1:]), *(PATHS, FILES)[len(sys.argv) - 1 :]]
    with tempfile.TemporaryDirectory() as name:
        for part, count in (("csv", paths), ("tenth", paths // 10)):
            (Path(name) / part).mkdir()
            make_csv(Path(name) / part / "list.csv", count)
            make_csv(Path(name) / part / "shuffled.csv", count, STRIDE)
        make_files(Path(name) / "real" / "photos", files)
        report("paths in a CSV", paths, OF_CSV, Path(name) / "csv" / "list.csv")
        report("files in a folder", files, OF_FOLDER, Path(name) / "real" / "photos")
        data = Path(name) / "tenth" / "list.csv"
        report("paths in a CSV, in columns", paths // 10, [save, *BESIDE], data)
        report("the same with an object a path", paths // 10, OF_OBJECTS, data)


if __name__ == "__main__":
    main()
