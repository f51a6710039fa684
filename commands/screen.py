"""What commands print with: one console for answers, one for everything else, and how sizes are shown.

Answers go to `out`, so that `> file` and pipes carry nothing else; mistakes, receipts and progress go to `err`.
"""

import os

from rich.console import Console

WIDTH = 200  # of what goes into a pipe or a file, where nothing needs to fit a screen

out = Console()
if not out.is_terminal and "COLUMNS" not in os.environ:
    out = Console(width=WIDTH)
err = Console(stderr=True, soft_wrap=True, highlight=False)


def show_bytes(size: float) -> str:
    """Return a size as a person reads it."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
