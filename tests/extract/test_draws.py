"""Draws: these numbers for ever, evenly, and mathematics to the same bits on every machine."""

import math
import struct
from collections import Counter

import pytest

from headstart.extract.draws import Draws
from headstart.extract.portable import exponential, sine_cosine


def test_a_seed_gives_these_numbers_for_ever():
    # Cached views are drawn from them. If one changes, every number in RECIPE_VERSIONS must go up.
    draws = Draws(0)
    assert [draws.uniform() for _ in range(5)] == [
        0.8491123407460973,
        0.926336085627935,
        0.5154120546204526,
        0.8866989968185798,
        0.5000460061896951,
    ]
    draws = Draws(2**64 - 1)
    assert [draws.below(1000) for _ in range(6)] == [750, 644, 486, 288, 594, 883]
    assert [draws.chance(0.5) for _ in range(6)] == [False, True, True, False, False, False]
    assert draws.permutation(8) == [4, 0, 2, 3, 7, 6, 1, 5]
    assert draws.choice("abcdefgh") == "h"
    assert draws.uniform(-15, 15) == 13.961161056234829


def test_seeds_of_more_than_64_bits_are_refused():
    for seed in (-1, 2**64):
        with pytest.raises(OverflowError):
            Draws(seed)


def test_the_stream_is_the_same_however_it_is_asked_for():
    mixed, plain = Draws(7), Draws(7)
    words = [plain.uniform() for _ in range(9)]
    assert mixed.below(10) == int(words[0] * 10)
    assert mixed.chance(0.3) == (words[1] < 0.3)
    assert mixed.uniform(2, 5) == 2 + 3 * words[2]
    mixed.permutation(4)  # three numbers
    assert mixed.uniform() == words[6]


def test_numbers_are_even_and_neighbouring_seeds_have_nothing_in_common():
    one = Draws(3)
    for values in ([Draws(seed).uniform() for seed in range(4000)], [one.uniform() for _ in range(4000)]):
        assert all(0 <= value < 1 for value in values)
        counts = Counter(int(value * 20) for value in values)
        # Chi squared with 19 degrees of freedom: above 43.8 once in a thousand.
        assert sum((counts[which] - 200) ** 2 / 200 for which in range(20)) < 43.8


def test_whole_numbers_chances_and_orders_are_even():
    draws = Draws(11)
    below = Counter(draws.below(7) for _ in range(7000))
    assert set(below) == set(range(7))
    assert sum((count - 1000) ** 2 / 1000 for count in below.values()) < 22.5  # 6 degrees of freedom, 0.001
    assert 737 < sum(draws.chance(0.8) for _ in range(1000)) < 863  # five standard deviations
    orders = Counter(tuple(draws.permutation(4)) for _ in range(4800))
    assert len(orders) == 24
    assert sum((count - 200) ** 2 / 200 for count in orders.values()) < 49.7  # 23 degrees of freedom, 0.001
    assert Draws(1).permutation(0) == []
    assert not any(draws.chance(0.0) for _ in range(100))
    assert all(draws.chance(1.0) for _ in range(100))


def test_sine_cosine_and_exponential_are_right_and_have_these_bits():
    for degrees in range(-180, 181):
        sine, cosine = sine_cosine(degrees)
        assert sine == pytest.approx(math.sin(math.radians(degrees)), abs=1e-14)
        assert cosine == pytest.approx(math.cos(math.radians(degrees)), abs=1e-14)
    for hundredths in range(-100, 101):
        assert exponential(hundredths / 100) == pytest.approx(math.exp(hundredths / 100), rel=1e-15)
    assert sine_cosine(0.0) == (0.0, 1.0)
    bits = struct.pack(">4d", *sine_cosine(13.7), exponential(0.2), sine_cosine(-129.3)[0]).hex()
    assert bits == "3fce50b65de6077b3fef16ee2e1b1e7a3ff38add9e58ac8cbfe8c34c8b235d2f"
