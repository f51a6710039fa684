"""The commands that look at the spool: `spool status`, `spool check`. They change nothing and need no lock."""

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn
from rich.table import Table

from collector.errors import CollectorError, StorageError
from collector.times import show_duration, show_time
from commands.screen import err, out, show_bytes
from storage import spool_inspect
from storage.spool_inspect import RunSpan

app = typer.Typer(help="Look at what waits on disk for the database.", no_args_is_help=True)

PathOption = Annotated[Path | None, typer.Option("--path", help="The spool's directory instead of storage.spool.path.")]


@app.command()
def status(context: typer.Context, path: PathOption = None) -> None:
    """Show how much waits, since when, and whether anything is damaged."""
    folder = _folder(context, path)
    found = spool_inspect.status(folder)
    if not found.batches and not found.dropped and not found.unreadable and not found.damage:
        out.print(f"{folder}: nothing waits", highlight=False, markup=False, soft_wrap=True)
        return
    frames = sum(count.frames + count.rejected for count in found.waiting.values())
    waited = ""
    if found.oldest_us is not None and found.newest_us is not None:
        waited = f", from {show_time(found.oldest_us)} over {show_duration((found.newest_us - found.oldest_us) / 1e6)}"
    out.print(
        f"{folder}: {found.batches} batches, {frames} frames, {show_bytes(found.size)} in {found.segments} files"
        f"{waited}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    _print_runs(found.runs)
    if found.dropped:
        out.print(f"dropped to make room: {found.dropped} batches", highlight=False)
    for segment, offset, size in found.damage:
        out.print(f"damaged: file {segment}, {size} bytes from {offset} on", highlight=False)
    for file in found.unreadable:
        out.print(f"no file of the spool, or without its beginning: {file}", highlight=False, markup=False)
    for file in found.aside:
        out.print(f"damaged, drained as far as possible and kept for you: {file}", highlight=False, markup=False)


@app.command()
def check(context: typer.Context, path: PathOption = None) -> None:
    """Read all of it, verify every batch; exit status 1 where something is missing."""
    folder = _folder(context, path)
    total = spool_inspect.status(folder).size
    with Progress(
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), console=err, transient=True,
        disable=not err.is_terminal,
    ) as progress:  # fmt: skip
        task = progress.add_task("spool", total=total)
        found = spool_inspect.check(folder, lambda size: progress.advance(task, size))
    out.print(
        f"{folder}: {found.batches} batches, {found.records} records, {show_bytes(found.size)} verified",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    _print_runs(found.runs)
    for cut in found.torn:
        out.print(f"torn end: file {cut.segment}, {cut.size} bytes from {cut.offset} on; never acknowledged")
    for hole in found.holes:
        out.print(f"missing ({hole.reason}): file {hole.segment} at {hole.offset}, {hole.batches} batches")
    if not found.sound:
        raise CollectorError(f"{found.holes_found} holes: what is missing will be in the ledger as lost")


def _folder(context: typer.Context, path: Path | None) -> Path:
    folder = path if path is not None else context.obj().spool_path
    if path is not None and not folder.is_dir():
        raise StorageError(f"there is no spool at {folder}")
    return folder


def _print_runs(runs: list[RunSpan]) -> None:
    table = Table("run started", "collector", "batches", "numbers", "missing", box=None, pad_edge=False)
    for span in runs:
        missing = sum(after - before - 1 for before, after in span.gaps)
        table.add_row(
            show_time(span.run.started_us),
            span.run.collector_id,
            str(span.batches),
            f"{span.first} to {span.last}",
            str(missing),
        )
    if runs:
        out.print(table, highlight=False)
