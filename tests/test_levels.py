"""Every level that this CPU runs, each in an interpreter of its own, held to the NumPy twins.

A level cannot be changed within a process. Levels with fused multiply-add must print the same
digests; those of tests/emulation/proof.py are compared across processors.
"""

import hashlib

import numpy as np
import pytest

from fastvq._kernels import levels_runnable

CODE = """
import hashlib
import sys

sys.path.insert(0, {tests!r})
import numpy as np
from oracles import (
    FUSED, LONG_SHAPES, SHAPES, assert_nearest, assert_same_bits, decaying, random_case, rounding
)
from fastvq import _screen, kernels, reference
from fastvq._kernels import active_level

kernels._call.THREAD_WORK = 1
digests = {{precision: hashlib.sha256() for precision in ("float32", "float64", "integers")}}


def note(digest, *arrays):
    for array in arrays:
        digests[digest].update(np.ascontiguousarray(array).tobytes())


for n, d, k in SHAPES[::2] + LONG_SHAPES[:2]:
    for dtype, precision in [
        ("float32", "float32"), ("float64", "float64"), ("float16", "float32"), ("uint8", "float64")
    ]:
        X, codebook = random_case(n + d, n, d, k, dtype, precision)
        codes = kernels.assign(X, codebook, n_threads=2)
        assert_nearest(codes, X, codebook)
        near = kernels.distances(X, codebook, codes)
        np.testing.assert_allclose(
            near, reference.distances(X.astype(precision), codebook, codes), rounding(d, precision)
        )
        assert_same_bits(kernels.sums(X, codes, k), reference.sums(X, codes, k))
        note(precision, codes, near, kernels.row_norms(X))
        if k > 1:
            two = kernels.assign_two(X, codebook)
            assert_nearest(two[0][:, 0], X, codebook)
            note(precision, *two)
        closest = kernels.pairwise(X, codebook[:1])[:, 0]
        nearer = np.empty((-(-k // 8), n), np.uint8)
        gains = kernels.seed_gains(X, codebook, closest, nearer=nearer)
        expected = reference.seed_gains(X.astype(precision), codebook, closest)
        sums = (reference.pairwise(X.astype(precision), codebook) + closest[:, None]).sum(axis=0)
        assert (abs(gains - expected) <= (rounding(d, precision) + n * 1e-15) * sums).all()
        kernels.seed_update(X, codebook[-1], closest)
        note(precision, gains, nearer, closest)
    X, codebook = random_case(n + d, n, d, k, "int8")
    X, codebook = X // 8, np.round(codebook / 8)
    codes = kernels.assign(X, codebook)
    assert_same_bits(codes, reference.assign(X, codebook))
    note("integers", codes, kernels.distances(X, codebook, codes))

values = decaying(np.random.RandomState(0), 330, 64, 0.8)
X, codebook = values[:280], values[280:]
screen = _screen.Screen(codebook, _screen.Directions(codebook))
near = np.empty(280, np.float32)
codes = kernels.assign_screened(X, codebook, screen, distances=near)
assert_same_bits(codes, kernels.assign(X, codebook))
assert_same_bits(near, kernels.distances(X, codebook, codes))

print(active_level(), FUSED, *(digest.hexdigest() for digest in digests.values()))
"""


@pytest.fixture(scope="module")
def printed():
    return {}


@pytest.mark.parametrize("level", levels_runnable())
def test_level(level, run_python, printed, request):
    tests = str(request.path.parent)
    result = run_python(CODE.format(tests=tests), FASTVQ_LEVEL=level)
    active, fused, float32, float64, integers = result.stdout.split()
    assert active == level
    assert fused == str(level != "x86_64_v1")
    printed[level] = (float32, float64) if fused == "True" else (), integers


def test_levels_agree(printed):
    """Integers are exact on all; the rest has the same bits where multiply-add is fused."""
    if set(printed) != set(levels_runnable()):
        pytest.skip("needs the tests of all levels to have run, and passed")
    assert len({integers for _, integers in printed.values()}) == 1
    assert len({floats for floats, _ in printed.values() if floats}) <= 1


def test_digests_tell_a_single_bit():
    a = np.float32([1, 2])
    digests = {hashlib.sha256(x.tobytes()).hexdigest() for x in (a, np.nextafter(a, np.float32(9)))}
    assert len(digests) == 2
