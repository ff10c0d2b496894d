"""The examples in the docstrings do what they say."""

import doctest
import pkgutil
from importlib import import_module

import pytest

import fastvq

MODULES = sorted(
    name
    for _, name, is_package in pkgutil.walk_packages(fastvq.__path__, "fastvq.")
    # The compiled modules have no examples; those of other levels must not be imported.
    if not name.startswith("fastvq._kernels") or is_package
)


@pytest.mark.parametrize("name", ["fastvq", *MODULES])
def test_docstring_examples(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    module = import_module(name)
    results = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    assert results.failed == 0
