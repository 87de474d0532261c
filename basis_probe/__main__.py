"""`python -m basis_probe` is `basis-probe`."""

import sys

from basis_probe.cli import main

if __name__ == "__main__":
    sys.exit(main())
