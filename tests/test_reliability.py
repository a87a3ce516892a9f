"""The page on reliability names, for every fault, a test that exists."""

import ast
import re
from pathlib import Path

import headstart

ROOT = Path(headstart.__file__).parent
PAGE = (ROOT / "docs" / "reliability.md").read_text()
TESTS = {
    node.name
    for path in (ROOT / "tests").rglob("test_*.py")
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
}


def test_every_fault_has_a_test_that_is_named_for_it_and_exists():
    rows = dict(re.findall(r"^\| F(\d+) \|.*\| `(\w+)` \|$", PAGE, re.MULTILINE))
    assert [int(number) for number in rows] == list(range(1, 49))
    for number, name in rows.items():
        assert name in TESTS, name
        assert f"_f{int(number):02}_" in name, name


def test_every_fault_of_a_bucket_has_a_test_that_exists():
    rows = dict(re.findall(r"^\| B(\d+) \|.*\| `(\w+)` \|$", PAGE, re.MULTILINE))
    assert [int(number) for number in rows] == list(range(1, 19))
    assert set(rows.values()) <= TESTS


def test_every_series_has_tests_that_are_named_for_it():
    numbers = {int(number) for name in TESTS for number in re.findall(r"^test_t(\d+)_", name)}
    assert numbers == {1, 2, 3, 4, 5, 6, 7, 8, 10, 11}, "T9 needs a network file system"


def test_every_file_of_tests_that_the_page_names_exists():
    for name in re.findall(r"`(tests/[\w/]+\.py)`", PAGE):
        assert (ROOT / name).exists(), name
