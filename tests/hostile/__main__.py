"""`python -m hostile`, with tests/ on the path: see `make hostile`."""

import sys

from hostile.run import main

if __name__ == "__main__":
    sys.exit(main())
