"""The daemon of a chaos run: the program itself, and beside it a thread that ends threads by name when it is told to.

Orders come line by line on standard input; where that ends, so does the process: whoever gave them is gone. Nothing of
this is in the program that users run.
"""

import ctypes
import os
import signal
import threading
from collections.abc import Iterator

from commands.app import main


def _lines() -> Iterator[str]:
    # Read without `sys.stdin`: a thread that waits in there keeps the interpreter from ending.
    waiting = b""
    while read := os.read(0, 4096):
        *lines, waiting = (waiting + read).split(b"\n")
        yield from (line.decode() for line in lines)


def _obey() -> None:
    for line in _lines():
        name, nth = line.split()
        found = [thread.ident for thread in threading.enumerate() if thread.name.startswith(name)]
        if found:
            thread = ctypes.c_ulong(found[int(nth) % len(found)] or 0)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(SystemExit))  # wherever it is
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    threading.Thread(target=_obey, name="orders", daemon=True).start()
    main()
