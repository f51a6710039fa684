"""Trades, tickers and candles from the simulator's ledger, laid beside the rows of an epoch, for the judge.

As with books, what an epoch holds is a stretch of one subscription: its first so many messages from where it began.
Everything in them must be in the store, and nothing else may be there under that epoch. Trades and candles are in the
store once: of what another epoch had brought before, this one has no row.
"""

from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

from simulator.rebuilt import Misfit, NoFit, Stream, Track, Walk
from simulator.sent import Sent, SentLedger
from simulator.stored import Epoch, StreamRow

KINDS = {"trades": "trade", "ticker": "ticker", "candles": "candle"}
NO_IDS = ("", "None")  # how the ledger spells that an exchange has none

Key = tuple[Any, ...]
_PRICES = ("open", "high", "low", "close", "volume")


class Told:
    """The trades, tickers or candles of one feed in a store, and how they compare with those of a message."""

    def __init__(self, channel: str, rows: Sequence[StreamRow]) -> None:
        self.channel = channel
        self.problems: list[str] = []
        self._rows: dict[Key, StreamRow] = {}
        for row in rows:
            try:
                for key in self._keys_of(row):
                    self._rows[key] = row
            except InvalidOperation:
                self.problems.append(f"{Misfit.UNREADABLE}: {row.values!r}")

    def _keys_of(self, row: StreamRow) -> Iterator[Key]:
        if self.channel == "trades":
            venue_us, trade_id, *content = row.values
            yield venue_us, trade_id
            yield venue_us, *_numbers(content)  # where an exchange has no ids
        elif self.channel == "candles":
            yield row.values[:2]
            _numbers(row.values[2:7])
        else:
            _numbers(row.values[1:])

    def find(self, sent: dict[str, Any]) -> StreamRow | None:
        """Return the row of a trade or candle of the ledger; None where there is none."""
        if self.channel == "candles":
            return self._rows.get((sent["interval_s"], sent["open_us"]))
        content = (*_numbers((sent["side"], sent["price"], sent["volume"])),)
        key = (sent["venue_us"], *content) if sent["id"] in NO_IDS else (sent["venue_us"], sent["id"])
        row = self._rows.get(key)
        return row if row is not None and (*_numbers(row.values[2:]),) == content else None

    def holds(self, message: Sent, ledger: SentLedger) -> bool:
        """Tell whether all that a message says is there, whichever epoch brought it; never of tickers."""
        return self.channel != "ticker" and all(self._holds(sent) for sent in ledger.rows(message))

    def _holds(self, sent: dict[str, Any]) -> bool:
        row = self.find(sent)
        if row is None or self.channel == "trades":
            return row is not None
        return bool(row.values[7]) or (*_numbers(row.values[2:7]),) == (*_numbers(sent[name] for name in _PRICES),)


def follow(stream: Stream, epoch: Epoch, ledger: SentLedger, told: Told) -> Track | str:
    """Find the stretch of a stream that an epoch holds; return what is wrong where there is none."""
    if told.problems:
        return told.problems[0]
    problem: str = Misfit.NEVER_SENT if epoch.told else f"accounts for {epoch.frames} messages that were never sent"
    for first in range(stream.walk.index, len(stream.messages) + 1):
        try:
            return _Attempt(stream, epoch, ledger, told).begin(first)
        except NoFit as error:
            problem = str(error) if str(error) != Misfit.NEVER_SENT else problem
    return problem


class _Attempt:
    """An epoch laid beside the messages from one of them on; `NoFit` where they are not the same."""

    def __init__(self, stream: Stream, epoch: Epoch, ledger: SentLedger, told: Told) -> None:
        self._stream, self._epoch, self._ledger, self._told = stream, epoch, ledger, told
        self._left = {id(row) for row in epoch.told}
        self._tickers = iter(epoch.told if epoch.channel == "ticker" else ())
        self._ticker = next(self._tickers, None)
        self._before: StreamRow | None = None
        self._newest: dict[Key, tuple[Sent, dict[str, Any]]] = {}

    def begin(self, first: int) -> Track:
        """Try it from the message at `first` on."""
        stream, frames = self._stream, self._epoch.frames
        walk = stream.walk.copy()
        walk.index = first
        track = Track(first, {}, walk)
        count = 0
        while count < frames:
            if walk.index >= len(stream.messages):
                raise NoFit(Misfit.NEVER_SENT)
            message = stream.messages[walk.index]
            skipped = message.withheld or message.what == "error"
            if skipped and walk.index == first:
                raise NoFit(Misfit.NEVER_SENT)
            if not skipped and (walk.index not in stream.doubtful or self._was_received(message, walk)):
                if message.what == "garbage":
                    raise NoFit(f"holds garbage (message {message.i}) inside its coverage")
                track.held[walk.index] = not self._message(message, walk, track)
                count += 1
            walk.index += 1
        if self._epoch.channel == "candles":
            self._compare_candles(walk, track)
        if self._left:
            raise NoFit(f"has {len(self._left)} rows that its coverage does not account for")
        return track

    def _was_received(self, message: Sent, walk: Walk) -> bool:
        # The last answer on a connection may have been lost on its way. Of a candle only the last state is in the
        # store, so a later epoch may have replaced what this one told.
        if self._epoch.channel == "candles":
            return all(self._told.find(sent) is not None for sent in self._ledger.rows(message))
        if self._epoch.channel == "trades":
            return self._told.holds(message, self._ledger)
        row = self._ticker
        return all(
            (row is not None and self._is_ticker(row, sent["venue_us"], _prices_of(sent)))
            or walk.said.get(()) == _prices_of(sent)
            for sent in self._ledger.rows(message)
        )

    def _message(self, message: Sent, walk: Walk, track: Track) -> bool:
        # Whether it told anything new.
        rows = self._ledger.rows(message)
        if self._epoch.channel == "ticker":
            return sum(self._is_new_ticker(message, sent, walk, track) for sent in rows) > 0
        if self._epoch.channel == "candles":
            return sum(self._is_new_candle(message, sent, walk) for sent in rows) > 0
        return sum(self._is_new_trade(message, sent, track) for sent in rows) > 0

    def _is_new_trade(self, message: Sent, sent: dict[str, Any], track: Track) -> bool:
        row = self._told.find(sent)
        if row is None:
            raise NoFit(f"accounts for message {message.i} and has no trade {sent['id']} of it")
        return self._is_mine(row, message, track)

    def _is_mine(self, row: StreamRow, message: Sent, track: Track) -> bool:
        if id(row) not in self._left:
            return False
        self._left.remove(id(row))
        track.ahead_us.append(row.received_us - message.time_us)
        return True

    def _is_new_ticker(self, message: Sent, sent: dict[str, Any], walk: Walk, track: Track) -> bool:
        content = _prices_of(sent)
        before, walk.said[()] = walk.said.get(()), content
        row = self._ticker
        if row is not None and self._is_ticker(row, sent["venue_us"], content):
            self._before, self._ticker = row, next(self._tickers, None)
            return self._is_mine(row, message, track)
        if before != content:
            raise NoFit(f"accounts for message {message.i} and has no ticker of it")
        return False

    def _is_ticker(self, row: StreamRow, venue_us: int | None, content: tuple[object, ...]) -> bool:
        # Where an exchange says only what changed the rest stands as before.
        here = (*_numbers(row.values[1:]),)
        before = (*_numbers(self._before.values[1:]),) if self._before is not None else (None,) * len(here)
        return row.values[0] == venue_us and all(
            mine == theirs or (theirs is None and mine == last)
            for mine, theirs, last in zip(here, content, before, strict=True)
        )

    def _is_new_candle(self, message: Sent, sent: dict[str, Any], walk: Walk) -> bool:
        key = sent["interval_s"], sent["open_us"]
        if self._told.find(sent) is None:
            raise NoFit(f"accounts for message {message.i} and has no candle of it")
        content = *_numbers(sent[name] for name in _PRICES), sent["closed"]
        before, known = walk.said.get(key), self._newest.get(key)
        if known is not None and known[1]["closed"]:
            return False  # it will not change any more
        walk.said[key] = content
        if known is None or before != content:
            self._newest[key] = message, sent
        return before != content

    def _compare_candles(self, walk: Walk, track: Track) -> None:
        # Of each candle only the last state is in the store, and only if no other epoch told a later one.
        for row in self._epoch.told:
            key, closed = row.values[:2], bool(row.values[7])
            content = *_numbers(row.values[2:7]), closed
            said = walk.said.get(key)
            followed = any(other[0] == key[0] and other[1] > key[1] for other in self._newest)
            if said is None or not (said == content or (closed and followed and said[:-1] == content[:-1])):
                raise NoFit(f"has a candle of {row.values[1]} that is not the last one sent")
            if key in self._newest:
                self._is_mine(row, self._newest[key][0], track)
            self._left.discard(id(row))  # else one that was heard before, and that the next one closed
        if not self._newest and self._epoch.told:
            raise NoFit(Misfit.NEVER_SENT)


def _prices_of(ticker: dict[str, Any]) -> tuple[Any, ...]:
    return (*_numbers(ticker[name] for name in ("last", "bid", "ask", "volume")),)


def _numbers(texts: Iterable[Any]) -> Iterator[Any]:
    # Words stay words; a number is what it is worth.
    for text in texts:
        yield text if text is None or text in ("buy", "sell") else Decimal(text)
