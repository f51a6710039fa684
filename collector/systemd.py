"""What the daemon tells systemd: ready, alive, reloading, stopping, and a line for `systemctl status`.

Speaks the notification protocol itself (one datagram to `$NOTIFY_SOCKET`); without that variable every call does
nothing. A message that can't be delivered is reported by the returned False and never raised: collection is worth more
than a status line. Protocol: https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html
"""

import os
import socket
import time

# A supervisor that does not read its socket must not hold up the daemon.
_SEND_TIMEOUT_S = 1.0


def notify(*fields: str) -> bool:
    """Send assignments such as `"READY=1"` in one message; return whether systemd took it."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):  # unset, or a kind of socket that only virtual machines use
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
            out.settimeout(_SEND_TIMEOUT_S)
            out.connect(address)
            out.sendall("\n".join(fields).encode())
    except OSError:
        return False
    return True


def watchdog_interval_s() -> float | None:
    """Return the seconds between two signs of life: half of what systemd allows, None where it expects none."""
    try:
        limit_us = int(os.environ.get("WATCHDOG_USEC", ""))
        pid = int(os.environ.get("WATCHDOG_PID") or os.getpid())
    except ValueError:
        return None
    if limit_us <= 0 or pid != os.getpid():
        return None
    return limit_us / 2_000_000


class Notifier:
    """The messages of a daemon's life, in the order in which systemd expects them. Any thread may call."""

    def ready(self, status: str) -> bool:
        """Say that the start, or a reload, is over; *status* is shown by `systemctl status`."""
        return notify("READY=1", f"STATUS={_one_line(status)}")

    def status(self, text: str) -> bool:
        """Change the line that `systemctl status` shows."""
        return notify(f"STATUS={_one_line(text)}")

    def reloading(self) -> bool:
        """Say that the configuration is being read again; `ready` must follow."""
        return notify("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> bool:
        """Say that the daemon is going down in good order."""
        return notify("STOPPING=1")

    def watchdog(self) -> bool:
        """Give the sign of life that `WatchdogSec=` waits for."""
        return notify("WATCHDOG=1")


def _one_line(text: str) -> str:
    # A line break would start the next assignment.
    return " ".join(text.split())
