"""Measured comparisons of fastvq with the libraries people use for the same work.

Run from the root of a checkout, after ``pip install .[bench]``::

    python -m bench                      # every suite; minutes
    python -m bench assign --threads 1   # one suite, one thread
    python -m bench --quick              # every suite on reduced sizes; under a minute
    python -m bench table                # the kept results as the README's markdown tables
    pytest bench/bench_assign.py --benchmark-only

How it is laid out: a suite is one module (``bench_<subject>.py`` where pytest-benchmark can run it
too, otherwise ``memory.py`` and ``imports.py``) with ``measure(options)``, which returns plain
records, and ``tables(records)``, which turns them into text. What suites share lives beside them:

- ``options``      the command line
- ``environment``  which CPU and BLAS this is; the variables that must be set before NumPy loads
- ``data``         the data sets
- ``peers``        how each other library is called
- ``ours``         how fastvq is called
- ``timing``       taking turns, medians, thread counts
- ``answers``      are two answers the same answer; what an answer is worth
- ``training``     the parts of the suite of that name
- ``report``       tables, and the results kept as JSON
"""
