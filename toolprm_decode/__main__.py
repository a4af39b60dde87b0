"""Runs the command line as `python -m toolprm_decode`."""

from __future__ import annotations

import sys

from toolprm_decode.cli import main

if __name__ == "__main__":
    sys.exit(main())
