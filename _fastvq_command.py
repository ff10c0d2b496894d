"""The `fastvq` command, as it is installed.

It starts outside of the package because importing fastvq is an error where FASTVQ_LEVEL names a
level that cannot be had here, or where the kernels are not built. A command says so in one line,
and nothing within the package could.
"""

import os
import sys


def main():
    """Run the command line; return its exit code: those of `fastvq.cli`."""
    try:
        from fastvq import cli
    except ImportError as error:
        if os.environ.get("FASTVQ_DEBUG"):
            raise
        print(f"fastvq: error: {error}", file=sys.stderr)
        return 2 if os.environ.get("FASTVQ_LEVEL") else 1
    return cli.main()
