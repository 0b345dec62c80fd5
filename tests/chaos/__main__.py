"""`python -m chaos`, with app/ and tests/ on the path: see `make chaos`."""

import sys

from chaos.command import main

if __name__ == "__main__":
    sys.exit(main())
