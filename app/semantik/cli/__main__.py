"""`python -m semantik.cli`, the same as `semantik`."""

import sys

from semantik.cli import main

sys.exit(main())
