"""Convolutions of 8-bit integers around the edges of lanes, pictures and runs, at every level.

Exact integers: the kernels give what the definitions give, which multiply in NumPy.
"""

import itertools

import numpy as np
import pytest
from nodes import compiled, defined, level  # noqa: F401 (a fixture)
from oracles import THREADS

#: of pictures: narrower than a window, as wide, and wider than places that share their weights
SIZES = [(1, 1), (2, 3), (5, 4), (7, 13), (3, 9)]
WINDOWS = [
    {"kernel": (3, 3), "pads": (1, 1, 1, 1)},
    {"kernel": (3, 3), "pads": (1, 1, 1, 1), "strides": (2, 2)},
    {"kernel": (5, 3), "pads": (2, 1, 2, 1), "strides": (1, 3)},
    {"kernel": (2, 2), "pads": (1, 0, 0, 1), "dilations": (1, 2)},
    {"kernel": (3, 3)},
    {"kernel": (4, 4), "pads": (0, 2, 1, 0)},
    {"kernel": (1, 1)},
    {"kernel": (1, 5), "pads": (0, 4, 0, 4)},
]


def some_bytes(rng, *shape):
    return rng.integers(-128, 128, shape, dtype=np.int8)


def fits(size, kernel, pads=(0, 0, 0, 0), dilations=(1, 1), strides=None):
    return all(
        size[i] + pads[i] + pads[i + 2] > dilations[i] * (kernel[i] - 1) for i in range(len(size))
    )


def check(operator, arrays, **attributes):
    expected = defined(operator, arrays, **attributes)
    known = range(1, len(arrays))
    for threads in THREADS:
        found = compiled(operator, arrays, known, threads, **attributes)
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected, str((arrays[0].shape, attributes)))


def check_layer(rng, x, weight, groups, **window):
    n, width = len(weight), weight[0].size
    multiplier = (rng.random(n) * 0.02 / np.sqrt(width)).astype(np.float32)
    bias = rng.integers(-5000, 5000, n, dtype=np.int32)
    same = {"groups": groups, "x_zero_point": -77, **window}
    check("QConv", [x, weight, multiplier, bias], y_zero_point=3, **same)
    check("QConv", [x, weight, multiplier, bias], dtype="int16", **same)
    real = (x * rng.random((len(x), *[1] * (x.ndim - 1)))).astype(np.float32)
    shift = rng.standard_normal(n, np.float32)
    check("DynamicConv", [real, weight, multiplier, shift], groups=groups, **window)


@pytest.mark.parametrize("channels", [1, 7, 8, 15, 16, 17, 40, 49])
def test_a_filter_for_each_channel(level, channels):  # noqa: F811
    rng = np.random.default_rng(channels)
    for size, window in itertools.product(SIZES, WINDOWS):
        if fits(size, **window):
            window = dict(window)
            kernel = window.pop("kernel")
            x = some_bytes(rng, 2, *size, channels)
            weight = some_bytes(rng, channels, *kernel, 1)
            check_layer(rng, x, weight, channels, **window)


@pytest.mark.parametrize(("channels", "groups"), [(1, 1), (3, 1), (17, 1), (6, 2), (34, 2)])
def test_patches(level, channels, groups):  # noqa: F811
    """Runs of a few bytes and of many, up to the last byte of a picture."""
    rng = np.random.default_rng(channels)
    for size, window in itertools.product(SIZES, WINDOWS):
        if fits(size, **window):
            window = dict(window)
            kernel = window.pop("kernel")
            x = some_bytes(rng, 2, *size, channels)
            weight = some_bytes(rng, 5 * groups, *kernel, channels // groups)
            check_layer(rng, x, weight, groups, **window)


def test_the_largest_values(level):  # noqa: F811
    """Nothing saturates where every product is the largest."""
    x, weight = np.full((1, 5, 9, 33), -128, np.int8), np.full((33, 3, 3, 1), -128, np.int8)
    multiplier = np.ones(33, np.float32)
    for zero_point in (-128, 0, 127):
        check("QConv", [x, weight, multiplier], groups=33, dtype="float32", pads=(1, 1, 1, 1),
              x_zero_point=zero_point)  # fmt: skip
