"""Local search: the twin, never worse, bits that depend on a row alone."""

import numpy as np
import pytest
from oracles import PRECISIONS, ROW_DTYPES, assert_depends_on_row_alone, random_rows
from test_kernel_residual import CASES, random_stages, threads_at_once  # noqa: F401

from fastvq import kernels, reference
from fastvq.vq.additive import Search, _search_plain


def some_jumps(sizes, n=5):
    return Search(1, n, 2).jumps(np.array(sizes), n, np.random.RandomState(0))


def some_codes(n, sizes):
    rng = np.random.RandomState(n)
    return np.stack([rng.randint(0, k, n) for k in sizes], axis=1).astype(np.int32)


@pytest.mark.parametrize("n", [1, 23, 25, 49])
@pytest.mark.parametrize(("d", "sizes"), CASES)
@pytest.mark.parametrize("search", [kernels.local_search, _search_plain])
def test_in_float64_it_is_the_twin(search, n, d, sizes):
    X = np.random.RandomState(n).standard_normal((n, d)) + 0.5
    stages = random_stages(d, d, sizes, "float64")
    for sweeps in (1, 4):
        found, expected = some_codes(n, sizes), some_codes(n, sizes)
        search(X, stages, found, some_jumps(sizes), sweeps=sweeps)
        reference.local_search(X, stages, expected, some_jumps(sizes), sweeps=sweeps)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dtype", ROW_DTYPES)
def test_it_is_never_worse(dtype):
    X = random_rows(np.random.RandomState(0), 97, 17, dtype)
    stages = random_stages(0, 17, [64, 30, 17])
    start = kernels.beam_search(X, stages, beam_width=2)[:, 0].copy()
    before = reference.distances_to_sums(X, stages.codebooks, start)
    kernels.local_search(X, stages, start, some_jumps([64, 30, 17], 16))
    after = reference.distances_to_sums(X, stages.codebooks, start)
    length = np.square(X.astype(np.float64)).sum(axis=1) + 100
    assert (after <= before + 1e-5 * length).all() and after.sum() <= before.sum()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_codes_depend_on_the_row_alone(precision):
    X = np.random.RandomState(0).standard_normal((131, 17)).astype(precision)
    stages = random_stages(3, 17, [64, 30, 17], precision)
    start, jumps = some_codes(131, [64, 30, 17]), some_jumps([64, 30, 17])

    def search(rows, threads):
        codes = start[rows]
        return (kernels.local_search(X, stages, codes, jumps, rows=rows, n_threads=threads),)

    assert_depends_on_row_alone(search, len(X))


def test_bad_input():
    stages = random_stages(0, 4, [16, 16])
    X, codes = np.ones((30, 4), np.float32), some_codes(30, [16, 16])
    with pytest.raises(ValueError, match="jumps"):
        kernels.local_search(X, stages, codes, np.array([[[2, 0]]]))
    with pytest.raises(ValueError, match="jumps"):
        kernels.local_search(X, stages, codes, np.array([[[1, 16]]]))
    with pytest.raises(ValueError, match="codes must be"):
        kernels.local_search(X, stages, codes.astype(np.int64), np.array([[[1, 1]]]))
    X[3, 1] = np.inf
    with pytest.raises(ValueError, match=r"infinity \(row 3, feature 1\)"):
        kernels.local_search(X, stages, codes, np.array([[[1, 1]]]))
