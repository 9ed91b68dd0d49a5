"""Programs that use raysched as their users' do: functions of a test that run in a process of their own.

@driver
def _() -> None:
    assert ray.get(add.remote(1, 2)) == 3
"""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

from running import System

LOOP = Path(__file__).with_name("program_loop.py")

SLICES = """
import os, subprocess, ray, raysched

@ray.remote(num_cpus=0)
def child():
    return os.environ.get("CUDA_VISIBLE_DEVICES")

@raysched.remote(mig_profile="1g.10gb")
class Slice:
    def look(self):
        return os.environ["CUDA_VISIBLE_DEVICES"]

    def below(self):
        shell = subprocess.run("echo $CUDA_VISIBLE_DEVICES", shell=True, capture_output=True)
        return shell.stdout.decode().strip(), ray.get(child.remote())

a, b = Slice.remote(), Slice.remote()
mine, other = ray.get([a.look.remote(), b.look.remote()])
shell, task = ray.get(a.below.remote())
assert mine != other, mine
assert all(device.startswith("MIG-") and "," not in device for device in (mine, other)), (mine, other)
assert shell == mine, (shell, mine)
assert task in (mine, "", None), (task, mine)
print(mine, other)
"""
"""Case ray-05: two actors of a class on MIG instances, what each sees of them, and what its children see."""


class Driver:
    """A process of a user's, connected to the system. Call it with a function to run that there."""

    def __init__(self, system: System, **environment: str) -> None:
        answers, their_end = os.pipe()
        self.process = subprocess.Popen(
            [sys.executable, str(LOOP), str(their_end)],
            env=system.env | environment,
            stdin=subprocess.PIPE,
            text=True,
            pass_fds=[their_end],
        )
        os.close(their_end)
        self._answers = os.fdopen(answers)

    def __call__(self, function: Callable[[], Any]) -> Any:
        """What the function returns, which JSON must be able to hold. It sees the modules that `program_loop`
        imports and what earlier ones made global. Its exception becomes an assertion with the traceback."""
        self.begin(function)
        return self.answer()

    def begin(self, function: Callable[[], Any]) -> None:
        """Start the function and do not wait for it."""
        source = textwrap.dedent(inspect.getsource(function))
        lines = source.splitlines(keepends=True)
        start = next(number for number, line in enumerate(lines) if line.startswith("def "))
        order = {"source": "".join(lines[start:]), "name": function.__name__}
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()

    def answer(self) -> Any:
        """The end of what was begun."""
        line = self._answers.readline()
        assert line, f"the program ended with {self.process.wait()}"
        answer = json.loads(line)
        assert answer["error"] is None, "\n" + answer["error"]
        return answer["value"]

    def close(self) -> None:
        """End it as a program ends."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self._answers.close()
        try:
            self.process.wait(60)
        finally:
            self.process.kill()
            self.process.wait()


MEET = r"""
import os, socket, time
rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
where = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
if rank == 0:
    with socket.create_server(where) as door:
        guests = [door.accept()[0] for _ in range(size - 1)]
        met = sorted([0, *(int(guest.makefile().readline()) for guest in guests)])
        for guest in guests:
            guest.sendall(f"{met}\n".encode())
else:
    while True:
        try:
            door = socket.create_connection(where)
            break
        except ConnectionRefusedError:
            time.sleep(0.05)
    door.sendall(f"{rank}\n".encode())
    met = door.makefile().readline().strip()
print("met", met, "at", where[1], flush=True)
"""
"""The ranks of a job, one a node, meet at the address and the port that they are told."""
