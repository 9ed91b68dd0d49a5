"""A stand-in for NVIDIA's `nvidia-cuda-mps-control`, for machines without a GPU: the same options, commands,
pipe directory and process file, and a server process below the daemon; nothing is shared by it.

FAKE_MPS in the environment lets it misbehave: `refuses` (does not start), `dies` (right after it started),
`deaf` (answers nothing), `stubborn` (does not quit).
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from pathlib import Path

NAME = "nvidia-cuda-mps-control"
pipe = Path(os.environ["CUDA_MPS_PIPE_DIRECTORY"])
log = Path(os.environ["CUDA_MPS_LOG_DIRECTORY"]) / "control.log"
will = os.environ.get("FAKE_MPS", "")


def start() -> int:
    """`-d`: go on in the background."""
    if will == "refuses":
        log.write_text("[2026-01-01 00:00:00.000 Control 1] Failed to start : invalid argument\n")
        return 1
    if os.fork():
        deadline = time.monotonic() + 10
        while not (pipe / f"{NAME}.pid").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        return 0
    os.setsid()
    for number in range(3):
        os.dup2(os.open(os.devnull, os.O_RDWR), number)
    serve()
    return 0


def serve() -> None:
    """The daemon: one server, and answers to those who connect."""
    server = os.fork()
    if server == 0:
        while True:
            signal.pause()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(pipe / "control"))
        listener.listen()
        (pipe / f"{NAME}.pid").write_text(f"{os.getpid()}\n")
        if will != "dies":
            while answer(listener, server):
                pass
    os.kill(server, signal.SIGKILL)
    os.waitpid(server, 0)
    os._exit(0)


def answer(listener: socket.socket, server: int) -> bool:
    """One command; false where it was the last one."""
    peer, _ = listener.accept()
    with peer:
        command = peer.recv(1024).decode().split()
        if will == "deaf":
            time.sleep(3600)
        if command[:1] == ["quit"]:
            return will == "stubborn"
        answers = {"get_server_list": f"{server}\n"}
        peer.sendall(answers.get(command[0] if command else "", "").encode())
    return True


def ask() -> int:
    """Without options: commands from stdin, one a line."""
    for line in sys.stdin:
        try:
            with socket.socket(socket.AF_UNIX) as daemon:
                daemon.connect(str(pipe / "control"))
                daemon.sendall(line.encode())
                sys.stdout.write(daemon.recv(1024).decode())
        except OSError:
            print("Cannot find MPS control daemon process")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(start() if "-d" in sys.argv else ask())
