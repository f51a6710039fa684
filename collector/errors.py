"""Every error of the collector, by what the caller does next.

`ConfigError` stops the program before anything starts. `SourceError` concerns one connection: the worker waits and
tries again. `StorageError` concerns the database: the writer holds what it has and tries again, unless only a person
can help.
"""


class CollectorError(Exception):
    """Something the collector knows how to handle went wrong."""


class ConfigError(CollectorError):
    """The configuration can't be used; the text names every mistake, one a line."""


class SourceError(CollectorError):
    """An exchange or the way to it failed; the worker retries."""


class ConnectionLost(SourceError):
    """The connection ended, or could not be made."""


class StaleConnection(ConnectionLost):
    """Nothing arrived for longer than the exchange allows itself, or data stopped while the connection stayed up."""


class BookDiffers(SourceError):
    """The book that was kept is not the exchange's."""


class BookBroken(SourceError):
    """A book kept from changes is not the exchange's any more; `reason` ends its epoch: `sequence`, `checksum`."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class FramesLost(ConnectionLost):
    """The exchange numbers what it sends on a connection, and a number is missing."""


class RateLimited(SourceError):
    """The exchange asked for fewer requests; `banned`: it answers none of this address for a while."""

    def __init__(self, message: str, retry_after_s: float | None = None, *, banned: bool = False) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.banned = banned


class VenueRefused(SourceError):
    """The exchange answered with an error of its own."""


class BadFrame(SourceError):
    """A message can't be what its exchange says it sends: the frame is kept raw and counted as rejected."""


class UnknownFrame(BadFrame):
    """A message of a kind this collector does not know: the frame is kept raw and counted as rejected."""


class StorageError(CollectorError):
    """The store did not take a batch; what was handed in is still held by the caller."""


class StorageBusy(StorageError):
    """The store can't be reached or is locked for the moment: the same batch may be written again."""


class StorageFull(StorageError):
    """The disk is full: the same batch may be written when there is space."""


class StorageCorrupt(StorageError):
    """The database file is damaged: only a person can help."""


class NotOurs(StorageError):
    """The file is no database of this program, is from a newer version of it, or is in use by another collector."""
