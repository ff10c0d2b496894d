"""What all tests share."""

import os
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parent.parent

# `python -m pytest` puts the checkout first on the path. Unless it was built in place, its fastvq
# has no kernels, and what is to be tested is the installed one.
if not any((CHECKOUT / "fastvq" / "_kernels").glob(f"_cpu{EXTENSION_SUFFIXES[0]}")):
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != CHECKOUT]


@pytest.fixture(scope="session", autouse=True)
def away_from_the_checkout(tmp_path_factory):
    """Run in an empty directory: new interpreters look in theirs first, and would find the sources.

    They import the same fastvq as the tests do.
    """
    import fastvq

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("working-directory"))
        patch.setenv("PYTHONPATH", str(Path(fastvq.__file__).parent.parent))
        yield


@pytest.fixture
def run_python(tmp_path):
    """Run code in a new interpreter; its CompletedProcess.

    Keyword arguments are environment variables, None removes one.
    """

    def run(code, *, check=True, timeout=120, **environment):
        merged = {**os.environ, **environment}
        result = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env={name: value for name, value in merged.items() if value is not None},
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if check and result.returncode:
            raise AssertionError(result.stderr)
        return result

    return run
