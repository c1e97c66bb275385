"""`python -m navprune` is `navprune`, for those that begin modules, such as torchrun."""

import sys

from navprune.cli import main

if __name__ == "__main__":
    sys.exit(main())
