"""``python -m fastvq``: the command ``fastvq``, where its script is not on the path."""

import sys

from fastvq.cli import main

sys.exit(main())
