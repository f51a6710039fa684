"""The command `status`: what a running collector says of itself."""

import contextlib
import sys
import threading
from typing import Annotated, Any

import orjson
import requests
import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from collector.errors import CollectorError
from collector.records import ORDERBOOK
from collector.times import show_duration
from commands.prices import book_table, comparisons, prices_tables
from commands.screen import out, show_bytes


def status(
    context: typer.Context,
    json: Annotated[bool, typer.Option("--json", help="Print what the daemon says, unchanged.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Refresh every second until Ctrl-C.")] = False,
    market: Annotated[
        str, typer.Option(help="Show the prices of one market at all exchanges instead, and its books as one.")
    ] = "",
    depth: Annotated[int, typer.Option(min=1, max=1000, help="Levels a side of that book.")] = 10,
) -> None:
    """Show what a running collector does: feeds, rates, lag, gaps, growth, days of disk left; compare prices."""
    settings = context.obj()
    base = f"http://{settings.metrics.host}:{settings.metrics.port}"
    url, asked = (f"{base}/prices.json", {"market": market, "depth": depth}) if market else (f"{base}/status.json", {})
    if json:
        sys.stdout.buffer.write(_fetch_status(url, asked) + b"\n")
        return
    if not watch:
        state = orjson.loads(_fetch_status(url, asked))
        if market:
            out.print(_market(state), highlight=False)
        else:
            _print_status(state)
        return
    show = _market if market else live_view
    with contextlib.suppress(KeyboardInterrupt), Live(console=out, auto_refresh=False) as live:
        pause = threading.Event()
        while True:
            live.update(show(orjson.loads(_fetch_status(url, asked))), refresh=True)
            pause.wait(1.0)


def live_view(state: dict[str, Any]) -> RenderableType:
    """Return the feeds of `/status.json`, and below them the prices of what several exchanges trade."""
    found = comparisons(state)
    return Group(feeds_table(state), "", prices_tables(found)) if found else feeds_table(state)


def _market(found: dict[str, Any]) -> RenderableType:
    if not found["venues"] and not found["left_out"]:
        raise CollectorError(f"no exchange is recorded with {found['market']}; `status` shows the markets that are")
    return Group(prices_tables([found]), book_table(found))


def _fetch_status(url: str, asked: dict[str, Any]) -> bytes:
    try:
        response = requests.get(url, params=asked, timeout=5)
        response.raise_for_status()
    except requests.RequestException:
        raise CollectorError(
            f"no collector answers at {url}; is it running, with metrics.enabled and this metrics.port? "
            "`coverage` shows what the database holds without it"
        ) from None
    return response.content


def _print_status(state: dict[str, Any]) -> None:
    store = state["store"]
    out.print(live_view(state))
    rows = {
        "collector": f"{state['collector_id']} {state['version']}, pid {state['pid']}",
        "up": show_duration(state["uptime_s"]),
        "healthy": state["healthy"],
        "ready": state["ready"],
        "waiting": f"{state['intake']['records']} records, {show_bytes(state['intake']['bytes'])} of "
        f"{show_bytes(state['intake']['bytes_limit'])}",
        "spool": _spool(state["spool"]),
        "database": f"{store['path']}, {_database_size(store)}",
        "last commit": store["last_commit"] or "none yet",
        "growth": "known after a minute"
        if store["bytes_per_day"] is None
        else f"{show_bytes(store['bytes_per_day'])} a day at the present rate",
    }
    if store["disk_free_bytes"] is not None:  # a server keeps its disk to itself
        left = f", enough for {store['days_left']} days" if store["days_left"] is not None else ""
        rows["disk"] = f"{show_bytes(store['disk_free_bytes'])} free{left}"
    rows |= _supervision(state)
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in rows.items():
        table.add_row(name, Text(str(value)))
    out.print(table, highlight=False)


def _database_size(store: dict[str, Any]) -> str:
    log = "" if store["wal_bytes"] is None else f" + WAL {show_bytes(store['wal_bytes'])}"
    return show_bytes(store["database_bytes"]) + log


def _spool(spool: dict[str, Any]) -> str:
    if not spool["batches"]:
        return "empty" if spool["path"] else "none"
    size = f"{show_bytes(spool['bytes'])} of {show_bytes(spool['bytes_limit'])}"
    return (
        f"{spool['batches']} batches, the oldest waits for {show_duration(spool['age_s'])}; {size} in {spool['path']}"
    )


def _supervision(state: dict[str, Any]) -> dict[str, str]:
    # What is out of the ordinary: nothing of it in a collector that runs as it was started.
    rows: dict[str, str] = {}
    parked = [worker["name"] for worker in state["workers"] if worker["state"] == "parked"]
    if parked:
        rows["parked"] = f"{', '.join(parked)}: died again and again, tried again within a minute"
    for takeover in state["takeovers"]:
        names = ", ".join(takeover["replaced"])
        tried = "in turn" if not takeover["attempts"] else f"attempt {takeover['attempts']}"
        rows["replacing"] = f"{rows['replacing']}; {names} ({tried})" if "replacing" in rows else f"{names} ({tried})"
    reloads = state["reloads"]
    if reloads is not None and reloads["last"] is not None:
        last = reloads["last"]
        rows["reloaded"] = f"{last['at']} {last['text'] if last['ok'] else 'REFUSED, nothing changed: ' + last['text']}"
    return rows


def feeds_table(state: dict[str, Any]) -> Table:
    """Return the feeds of `/status.json` as a table."""
    waiting, size = state["intake"]["records"], state["store"]["database_bytes"] + (state["store"]["wal_bytes"] or 0)
    table = Table(
        box=None,
        pad_edge=False,
        collapse_padding=True,
        caption=f"{waiting} records waiting, database {show_bytes(size)}"
        + (f", spool {show_bytes(state['spool']['bytes'])}" if state["spool"]["batches"] else ""),
    )
    table.caption_justify = "left"
    others = any(feed["channel"] != ORDERBOOK for feed in state["feeds"])
    for name in ("exchange", "market", *(("channel",) if others else ()), "over", "state"):
        table.add_column(name, no_wrap=True)
    for name in ("frames", "per s", "bid", "ask", "lag", "gaps"):
        table.add_column(name, justify="right", no_wrap=True)
    colours = {"live": "green", "waiting": "yellow"}
    for feed in state["feeds"]:
        text = f"[{colours.get(feed['state'], 'red')}]{feed['state']}[/] {feed['detail']}".rstrip()
        table.add_row(
            feed["exchange"],
            feed["market"],
            *((feed["channel"],) if others else ()),
            {"websocket": "socket", "rest": "poll"}[feed["transport"]],
            text,
            str(feed["frames"]),
            f"{feed['frames_per_s']:.1f}",
            feed["bid"] or "-",
            feed["ask"] or "-",
            _seconds(feed["lag_s"]),
            str(feed["gaps"]),
        )
    return table


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value * 1000:.0f} ms" if abs(value) < 1 else f"{value:.1f} s"
