"""`python -m navprune.cli` is `navprune`."""

import sys

from navprune.cli import main

sys.exit(main())
