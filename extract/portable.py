"""Sine, cosine and exponential to the same last bit on every machine, which the C library's are not.

Python rounds each product and each sum by itself, as IEEE 754 says; so a series gives the same bits wherever doubles
are IEEE's. What is left of these series behind their last term is below 1e-16.
"""

from __future__ import annotations

_RADIANS = 0.017453292519943295  # in a degree


def sine_cosine(degrees: float) -> tuple[float, float]:
    """Return sine and cosine of an angle of at most 180 degrees either way, to 1e-14."""
    x = degrees * _RADIANS
    return _series(x, -x * x, 1), _series(1.0, -x * x, 0)


def exponential(x: float) -> float:
    """Return e to the power of `x`, at most 1 either way, to 1e-15."""
    total = term = 1.0
    for k in range(1, 20):
        term = term * x / k
        total = total + term
    return total


def _series(first: float, factor: float, k: int) -> float:
    """Sum up `first`, of power `k`, and 18 terms more: each is the one before times `factor` over two more powers."""
    total = term = first
    for power in range(k + 1, k + 36, 2):
        term = term * factor / (power * (power + 1))
        total = total + term
    return total
