"""Failures in columns behave as a dictionary does."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headstart.cache import failures as failures_module
from headstart.cache.failures import Failures

rows = st.integers(0, 40)
reasons = st.sampled_from(["not found", "permission denied", "is a directory", ""])
plain = st.dictionaries(rows, reasons)


@given(plain, st.lists(st.tuples(st.sampled_from(["set", "default", "delete", "look", "add"]), rows, reasons)))
def test_whatever_is_done_the_dictionary_says_the_same(
    start: dict[int, str], steps: list[tuple[str, int, str]]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(failures_module, "_FOLD_AT", 3)
        expected, found = dict(start), Failures(start)
        for what, row, reason in steps:
            if what == "set":
                expected[row] = found[row] = reason
            elif what == "default":
                assert expected.setdefault(row, reason) == found.setdefault(row, reason)
            elif what == "delete":
                assert expected.pop(row, None) == found.pop(row, None)
            elif what == "add":
                expected.update({row: reason, row + 1: reason})
                found.add(Failures({row: reason, row + 1: reason}))
            else:
                assert (row in found) == (row in expected) and found.get(row) == expected.get(row)
        assert found == expected and len(found) == len(expected) and list(found) == sorted(expected)
        assert found == Failures(expected) and pickle.loads(pickle.dumps(found)) == expected
        assert [found.reasons[code] for code in found.why] == [expected[row] for row in sorted(expected)]


@given(plain, st.lists(rows, unique=True))
def test_failures_of_some_rows_go_by_their_places(failures: dict[int, str], some: list[int]) -> None:
    expected = {place: failures[row] for place, row in enumerate(some) if row in failures}
    assert Failures(failures).take(np.array(some, np.int64)) == expected


@given(plain, plain)
def test_failures_are_the_same_where_the_dictionaries_are(first: dict[int, str], second: dict[int, str]) -> None:
    assert (Failures(first) == Failures(second)) == (first == second)


@given(plain, st.sampled_from([0, 100]))
def test_what_a_listing_keeps_is_read_again(failures: dict[int, str], many: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(failures_module, "MANY", many)
        arrays = Failures(failures).arrays()
        assert ("why" in arrays) == (not many)
        assert Failures.read(arrays) == failures


def test_many_failures_of_one_reason_take_twelve_bytes_each() -> None:
    failures = Failures.columns(np.arange(100_000), np.zeros(100_000, np.int32), ["not found"])
    arrays = failures.arrays()
    assert sum(array.nbytes for array in arrays.values()) == 12 * 100_000 + len(json.dumps(["not found"]))
    assert Failures.read(arrays) == failures and failures[99_999] == "not found"


@pytest.mark.parametrize(
    ("failed", "why", "reason"),
    [([1], [1], ["a"]), ([1], [-1], ["a"]), ([1, 2], [0], ["a"]), ([1], [0], {"a": 1}), ([1], [0], [1])],
)
def test_arrays_that_do_not_belong_together_are_refused(failed: list[int], why: list[int], reason: object) -> None:
    text = np.frombuffer(json.dumps(reason).encode(), np.uint8)
    arrays = {"failed": np.array(failed), "why": np.array(why, np.int32), "reason": text}
    with pytest.raises(ValueError, match=r"failures|values"):
        Failures.read(arrays)
