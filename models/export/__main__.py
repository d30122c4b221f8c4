"""`python -m foldserve.models.export TARGET ...`, the same as `foldserve export`."""

import sys

from foldserve.models.export.cli.command import main

if __name__ == "__main__":
    sys.exit(main())
