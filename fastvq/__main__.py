"""``python -m fastvq``: the command ``fastvq``, where its script is not on the path."""

import sys

from fastvq.cli import main

if __name__ == "__main__":
    sys.exit(main())
