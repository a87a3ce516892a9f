"""One key is found where many are, whatever its recipe and view."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from headstart.cache.index import _SPREAD_RECIPE, _SPREAD_VIEW, KeyIndex
from headstart.cache.part import Keys

WORD = 1 << 64
# Few beginnings and few ends, so that keys agree in what the index sorts by and differ elsewhere, and the reverse.
digests = st.tuples(st.sampled_from([0, 1, WORD - 1, 1 << 63]), st.sampled_from([0, 1])).map(
    lambda pair: pair[0].to_bytes(8, "little") + bytes(23) + bytes([pair[1]])
)
recipes = st.sampled_from([0, 1, 77, WORD - 1, 15506057093778840370])
views = st.sampled_from([0, 1, 2, 3, 255, 2**32 - 1])
keys = st.lists(st.tuples(digests, recipes, views), max_size=40)


def keys_of(rows: list[tuple[bytes, int, int]]) -> Keys:
    digest = np.frombuffer(b"".join(row[0] for row in rows), np.uint8).reshape(-1, 32)
    return Keys(digest, np.array([row[1] for row in rows], np.uint64), np.array([row[2] for row in rows], np.uint32))


@settings(max_examples=200, deadline=None)
@given(st.lists(keys, max_size=4), keys)
def test_one_key_is_found_where_many_are(parts, strangers):
    index, asked = KeyIndex([keys_of(part) for part in parts]), [row for part in parts for row in part] + strangers
    found = index.find(keys_of(asked)).tolist()
    assert [index.find_one(*row) for row in asked] == found
    first: dict[tuple[bytes, int, int], int] = {}
    for place, row in enumerate(row for part in parts for row in part):
        first.setdefault(row, place)
    assert found == [first.get(row, -1) for row in asked]


def test_keys_whose_hashes_are_equal_are_told_apart():
    recipe, view, spread = 77, 3, int(_SPREAD_RECIPE)
    mixed = ((recipe * spread) ^ (view * int(_SPREAD_VIEW))) % WORD
    plain = mixed.to_bytes(8, "little") + bytes(24)  # its view 0 has the hash that the first one's view 3 has
    twin = mixed * pow(spread, -1, WORD) % WORD  # and its view 0 of this recipe
    rows = [(bytes(32), recipe, view), (plain, 0, 0), (bytes(32), twin, 0)]
    for count in (1, 2, 3):
        index, there = KeyIndex([keys_of(rows[:count])]), [*range(count), *[-1] * (3 - count)]
        assert [index.find_one(*row) for row in rows] == index.find(keys_of(rows)).tolist() == there
    strangers = [(bytes(32), 0, 0), (plain, recipe, view), (bytes(32), recipe, 0), (plain, 0, 3)]
    assert [index.find_one(*row) for row in strangers] == index.find(keys_of(strangers)).tolist() == [-1] * 4
