"""The command `simulate`: exchanges played on this machine, for whoever tries or tests something against them."""

import threading
from pathlib import Path
from typing import Annotated

import typer

from collector.errors import CollectorError, ConfigError
from commands.options import market_names
from commands.screen import out


def simulate(
    exchange: Annotated[list[str], typer.Option("--exchange", "-e", help="An exchange to play; repeatable.")],
    market: Annotated[
        list[str] | None, typer.Option("--market", "-m", help="A market to generate; repeatable.")
    ] = None,
    recording: Annotated[Path | None, typer.Option(help="Play this recording instead of generated markets.")] = None,
    speed: Annotated[str, typer.Option(help="Of a recording: 1 as it was, 10 ten times as fast, max at once.")] = "1",
    loop: Annotated[bool, typer.Option("--loop", help="Play a recording again and again.")] = False,
    rate: Annotated[
        float | None,
        typer.Option(min=0.01, max=10_000, help="Updates a second of a generated market; default: as the exchange."),
    ] = None,
    port: Annotated[int, typer.Option(help="The port; 0 takes any free one.")] = 0,
    ledger: Annotated[Path | None, typer.Option(help="Write every message sent or withheld into this file.")] = None,
    seed: Annotated[int, typer.Option(help="Generated markets follow from it.")] = 1,
) -> None:
    """Play exchanges on this machine: their protocols, generated markets or a recording, faults on demand."""
    import signal

    from simulator import Simulator

    markets = market_names(market) or ("BTC-KRW", "ETH-KRW")
    try:
        factor = None if speed == "max" else float(speed)
    except ValueError:
        raise ConfigError(f"--speed: {speed!r} is neither max nor a number") from None
    try:
        simulator = Simulator(
            [name.lower() for name in exchange],
            markets,
            seed=seed,
            rate_hz=rate,
            port=port,
            ledger=ledger,
            recording=recording,
            speed=factor,
            loop=loop,
        )
        simulator.start()
    except (ValueError, ImportError, OSError) as error:
        raise ConfigError(f"the simulator can't start: {error}") from None
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    try:
        out.print("# put this into config/collector.yaml", highlight=False)
        out.print("exchanges:", highlight=False)
        for name, endpoint in simulator.endpoints.items():
            out.print(f"  {name}:\n    endpoint:", highlight=False)
            for kind, url in endpoint.items():
                out.print(f"      {kind}: {url}", highlight=False, soft_wrap=True)
        out.file.flush()
        while not ended.wait(0.5):
            if simulator.failed():
                raise CollectorError("the simulator stopped by itself")
    finally:
        simulator.stop()
