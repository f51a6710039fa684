#!/usr/bin/env python3
"""Start the collector, or the command that is typed behind; `--help` names them, `commands/` holds them."""

import sys

try:
    import typer  # noqa: F401  the first to be missing where requirements.txt was not installed
except ModuleNotFoundError as missing:
    sys.exit(f"{missing.name} is not installed; activate the virtual environment, or: pip install -r requirements.txt")
from commands.app import main

if __name__ == "__main__":
    main()
