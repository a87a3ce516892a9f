"""The pages say what the program does: commands exist, options are accepted, links lead somewhere."""

import re
import shlex
from pathlib import Path

import click
import pytest

import headstart
from headstart.cli import commands

ROOT = Path(headstart.__file__).parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


def command_lines():
    for page in PAGES:
        for line in page.read_text().replace("\\\n", " ").split("\n"):
            if line.startswith("headstart "):
                yield pytest.param(line, id=f"{page.name}: {line}")


@pytest.mark.parametrize("line", list(command_lines()))
def test_every_command_line_can_be_parsed(line):
    name, *words = shlex.split(line)[1:]
    command = commands.commands[name]
    while isinstance(command, click.Group):
        command, words = command.commands[words[0]], words[1:]
    command.make_context(name, words)


def test_there_are_command_lines():
    assert len(list(command_lines())) >= 10


def test_every_command_is_in_the_readmes_table():
    table = {match.split()[0] for match in re.findall(r"^\| `([^`]+)`", (ROOT / "README.md").read_text(), re.MULTILINE)}
    assert set(commands.commands) <= table


@pytest.mark.parametrize("name", sorted(commands.commands))
def test_every_command_and_option_has_help(name):
    command = commands.commands[name]
    assert command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option) and not isinstance(command, click.Group):
            assert parameter.help or parameter.show_default or isinstance(parameter.type, click.Choice), parameter.name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_every_decision_is_in_the_index():
    folder = ROOT / "docs" / "decisions"
    index = (folder / "README.md").read_text()
    for page in folder.glob("0*.md"):
        assert f"({page.name})" in index


def test_what_the_readme_shows_of_python_exists():
    for name in ("extract", "fit_head", "load", "evaluate"):
        assert callable(getattr(headstart, name))
        assert getattr(headstart, name).__doc__ or name == "extract"
