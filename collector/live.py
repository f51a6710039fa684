"""The live view: the latest book, trade, ticker and candle of every feed, for programs in this process.

It is fed with what goes to the store, at the moment it goes there (`take`, in the controller's thread), so it shows
what is recorded and nothing else. All that happens there is that a finished row is kept. What is given out (see
`collector.latest`) says itself how old it is and whether its feed is still heard; readers take no lock.

The surprise: two connections may carry one feed while one takes over from the other. The younger epoch counts as soon
as it has data, and the older one again if the younger ends first.
"""

import threading

from collector.clock import Clock
from collector.latest import (
    Callback,
    Gone,
    LiveBook,
    LiveCandle,
    LiveTicker,
    LiveTrade,
    Stream,
    Update,
    latest_book,
    latest_row,
)
from collector.listening import Subscription
from collector.log import Log
from collector.records import (
    CANDLES,
    CHANNELS,
    KEYFRAME,
    ORDERBOOK,
    TICKER,
    TRADES,
    BookRow,
    CandleRow,
    CoverageMark,
    Delivery,
    EpochEnded,
    EpochOpened,
    EpochVerdict,
    Feed,
    StreamRow,
    TickerRow,
    TradeRow,
)

WAITING_MAX = 1000  # updates that may wait for a callback
RECENT_TRADES = 256  # of a feed that somebody listens to: what two connections both bring is told once

_OfAnEpoch = BookRow | StreamRow | CoverageMark | EpochEnded | EpochVerdict
_OF_AN_EPOCH = (BookRow, TradeRow, TickerRow, CandleRow, CoverageMark, EpochEnded, EpochVerdict)  # the commonest first


class _Slot:
    """A feed, and whichever of its epochs counts."""

    def __init__(self, feed: Feed) -> None:
        self.feed = feed
        self.current: Stream | None = None
        self.epochs: set[int] = set()  # that are open
        self.streams: list[Stream] = []  # those of them that have data, oldest first
        self.listeners: tuple[Subscription, ...] = ()
        self._recent: dict[tuple[int, str], None] = {}
        self._lock = threading.Lock()

    def is_new(self, trade: TradeRow) -> bool:
        """Remember a trade; tell whether it was not among the last ones."""
        key = trade.venue_us, trade.trade_id
        with self._lock:
            if key in self._recent:
                return False
            self._recent[key] = None
            if len(self._recent) > RECENT_TRADES:
                del self._recent[next(iter(self._recent))]
        return True

    def tell(self, update: Update) -> None:
        """Let everybody who listens have an update."""
        for listener in self.listeners:
            listener.put(update)


class LiveView:
    """The latest of every feed of this process.

    `take` is for whoever hands records to the writer; everything else is for any thread.
    """

    def __init__(self, clock: Clock, log: Log) -> None:
        self.failures = 0  # of this module, each of which left something out
        self._clock = clock
        self._log = log
        self._slots: dict[Feed, _Slot] = {}
        self._open: dict[int, tuple[_Slot, Stream]] = {}  # by epoch
        self._subscriptions: tuple[Subscription, ...] = ()
        self._dropped = self._errors = 0  # of subscriptions that are closed
        self._lock = threading.Lock()  # for what is rare: epochs that open and end, subscriptions

    # --- reading ----------------------------------------------------------------------------------------------------

    def feeds(self) -> list[Feed]:
        """Return every feed that is expected or was heard so far, also those that are gone."""
        return list(self._slots.copy())

    def book(self, exchange: str, market: str) -> LiveBook | None:
        """Return the latest book of a market, None if there never was one."""
        stream = self._current(Feed(exchange, market, ORDERBOOK))
        return None if stream is None else latest_book(stream, self._age_s(stream))

    def trade(self, exchange: str, market: str) -> LiveTrade | None:
        """Return the latest trade of a market, None if there never was one."""
        found = self._latest(Feed(exchange, market, TRADES))
        return found if isinstance(found, LiveTrade) else None

    def ticker(self, exchange: str, market: str) -> LiveTicker | None:
        """Return the latest ticker of a market, None if there never was one."""
        found = self._latest(Feed(exchange, market, TICKER))
        return found if isinstance(found, LiveTicker) else None

    def candle(self, exchange: str, market: str) -> LiveCandle | None:
        """Return the latest candle of a market, None if there never was one."""
        found = self._latest(Feed(exchange, market, CANDLES))
        return found if isinstance(found, LiveCandle) else None

    def _current(self, feed: Feed) -> Stream | None:
        slot = self._slots.get(feed)
        return None if slot is None else slot.current

    def _latest(self, feed: Feed) -> Update | None:
        stream = self._current(feed)
        row = None if stream is None else stream.row
        return None if stream is None or row is None else latest_row(stream, row, self._age_s(stream))

    def _age_s(self, stream: Stream) -> float:
        return max(0, self._clock.monotonic_us() - stream.heard_at_us) / 1e6

    # --- listening --------------------------------------------------------------------------------------------------

    def subscribe(
        self, exchange: str, channel: str, market: str, callback: Callback, *, waiting_max: int = WAITING_MAX
    ) -> Subscription:
        """Have *callback* called with every `Update` of a feed from now on, until the subscription is closed.

        *exchange* (lower case) and *market* (`BTC-KRW`) may be patterns: `*`, `*-KRW`; *channel* is one of `CHANNELS`.
        The feed need not be there yet, and may come and go: a `Gone` tells when it is not heard any more. Calls come
        from one thread of the subscription's own, in order. Of a callback that is too slow at most *waiting_max*
        updates wait; the oldest are dropped and counted. What it raises is logged once a minute and counted.
        """
        if channel not in CHANNELS:
            raise ValueError(f"a channel must be one of {', '.join(CHANNELS)}, was {channel!r}")
        if waiting_max < 1:
            raise ValueError(f"waiting_max must be at least 1, was {waiting_max}")
        subscription = Subscription(
            exchange, channel, market, callback, waiting_max, clock=self._clock, log=self._log, leave=self._leave
        )
        with self._lock:
            self._subscriptions += (subscription,)
            for slot in self._slots.values():
                self._introduce(slot)
        return subscription

    def _leave(self, subscription: Subscription) -> None:
        with self._lock:
            if subscription not in self._subscriptions:
                return
            self._subscriptions = tuple(one for one in self._subscriptions if one is not subscription)
            self._dropped += subscription.dropped
            self._errors += subscription.errors
            for slot in self._slots.values():
                self._introduce(slot)

    def _introduce(self, slot: _Slot) -> None:
        slot.listeners = tuple(one for one in self._subscriptions if one.wants(slot.feed))

    @property
    def subscriptions(self) -> tuple[Subscription, ...]:
        """Those that are open."""
        return self._subscriptions

    @property
    def dropped(self) -> int:
        """How many updates callbacks were too slow for."""
        return self._dropped + sum(one.dropped for one in self._subscriptions)

    @property
    def errors(self) -> int:
        """How often callbacks raised."""
        return self._errors + sum(one.errors for one in self._subscriptions)

    def close(self) -> None:
        """End every subscription."""
        for subscription in self._subscriptions:
            subscription.close()

    # --- what comes in ----------------------------------------------------------------------------------------------

    def take(self, delivery: Delivery) -> None:
        """Note what goes to the store; in the thread that hears it, and in its order. Raises nothing.

        What belongs to an epoch that was open before the view was there is passed over.
        """
        try:
            self._take(delivery, self._clock.monotonic_us())
        except Exception as error:  # our bug, and no reason to stop recording
            self.failures += 1
            self._log.exception("live_failed", error=repr(error))

    def _take(self, delivery: Delivery, now_us: int) -> None:
        for record in delivery.records:
            if isinstance(record, _OF_AN_EPOCH):
                found = self._open.get(record.epoch)
                if found is not None:
                    self._note(*found, record, now_us)
            elif isinstance(record, EpochOpened):
                self._begin(Feed(delivery.exchange, record.market, record.channel), record, now_us)

    def _note(self, slot: _Slot, stream: Stream, record: _OfAnEpoch, now_us: int) -> None:
        if isinstance(record, BookRow):
            if record.flags & KEYFRAME:
                stream.rows = [record]
            else:
                stream.rows.append(record)
            self._heard(slot, stream, now_us)
            if slot.listeners and slot.current is stream:
                slot.tell(latest_book(stream, 0.0))
        elif isinstance(record, CoverageMark):
            if record.confirmed_until_us > stream.confirmed_us:
                stream.confirmed_us, stream.heard_at_us = record.confirmed_until_us, now_us
        elif isinstance(record, EpochEnded):
            self._end(slot, stream, record.reason)
        elif isinstance(record, EpochVerdict):
            stream.verdict = record.verdict
        else:
            stream.take(record)
            self._heard(slot, stream, now_us)
            # During a takeover either connection may bring a trade that the other misses.
            if slot.listeners and (slot.is_new(record) if isinstance(record, TradeRow) else slot.current is stream):
                slot.tell(latest_row(stream, record, 0.0))

    def _heard(self, slot: _Slot, stream: Stream, now_us: int) -> None:
        stream.heard_at_us = now_us
        if not stream.has_data:
            stream.has_data = True
            with self._lock:
                slot.streams = sorted([*slot.streams, stream], key=lambda one: one.epoch)
                slot.current = slot.streams[-1]

    def _begin(self, feed: Feed, opened: EpochOpened, now_us: int) -> None:
        stream = Stream(feed, opened)
        stream.heard_at_us = now_us
        with self._lock:
            slot = self._slot(feed)
            slot.epochs.add(opened.epoch)
            self._open[opened.epoch] = slot, stream

    def _end(self, slot: _Slot, stream: Stream, reason: str) -> None:
        stream.ended = reason
        with self._lock:
            del self._open[stream.epoch]
            slot.epochs.discard(stream.epoch)
            slot.streams = [one for one in slot.streams if one is not stream]
            if slot.streams:
                slot.current = slot.streams[-1]
            gone = not slot.epochs
        if gone:
            slot.tell(Gone(slot.feed, stream.epoch, reason))

    def _slot(self, feed: Feed) -> _Slot:
        slot = self._slots.get(feed)
        if slot is None:
            slot = _Slot(feed)
            self._introduce(slot)
            self._slots[feed] = slot
        return slot

    def expect(self, feed: Feed) -> None:
        """Know of a feed before it is heard, so that it is named as long as it is not."""
        with self._lock:
            self._slot(feed)

    def forget(self, feed: Feed) -> None:
        """Leave out a feed that is no longer recorded; nothing happens while it is."""
        with self._lock:
            slot = self._slots.get(feed)
            if slot is not None and not slot.epochs:
                del self._slots[feed]
