"""What is asked of the kernel for every connection to an exchange."""

import socket

# A peer that vanished without a word, or a way to it that swallows everything, is noticed by the kernel: probes after
# 15 s of silence, and an end after 20 s in which nothing that was sent was acknowledged. Every exchange's heartbeats
# are further apart (`stale_s`), so nothing that lives is cut by it.
KEEPALIVE_S = 15
UNANSWERED_S = 20
_WANTED = {
    "TCP_KEEPIDLE": KEEPALIVE_S,
    "TCP_KEEPINTVL": 5,
    "TCP_KEEPCNT": 3,
    "TCP_USER_TIMEOUT": UNANSWERED_S * 1000,
}

SOCKET_OPTIONS: list[tuple[int, int, int]] = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    *((socket.IPPROTO_TCP, getattr(socket, name), value) for name, value in _WANTED.items() if hasattr(socket, name)),
]
