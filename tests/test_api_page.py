"""The page on Python runs from top to bottom, gives what it shows, and prints nothing besides."""

import doctest
import re
import shutil
from pathlib import Path

import headstart

PAGE = Path(headstart.__file__).parent / "docs" / "api.md"
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.REPORT_NDIFF


def examples() -> str:
    """Return the blocks of code, a blank line behind each, where doctest takes what it shows to end."""
    return "\n".join(re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL))


def test_the_page_gives_what_it_shows(few, tmp_path, monkeypatch, capfd):
    shutil.copytree(few, tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    page = doctest.DocTestParser().get_doctest(examples(), {}, PAGE.name, str(PAGE), 0)
    told: list[str] = []
    outcome = doctest.DocTestRunner(optionflags=FLAGS).run(page, out=told.append)
    assert not outcome.failed, "".join(told)
    assert outcome.attempted > 40
    assert capfd.readouterr().out == ""


def test_every_public_function_has_a_heading():
    headings = set(re.findall(r"^## (\w+)$", PAGE.read_text(), re.MULTILINE))
    assert set(headstart.__all__) - {"HeadstartError", "__version__"} <= headings
