"""Lanes compute what NumPy computes for each number."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from navprune.kernels import njit
from navprune.simulator import lanes
from navprune.simulator.lanes import WIDTH

EIGHT = st.lists(st.floats(-1e6, 1e6, width=32), min_size=WIDTH, max_size=WIDTH)


@njit
def arithmetic(a, b, out):
    x, y = lanes.load(a, 0), lanes.load(b, 0)
    lanes.store(out, 0, x + y)
    lanes.store(out, WIDTH, x - y)
    lanes.store(out, 2 * WIDTH, x * y)
    lanes.store(out, 3 * WIDTH, x / y)
    lanes.store(out, 4 * WIDTH, -x)
    lanes.store(out, 5 * WIDTH, lanes.minimum(x, y))
    lanes.store(out, 6 * WIDTH, lanes.maximum(x, y))
    lanes.store(out, 7 * WIDTH, lanes.floor(x))
    lanes.store(out, 8 * WIDTH, lanes.ceil(x))
    lanes.store(out, 9 * WIDTH, lanes.absolute(x))
    lanes.store(out, 10 * WIDTH, lanes.choose((x < y) | (x == y), x, y * y))
    return lanes.greatest(x), lanes.get(y, 3)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@settings(deadline=None)  # the first example compiles
@given(a=EIGHT, b=EIGHT)
def test_arithmetic_is_numpys(dtype, a, b):
    x, y = np.array(a, dtype), np.array(b, dtype)
    y[abs(y) < 1e-3] = 1
    out = np.empty((11, WIDTH), dtype)
    greatest, third = arithmetic(x, y, out)
    least, most = np.minimum(x, y), np.maximum(x, y)
    expected = [
        x + y,
        x - y,
        x * y,
        x / y,
        -x,
        least,
        most,
        np.floor(x),
        np.ceil(x),
        abs(x),
        np.where(x <= y, x, y * y),
    ]
    np.testing.assert_array_equal(out, expected)
    assert greatest == x.max() and third == y[3]


@njit
def places(a, limit, count, out, integers):
    x = lanes.load(a, 0)
    which = lanes.first(count) & (x > limit)
    lanes.store(out, 0, lanes.load_where(a, 0, which))
    lanes.store_where(out, WIDTH, which, lanes.f32(7))
    lanes.store(out, 2 * WIDTH, lanes.to_f32(lanes.to_f64(x) / 3.0 + lanes.count_f64()))
    lanes.store(out, 3 * WIDTH, lanes.put(x, 5, limit))
    lanes.store_where(integers, 0, which, lanes.i32(9))
    lanes.store(integers, WIDTH, lanes.load_i32(a, 0))
    return lanes.bits(which), lanes.lowest(lanes.bits(which)), lanes.highest(lanes.bits(which))


@settings(deadline=None)  # the first example compiles
@given(a=EIGHT, limit=st.floats(-1e6, 1e6, width=32), count=st.integers(0, WIDTH))
def test_places_bits_and_conversions_are_numpys(a, limit, count):
    x, number = np.array(a, np.float32), np.arange(WIDTH)
    out, integers = np.full((4, WIDTH), -1, np.float32), np.full((2, WIDTH), -1, np.int32)
    bits, lowest, highest = places(x, np.float32(limit), count, out, integers)
    which = (number < count) & (x > np.float32(limit))
    changed = x.copy()
    changed[5] = limit
    thirds = (x.astype(np.float64) / 3 + number).astype(np.float32)
    np.testing.assert_array_equal(out, [np.where(which, x, 0), np.where(which, 7, -1), thirds, changed])
    np.testing.assert_array_equal(integers, [np.where(which, 9, -1), x.view(np.int32)])
    assert bits == (which << number).sum()
    assert (lowest, highest) == ((64, -1) if not which.any() else (number[which][0], number[which][-1]))


@njit
def sum_of_products(a, b, c):
    return lanes.get(lanes.load(a, 0) * lanes.load(b, 0) + lanes.load(c, 0), 0)


def test_products_and_sums_are_not_fused():
    a = np.full(WIDTH, 1 + 2.0**-30)
    assert sum_of_products(a, a, np.full(WIDTH, -1 - 2.0**-29)) == 0  # fused, it would be 2^-60
