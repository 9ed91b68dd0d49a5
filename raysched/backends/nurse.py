"""Has a process stand ready to be the next runner: `python -I -S nurse.py SOCKET` (`nursery.py`).

It stands beside runner.py, and on the standard library alone.
"""

from __future__ import annotations

import ctypes
import gc
import os
import select
import socket
import sys

TYPE_CHECKING = False
if TYPE_CHECKING or __name__ != "__main__":
    from raysched.backends import runner
else:
    sys.path.append(os.path.dirname(os.path.abspath(__file__)))
    import runner

REST_S = 0.01
"""How long a command that was just started has the machine before the next process is made ready."""


def nurse(number: int) -> None:
    """Have a process ready, detached, that becomes the runner of the next folder that comes over the socket
    with this number, until the other end is closed or the one that is ready is killed."""
    gc.freeze()  # what is never collected is not copied by those that are forked
    os.chdir("/")
    with socket.socket(fileno=number) as line:
        busy = b"+"
        while busy:
            reader, writer = os.pipe()
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:
                    be_ready(line, writer)
                os._exit(0)
            os.close(writer)
            os.wait()
            busy = os.read(reader, 1)
            if busy:  # the next one is forked once this start is through, or another one waits for it
                select.select([reader, line], [], [])
                select.select([line], [], [], REST_S)
            os.close(reader)


def be_ready(line: socket.socket, busy: int) -> None:
    """Wait for a folder, say so to the descriptor `busy`, and do what `main` does, with a process that stands
    ready to be the command. What comes along with the folder is stderr, until that has said `+`, or why not;
    as long `busy` stays open, as stdout."""
    try:
        runner.become_runner()
        child, shown = runner.Child(closed=(line.fileno(), busy)), command_line()
        message, descriptors, _, _ = socket.recv_fds(line, 1 << 16, 1)
        if not message:
            return
        os.write(busy, b"+")
        os.dup2(busy, 1)
        os.dup2(descriptors[0], 2)
        for descriptor in (descriptors[0], line.detach(), busy):
            os.close(descriptor)
        be_called(shown, b"runner.py\0" + os.path.basename(message))
        if runner.main(message.decode("utf-8", "surrogateescape"), child) == 0:
            runner.answer(b"+")
    finally:
        os._exit(0)


def command_line() -> range:
    """Where this process has its command line in memory; empty where the system does not say."""
    with open("/proc/self/stat", "rb") as file:
        return range(*map(int, file.read().rsplit(b")", 1)[1].split()[45:47]))


def be_called(shown: range, words: bytes) -> None:
    """Be so in lists of processes, as far as there is room."""
    if shown.start:
        ctypes.memmove(shown.start, words[: len(shown) - 1].ljust(len(shown), b"\0"), len(shown))


if __name__ == "__main__":
    nurse(int(sys.argv[1]))
