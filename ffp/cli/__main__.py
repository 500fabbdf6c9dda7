"""Runs the command line as `python -m ffp.cli`."""

import sys

from ffp.cli import main

if __name__ == "__main__":
    sys.exit(main())
