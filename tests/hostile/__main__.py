"""`python -m hostile`, with tests/ on the path: see `make hostile`."""

import sys

from hostile.run import main

sys.exit(main())
