"""Names in columns behave as a list of bytes does."""

from __future__ import annotations

import pickle
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headstart.cache import names as names_module
from headstart.cache.names import GrowingNames, Names

# Few letters, so that names are prefixes of each other, repeat and differ late; NUL is among them, although no file
# has it in its name.
short = st.lists(st.sampled_from([b"", b"\x01", b"a", b"b", b"/", b"\xff", b"\0", b"aaaaaaaa", b"class_0123/"]))
name = st.one_of(short.map(b"".join), st.binary(max_size=40))
many = st.lists(name, max_size=60)


def some_names(count: int, prefix: bytes = b"") -> list[bytes]:
    draw = random.Random(count)
    return [prefix + draw.randbytes(draw.randrange(30)).replace(b"\0", b"\x01") for _ in range(count)]


@pytest.fixture(params=[100, 4096])
def at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(names_module, "AT_ONCE", request.param)
    return request.param


@given(many)
def test_names_are_a_sequence_like_the_list(plain: list[bytes]) -> None:
    names = Names.of(iter(plain))
    assert len(names) == len(plain)
    assert list(names) == plain == names
    assert [names[row] for row in range(-len(plain), len(plain))] == plain + plain
    assert all((one in names) == (one in plain) for one in [b"a", b"", *plain])
    assert names != [*plain, b"a"]
    assert pickle.loads(pickle.dumps(names)) == plain
    for row in (len(plain), -len(plain) - 1):
        with pytest.raises(IndexError):
            names[row]


@given(many, st.slices(60))
def test_slices_are_those_of_the_list(plain: list[bytes], piece: slice) -> None:
    names = Names.of(plain)[piece]
    assert isinstance(names, Names)
    assert names == plain[piece] and names == Names.of(plain[piece])
    assert pickle.loads(pickle.dumps(names)) == plain[piece]
    assert names.joined.tobytes() == b"".join(one + b"\0" for one in plain[piece])


@given(many, st.data())
def test_rows_are_taken_in_any_order_and_number(plain: list[bytes], data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.integers(0, len(plain) - 1), max_size=80)) if plain else []
    assert Names.of(plain).take(np.array(rows, np.int64)) == [plain[row] for row in rows]


@given(many)
def test_the_order_is_that_of_python(plain: list[bytes]) -> None:
    names = Names.of(plain)
    expected = sorted(range(len(plain)), key=plain.__getitem__)
    assert names.order().tolist() == expected
    in_order = names.take(names.order())
    assert in_order.ascends(strictly=False)
    assert in_order.ascends() == (len(set(plain)) == len(plain))
    assert in_order.repeats().tolist() == [row > 0 and in_order[row] == in_order[row - 1] for row in range(len(plain))]


@given(many, many)
def test_names_are_found_where_the_list_has_them(plain: list[bytes], asked: list[bytes]) -> None:
    expected = [plain.index(one) if one in plain else -1 for one in asked]
    assert Names.of(plain).find(Names.of(asked)).tolist() == expected
    assert Names.of(plain).find(Names.of(plain)).tolist() == [plain.index(one) for one in plain]


@given(many.filter(lambda plain: not any(b"\0" in one for one in plain)))
def test_what_was_joined_is_read_again(plain: list[bytes]) -> None:
    assert Names.read(Names.of(plain).joined) == plain


def test_a_name_without_an_end_is_refused() -> None:
    with pytest.raises(ValueError, match="without an end"):
        Names.read(np.frombuffer(b"a\0b", np.uint8))


@pytest.mark.parametrize("prefix", [b"", b"class_0123/photo_of_a_place_", b"\xff" * 300], ids=["none", "some", "long"])
def test_ten_thousand_names(prefix: bytes, at_once: int) -> None:
    plain = some_names(10_000, prefix)
    names = Names.of(plain)
    assert list(names) == plain
    assert names.order().tolist() == sorted(range(len(plain)), key=plain.__getitem__)
    assert names.take(names.order()) == sorted(plain)
    first = {one: row for row, one in reversed(list(enumerate(plain)))}
    asked = [*some_names(5_000, prefix), *plain[::3]]
    assert names.find(Names.of(asked)).tolist() == [first.get(one, -1) for one in asked]


def test_one_name_of_ten_thousand_may_be_long() -> None:
    plain = [*some_names(10_000), b"x" * 5000 + b"b", b"x" * 5000 + b"a"]
    assert Names.of(plain).order().tolist() == sorted(range(len(plain)), key=plain.__getitem__)


@settings(max_examples=25)
@given(many, many)
def test_a_hash_that_is_the_same_for_all_gives_no_wrong_row(plain: list[bytes], asked: list[bytes]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(names_module, "hash", lambda _: 5, raising=False)
        expected = [plain.index(one) if one in plain else -1 for one in asked]
        assert Names.of(plain).find(Names.of(asked)).tolist() == expected


@given(many, st.integers(0, 60))
def test_names_may_come_in_one_by_one_or_together(plain: list[bytes], middle: int) -> None:
    growing = GrowingNames()
    growing.extend(plain[:middle])
    for one in plain[middle:]:
        growing.append(one)
    growing.extend([])
    assert len(growing) == len(plain)
    assert growing.finished() == plain


def test_names_are_no_key_and_equal_no_text() -> None:
    names = Names.of([b"a"])
    with pytest.raises(TypeError):
        hash(names)
    assert names != b"a" and names != "a" and names != {b"a"} and names == (b"a",)


def test_few_names_of_many_are_shown() -> None:
    assert repr(Names.of([b"a"] * 9)) == "Names([b'a', b'a', b'a', ...], 9 in all)"
