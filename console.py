"""What all commands share on the command line: kinds of options, how results are printed, how errors become lines."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import sys
import time
import traceback
import weakref
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any, TypeVar

import click

from .errors import HeadstartError, ToldElsewhereError, UsageError, printable

logger = logging.getLogger("headstart")
Command = TypeVar("Command", bound=Callable[..., Any])
# torchrun ends all processes of a run when one ends: who has nothing to say lets the one that has come first.
_GIVE_WAY_SECONDS = 3.0
INTERRUPTED = 130
# Under which title an option stands in the help of its command.
SECTIONS: weakref.WeakKeyDictionary[click.Parameter, str] = weakref.WeakKeyDictionary()
_REST = "Other options"
_INTERRUPTED_TEXT = "interrupted; what was embedded is in the cache, run again to go on"


class Numbers(click.ParamType[tuple[float, ...]]):
    """Three numbers with commas between them."""

    name = "a,b,c"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """Return the numbers as floats."""
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(float(word) for word in value.split(","))
        except ValueError:
            numbers = ()
        if len(numbers) != 3:
            self.fail(f"{value!r} is not three numbers like .485,.456,.406", param, ctx)
        return numbers


class Several(click.ParamType[tuple[float, ...]]):
    """One number, or several with commas between them; what each may be is for the head to say."""

    def __init__(self, number: type[int] | type[float]) -> None:
        self.number = number
        self.name = "N[,N...]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """Return the numbers."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(self.number(word) for word in value.split(","))
        except ValueError:
            kind = "a whole number" if self.number is int else "a number"
            self.fail(f"{value!r} is neither {kind} nor several with commas between them", param, ctx)


def joined(_context: click.Context, _option: click.Parameter, given: Sequence[tuple[float, ...]]) -> tuple[float, ...]:
    """Take a repeated option of several numbers as one list of them."""
    return tuple(number for numbers in given for number in numbers)


class NumberOr(click.ParamType[int | float | str]):
    """A number, or one word that stands for something else."""

    def __init__(self, number: type[int] | type[float], word: str) -> None:
        self.number, self.word = number, word
        self.name = f"N|{word}"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | float | str:
        """Return the number or the word."""
        if value == self.word:
            return self.word
        try:
            number = self.number(value)
        except ValueError:
            number = self.number(0)
        if not 0 < number < float("inf"):
            self.fail(f"{value!r} is neither a number above 0 nor {self.word!r}", param, ctx)
        return number


def options(*decorators: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Join option decorators into one, in the order in which `--help` shows them."""

    def decorate(command: Command) -> Command:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


def section(title: str, *decorators: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Join option decorators as `options` does, under a title of their own in the `--help` of a `Sectioned` command."""

    def decorate(command: Command) -> Command:
        before = len(getattr(command, "__click_params__", []))
        command = options(*decorators)(command)
        for parameter in getattr(command, "__click_params__", [])[before:]:
            SECTIONS[parameter] = title
        return command

    return decorate


class Sectioned(click.Command):
    """A command whose options stand under titles, in the order of its sections; what has none comes last."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options into the help."""
        titled: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                titled.setdefault(SECTIONS.get(parameter, _REST), []).append(record)
        for title, records in sorted(titled.items(), key=lambda item: item[0] == _REST):
            with formatter.section(title):
                formatter.write_dl(records)


def common(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command `--json`, `--quiet` and `--debug`, and print what it returns.

    The command returns an object with `summary()`, the fields of `--json`, and `lines()` for people. Its attribute
    `on_stdout` says that those lines are the result itself, a table, and not a report on the work done; they may come
    one by one while the work is done. `status` is an exit status other than 0 for work that was done and found
    something wrong.
    """

    @functools.wraps(command)
    def run(*, as_json: bool, quiet: bool, debug: bool, **given: Any) -> None:
        logger.setLevel(logging.DEBUG if debug else logging.WARNING if quiet else logging.INFO)
        result = command(**given)
        if not getattr(result, "shown", True):  # another process of the same run tells of it
            return
        on_stdout = getattr(result, "on_stdout", False)
        if as_json:
            click.echo(json.dumps(result.summary(), allow_nan=False))
        elif on_stdout:
            _print(result.lines())
        elif not quiet:
            for line in result.lines():
                click.echo(printable(line), err=True)
        if getattr(result, "status", 0):
            sys.exit(result.status)

    return options(
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output."),
        click.option("--quiet", "-q", is_flag=True, help="Only warnings on standard error."),
        click.option("--debug", is_flag=True, help="Show the traceback of an error."),
    )(run)


def _print(lines: Iterable[str]) -> None:
    """Print lines as they come; work that gives them is ended where nobody reads them any more."""
    with contextlib.ExitStack() as stack:
        if isinstance(lines, Generator):
            stack.enter_context(contextlib.closing(lines))
        for line in lines:
            with _above_bar(sys.stdout):
                click.echo(_as_named(line))


def _above_bar(file: Any) -> contextlib.AbstractContextManager[Any]:
    """Return a block in which a progress bar makes room for what is written to a terminal."""
    bars = sys.modules.get("tqdm")
    if bars is None or not all(stream is not None and stream.isatty() for stream in (file, sys.stderr)):
        return contextlib.nullcontext()
    room: contextlib.AbstractContextManager[Any] = bars.tqdm.external_write_mode(file=file)
    return room


def _as_named(line: str) -> str | bytes:
    """Return a line of a table with names as the file system has them, also where they are no text."""
    try:
        line.encode()
    except UnicodeEncodeError:
        return os.fsencode(line)
    return line


class _ToStderr(logging.Handler):
    """Shows log records as lines for people, above a progress bar where there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        text = printable(record.getMessage())  # names from outside must not steer a terminal
        if record.levelno >= logging.WARNING:
            text = f"warning: {text}"
        with _above_bar(sys.stderr):
            click.echo(text, err=True)


def run_command(commands: click.Command, words: Sequence[str]) -> int:
    """Run one command and return its exit status: 0 done, 1 failed, 2 wrong words, 130 interrupted.

    Parameters
    ----------
    commands : click.Command
    words : sequence of str
        What stands behind the program's name.
    """
    handler = _ToStderr()
    logger.addHandler(handler)
    logger.propagate = False
    try:
        commands.main(args=list(words), prog_name="headstart", standalone_mode=False)
        return 0
    except BaseException as error:  # noqa: BLE001  (the one place where every error becomes a line and a status)
        return _report(error, words)
    finally:
        logger.removeHandler(handler)


def _report(error: BaseException, words: Sequence[str]) -> int:
    """Turn an error into one line, or an object for `--json`, and the exit status."""
    if isinstance(error, click.exceptions.Exit | SystemExit):
        code = getattr(error, "exit_code", getattr(error, "code", 1))
        return code if isinstance(code, int) else 1
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        click.echo(error.format_message(), err=True)
        return 2
    if isinstance(error, BrokenPipeError):
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115  # whoever read our output has left: nothing to flush at exit
        return 1
    if "--debug" in words and not isinstance(error, click.ClickException):
        traceback.print_exception(error)
    kind, message, status = _explain(error)
    if _told_elsewhere(error):
        time.sleep(_GIVE_WAY_SECONDS)
        return status
    if "--json" in words:
        click.echo(json.dumps({"error": {"type": kind, "message": message}}))
    else:
        click.echo(f"error: {message}" if status != INTERRUPTED else message, err=True)
    return status


def _told_elsewhere(error: BaseException) -> bool:
    """Tell whether another process of the same run, as torchrun starts them, says what went wrong."""
    wrong_words = isinstance(error, click.ClickException)  # which are the same for all of them
    return isinstance(error, ToldElsewhereError) or (wrong_words and os.environ.get("RANK", "0") != "0")


def _explain(error: BaseException) -> tuple[str, str, int]:
    kind = type(error).__name__
    if isinstance(error, KeyboardInterrupt | click.exceptions.Abort):
        # click makes its own Abort of a KeyboardInterrupt, which says what became of the work.
        interrupt = error.__cause__ if isinstance(error, click.exceptions.Abort) else error
        said = str(interrupt) if isinstance(interrupt, KeyboardInterrupt) else ""
        return "Interrupted", printable(said) or _INTERRUPTED_TEXT, INTERRUPTED
    if isinstance(error, click.ClickException):
        hint = f" (see `{error.ctx.command_path} --help`)" if isinstance(error, click.UsageError) and error.ctx else ""
        return kind, " ".join(error.format_message().split()) + hint, 2
    if isinstance(error, HeadstartError):
        return kind, printable(str(error)), 2 if isinstance(error, UsageError) else 1
    text = " ".join(str(error).split())
    return kind, f"internal error: {kind}: {text}; run again with --debug and report what it shows", 1
