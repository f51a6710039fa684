"""The judge: compares what a store holds with what the simulator says it sent, message by message.

It counts by position, not by time: what an epoch accounts for is exactly the `frames` messages that the simulator sent
on that subscription from the epoch's first one on. The judge rebuilds books from the simulator's ledger with code of
its own and wants each stored row to be the next different one; of trades, tickers and candles it wants all that these
messages hold, and nothing else. Everything it did not find accounted for must lie outside coverage. The collector's
clock may be wrong by any amount: the first message of an epoch tells how much.

It reads the tables directly and shares nothing with the reader, so that one fault can't hide the other.
"""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from simulator.rebuilt import Misfit, Stream, Track, rebuild, streams
from simulator.sent import Sent, SentLedger, Subscription, open_ledger
from simulator.stored import Contents, Epoch, Feed, read_store
from simulator.taped import KINDS, Told, follow

# A message may have been on its way when the connection ended: sent, by its ledger time, just before the last one was
# heard.
GRACE_US = 1_500_000
# Answers to polls that are no further apart leave no gap, whatever became of those between them: a second is allowed,
# the rest is for the way.
POLLS_APART_US = 1_500_000
BOOK = "orderbook"
BATCHES_IN_SPOOL = (".spool", ".dropped")


@dataclass
class Tally:
    """What became of every message."""

    sent: int = 0
    stored: int = 0
    duplicate: int = 0  # accounted for, and changed nothing
    outside: int = 0  # outside coverage: the ledger says that nobody was listening
    withheld: int = 0
    rejected: int = 0  # garbage, which no coverage may hold
    missing: int = 0
    wrong: int = 0
    corrupt: int = 0  # the store contradicts itself
    epochs: int = 0

    @property
    def good(self) -> bool:
        """Whether everything is accounted for."""
        return not (self.missing or self.wrong or self.corrupt)

    def __str__(self) -> str:
        return (
            f"sent {self.sent} / stored {self.stored} / duplicate {self.duplicate} / outside coverage {self.outside} / "
            f"missing {self.missing} / wrong {self.wrong} / corrupt {self.corrupt} (epochs {self.epochs}, "
            f"garbage {self.rejected}, withheld {self.withheld})"
        )


@dataclass
class Verdict(Tally):
    """What became of every message, in all and of each exchange; `notes` say what is not as it must be, and where."""

    exchanges: dict[str, Tally] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def count(self, exchange: str, what: str, by: int = 1) -> None:
        """Count something of an exchange; of none (""), what concerns the store as a whole."""
        tallies: list[Tally] = [self]
        if exchange:
            tallies.append(self.exchanges.setdefault(exchange, Tally()))
        for tally in tallies:
            setattr(tally, what, getattr(tally, what) + by)

    def blame(self, exchange: str, what: str, note: str) -> None:
        """Count something that must not be, and say where."""
        self.count(exchange, what)
        self.notes.append(f"{exchange}: {note}" if exchange else note)


def judge(ledger: Path, store: Path | str, *, spool: Path | None = None) -> Verdict:
    """Return the verdict over one ledger and one store; the collector must not be running.

    `store` is an SQLite file, or the address of a PostgreSQL database. `spool` is the directory of a collector that had
    all the time it wanted to empty it.
    """
    verdict = Verdict()
    contents = read_store(store)
    for problem in contents.broken:
        verdict.blame("", "corrupt", problem)
    _judge_epochs_alone(contents, verdict)
    if spool is not None:
        _judge_spool(spool, verdict)
    with open_ledger(ledger) as sent:
        subscriptions: dict[Feed, list[Subscription]] = {}
        for one in sent.subscriptions:
            if one.channel == BOOK or one.channel in KINDS:
                subscriptions.setdefault((one.exchange, one.market, one.channel), []).append(one)
        for epoch in contents.epochs:
            subscriptions.setdefault((epoch.exchange, epoch.market, epoch.channel), [])
        feeds = {
            feed: _judged(feed, list(streams(mine)), sent, verdict, contents) for feed, mine in subscriptions.items()
        }
        for epoch in contents.epochs:
            feeds[epoch.exchange, epoch.market, epoch.channel].hear(epoch)
        certain: dict[str, list[bytes]] = {}
        sent_to: dict[str, Counter[bytes]] = {}
        for (exchange, _, _), judged in sorted(feeds.items()):
            judged.account()
            for frame, must in judged.garbage():
                sent_to.setdefault(exchange, Counter())[frame] += 1
                if must:
                    certain.setdefault(exchange, []).append(frame)
        _judge_rejected(contents, certain, sent_to, verdict)
    return verdict


def _judge_epochs_alone(contents: Contents, verdict: Verdict) -> None:
    """Find what needs no ledger of the simulator to be seen."""
    for epoch in contents.epochs:
        where = f"{epoch.market}: epoch {epoch.id}"
        numbers = [row.n for row in epoch.rows]
        for n, times in sorted(Counter(numbers).items()):
            if times > 1:
                verdict.blame(epoch.exchange, "corrupt", f"{where}: row {n} is there {times} times")
        for n in sorted(set(range(1, max(numbers, default=0) + 1)) - set(numbers)):
            verdict.blame(epoch.exchange, "corrupt", f"{where}: row {n} is missing")
        if any(later.received_us < row.received_us for row, later in zip(epoch.rows, epoch.rows[1:], strict=False)):
            verdict.blame(epoch.exchange, "wrong", f"{where}: its times of receipt fall")
        if epoch.run in contents.closed_runs and (epoch.ended_us is None or epoch.reason is None):
            verdict.blame(epoch.exchange, "wrong", f"{where} is open, but its run was closed")


def _judge_spool(spool: Path, verdict: Verdict) -> None:
    for file in sorted(spool.iterdir()) if spool.is_dir() else ():
        if file.suffix in BATCHES_IN_SPOOL:
            verdict.blame("", "wrong", f"the spool was not emptied: {file.name}, {file.stat().st_size} bytes")


def _judge_rejected(
    contents: Contents, certain: dict[str, list[bytes]], sent: dict[str, Counter[bytes]], verdict: Verdict
) -> None:
    """Compare the raw frames that are kept with the garbage that was sent."""
    kept: dict[str, Counter[bytes]] = {}
    for rejected in contents.rejected:
        kept.setdefault(rejected.exchange, Counter())[rejected.frame] += 1
    for exchange, frames in kept.items():
        for frame, times in (frames - sent.get(exchange, Counter())).items():
            verdict.blame(exchange, "wrong", f"{frame[:60]!r} was rejected {times} times more than it was sent")
    for exchange, wanted in certain.items():
        for frame, times in (Counter(wanted) - kept.get(exchange, Counter())).items():
            verdict.blame(exchange, "wrong", f"garbage {frame[:60]!r} was heard and is not kept ({times} times)")
    for epoch in contents.epochs:
        if epoch.reason == "rejected" and not any(
            one.run == epoch.run and one.exchange == epoch.exchange and one.market in (None, epoch.market)
            for one in contents.rejected
        ):
            verdict.blame(
                epoch.exchange, "wrong", f"{epoch.market}: epoch {epoch.id} ended for a rejected frame; none is kept"
            )


@dataclass
class _Claim:
    """What an epoch says it holds, in the simulator's time; `stream` is None where nothing was found that fits it."""

    epoch: Epoch
    from_us: int
    until_us: int
    stream: Stream | None = None
    track: Track | None = None

    def covers(self, time_us: int) -> bool:
        """Tell whether it claims that moment, beyond doubt."""
        return self.from_us + GRACE_US < time_us < self.until_us - GRACE_US


class _JudgedFeed:
    """The books of one market of one exchange."""

    _kinds: tuple[str, ...] = ("book", "change")

    def __init__(self, feed: Feed, sent: list[Stream], ledger: SentLedger, verdict: Verdict) -> None:
        self._exchange, self._market, channel = feed
        if channel != BOOK:
            self._market += f" {channel}"
        self._streams, self._ledger, self._verdict = sent, ledger, verdict
        self._claims: list[_Claim] = []
        self._reached: dict[str, int] = {}  # of each transport, the newest subscription that an epoch was found in

    # --- epochs: each must be what was sent on one subscription -------------------------------------------------------

    def hear(self, epoch: Epoch) -> None:
        """Find the stretch of messages that an epoch holds."""
        self._verdict.count(self._exchange, "epochs")
        stream, track, problem = self._place(epoch)
        if problem:
            what = "corrupt" if problem.startswith(Misfit.UNREADABLE) else "wrong"
            self._verdict.blame(self._exchange, what, f"{self._market}: epoch {epoch.id} ({epoch.reason}) {problem}")
        if stream is None or track is None:
            self._claims.append(_Claim(epoch, epoch.opened_us, epoch.confirmed_until_us))
            return
        stream.goes_on(track)
        if not track.ahead_us:  # no message tells how wrong the clock was, so nobody can say what it claims
            self._claims.append(_Claim(epoch, 0, 0, stream, track))
            return
        # The clock is wrong by as much, or the messages took so long: then the claim ends earlier.
        ahead_us = max(track.ahead_us[0], track.ahead_us[-1])
        from_us = self._opened_us(epoch, stream, track, ahead_us)
        self._claims.append(_Claim(epoch, from_us, epoch.confirmed_until_us - ahead_us, stream, track))

    def _opened_us(self, epoch: Epoch, stream: Stream, track: Track, ahead_us: int) -> int:
        return epoch.opened_us - ahead_us if track.first < 0 else stream.messages[track.first].time_us

    def _fit(self, stream: Stream, epoch: Epoch) -> Track | str:
        answers = [message for one in self._streams if one.polled for message in one.messages]
        return rebuild(stream, epoch, self._ledger, answers)

    def _place(self, epoch: Epoch) -> tuple[Stream | None, Track | None, str]:
        # Epochs come in the order of their subscriptions. Where those of a market that stands still begin alike, the
        # first that is not used yet is as good as any: epochs that are to come need the later ones.
        mine = [stream for stream in self._streams if stream.transport == epoch.transport]
        problems: list[str] = []
        reached = self._reached.get(epoch.transport, 0)
        for stream in mine[reached:] + mine[:reached]:
            track = self._fit(stream, epoch)
            if isinstance(track, Track):
                self._reached[epoch.transport] = max(reached, mine.index(stream))
                return stream, track, ""
            problems.append(track)
        # What comes nearest is worth telling: a stretch that began well.
        told = [text for text in problems if text != Misfit.NEVER_SENT] or problems or ["has no subscription"]
        return None, None, told[0]

    # --- messages: each must be in an epoch, or outside of all --------------------------------------------------------

    def account(self) -> None:
        """Count what became of every message."""
        polls = any(claim.epoch.transport == "rest" for claim in self._claims)
        for stream in self._streams:
            if stream.polled and not polls and len(self._streams) > 1:
                continue  # complete books that what came over the socket was compared with
            for index, message in enumerate(stream.messages):
                self._account(stream, index, message)

    def _account(self, stream: Stream, index: int, message: Sent) -> None:
        count = self._verdict.count
        if message.withheld:
            count(self._exchange, "withheld")
            self._must_be_outside(stream, message)
        elif message.what == "garbage":
            count(self._exchange, "sent")
            count(self._exchange, "rejected")
        elif message.what in self._kinds:
            count(self._exchange, "sent")
            if index in stream.held:
                count(self._exchange, "duplicate" if stream.held[index] else "stored")
            elif not self._must_be_outside(stream, message):
                count(self._exchange, "outside")

    def _must_be_outside(self, stream: Stream, message: Sent) -> bool:
        """Blame the claim that has no right to the time of a message nobody holds; tell whether there is one."""
        for claim in self._claims:
            if claim.covers(message.time_us) and not self._excused(claim, stream, message):
                fate = "withheld" if message.withheld else "sent"
                self._verdict.blame(
                    self._exchange,
                    "missing",
                    f"{self._market}: message {message.i} {fate} on {stream.name} at {message.time_us} lies inside "
                    f"epoch {claim.epoch.id} and is not stored",
                )
                return True
        return False

    def _excused(self, claim: _Claim, stream: Stream, message: Sent) -> bool:
        if claim.stream is None or claim.track is None:
            return False
        if claim.stream is not stream:
            # The market was heard on another subscription at that time, which answers for it.
            return claim.stream.stands(message.time_us)
        if not stream.polled:
            return self._nobody_could_know(stream, message)
        around = [stream.messages[index].time_us for index in claim.track.held]
        before = max((time_us for time_us in around if time_us <= message.time_us), default=None)
        after = min((time_us for time_us in around if time_us >= message.time_us), default=None)
        return before is not None and after is not None and after - before <= POLLS_APART_US

    def _nobody_could_know(self, stream: Stream, message: Sent) -> bool:
        # A lost change shows only where the book is compared with a complete one, and no longer once later changes have
        # replaced all that it touched.
        if message.what != "change" or not message.withheld:
            return False
        left = {(side, price) for side, levels in enumerate(self._ledger.levels(message)) for price, _ in levels}
        mended_us = message.time_us
        for later in stream.messages[message.i :]:
            if not left:
                break
            if later.what == "change" and not later.withheld:
                left -= {(side, price) for side, levels in enumerate(self._ledger.levels(later)) for price, _ in levels}
                mended_us = later.time_us
        answers = [one for other in self._streams if other.polled for one in other.messages if one.what == "book"]
        compared = any(message.time_us <= one.time_us <= mended_us for one in answers if not one.withheld)
        return not left and not compared

    def garbage(self) -> list[tuple[bytes, bool]]:
        """Return each spoiled frame that was sent, and whether the collector must have it.

        It must where it took something later on the same connection: what comes in order is committed in order.
        """
        found: list[tuple[bytes, bool]] = []
        for stream in self._streams:
            newest = stream.newest_held()
            certain: set[bytes] = set()
            for index, message in enumerate(stream.messages):
                if message.what == "garbage" and not message.withheld:
                    frame = self._ledger.frame(message)
                    must = index < newest.get(stream.connection(index), -1) and index not in stream.doubtful
                    if stream.polled and must:  # the same answer again is kept once
                        must = frame not in certain
                        certain.add(frame)
                    found.append((frame, must))
        return found


class _JudgedTape(_JudgedFeed):
    """The trades, the tickers or the candles of one market."""

    def __init__(self, feed: Feed, sent: list[Stream], ledger: SentLedger, verdict: Verdict, told: Told) -> None:
        super().__init__(feed, sent, ledger, verdict)
        self._told = told
        self._kinds = (KINDS[told.channel],)

    def _fit(self, stream: Stream, epoch: Epoch) -> Track | str:
        return follow(stream, epoch, self._ledger, self._told)

    def _opened_us(self, epoch: Epoch, stream: Stream, track: Track, ahead_us: int) -> int:
        # It may have opened before its first message, but not before its subscription, however long that one took.
        return max(epoch.opened_us - ahead_us, stream.from_us)

    def _must_be_outside(self, stream: Stream, message: Sent) -> bool:
        if not message.withheld and self._told.holds(message, self._ledger):
            return False  # by another way
        return super()._must_be_outside(stream, message)

    def _nobody_could_know(self, stream: Stream, message: Sent) -> bool:
        # Nothing shows that one is missing, as long as others follow.
        index = stream.messages.index(message)
        return message.withheld and any(
            claim.track is not None and claim.stream is stream and min(held) < index < max(held)
            for claim in self._claims
            if claim.track is not None and (held := claim.track.held)
        )


def _judged(feed: Feed, sent: list[Stream], ledger: SentLedger, verdict: Verdict, contents: Contents) -> _JudgedFeed:
    if feed[2] == BOOK:
        return _JudgedFeed(feed, sent, ledger, verdict)
    return _JudgedTape(feed, sent, ledger, verdict, Told(feed[2], contents.streams.get(feed, ())))
