"""`python -m rlm`: the same program as `rlm`."""

import sys

from rlm.cli import main

if __name__ == "__main__":
    sys.exit(main())
