"""`python -m bench [parse] [flood] [writer] [size] [many]`: what the collector's work costs, as ratios from one run."""

import importlib
from typing import Annotated

import orjson
import typer
from rich.console import Console
from rich.table import Table

ALL = ("parse", "flood", "writer", "size", "many")


def main(
    names: Annotated[list[str] | None, typer.Argument(help=f"Of {', '.join(ALL)}; default: all of them.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure and print; docs/performance.md says what each line means."""
    chosen = ALL if not names or "all" in names else tuple(names)
    unknown = set(names or ()) - {*ALL, "all"}
    if unknown:
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}: allowed are {', '.join(ALL)}, all")
    out = Console(width=None if Console().is_terminal else 120)
    everything = {}
    for name in chosen:
        rows = list(importlib.import_module(f"bench.{name}").run())
        everything[name] = [row._asdict() for row in rows]
        if json:
            continue
        table = Table(name, box=None, pad_edge=False)
        for column in ("measured", "ratio", "aim", "spread"):
            table.add_column(column, justify="right")
        for row in rows:
            ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
            spread = "" if row.spread is None else f"{row.spread:.2f}"
            table.add_row(row.name, f"{row.value:.1f} {row.unit}", ratio, row.aim, spread)
        out.print(table)
        out.print()
    if json:
        print(orjson.dumps(everything, option=orjson.OPT_INDENT_2).decode())


if __name__ == "__main__":
    typer.run(main)
