"""For pytest-benchmark: the right environment before NumPy loads, and the thread counts."""

import sys

import pytest

from bench import environment


def pytest_configure(config):
    variables = environment.wanted()
    if "numpy" not in sys.modules:
        environment.put_in_force(variables)
    elif not environment.in_force(variables):
        words = " ".join(f"{k}={v}" for k, v in variables.items() if v is not None)
        raise pytest.UsageError(f"NumPy was loaded before bench/conftest.py: run with {words}")

    from bench import ours, peers

    peers.load()
    ours.load()
    environment.refuse_slow_blas(environment.blas_libraries())


@pytest.fixture(params=sorted({1, environment.core_count()}), ids="threads{}".format)
def n_threads(request):
    return request.param
