"""Work with Ray in a child process: Ray's core ends the process that calls it where it loses its GCS, and so
`up` and `down` would be gone before they could clean up."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

from raysched.backends import runner
from raysched.cluster import own_ray
from raysched.cluster.own_ray import RayLost
from raysched.cluster.record import OwnRay
from raysched.errors import RayschedError

T = TypeVar("T")

WATCH_S = 0.5
UNDO_S = 30.0
"""How long the child may take to undo what it did, once it is interrupted."""


def apart(own: OwnRay | None, output: Path, function: Callable[..., T], *args: Any) -> T:
    """What `function` answers in a child of this process, and raises what it raises there. What the child
    writes to its standard error, as Ray does when it ends a process, goes to the file `output`. An interrupt
    of this process is one of the child, and is raised once the child has ended.

    Raises RayLost where Ray ended the child, or a Ray of our `own` has ended itself.
    """
    fork = multiprocessing.get_context("fork")
    receiver, sender = fork.Pipe(duplex=False)
    child = fork.Process(target=_work, args=(sender, output, function, args))
    child.start()
    sender.close()
    try:
        while not receiver.poll(WATCH_S):
            if own is not None and not own_ray.alive(own):
                child.kill()  # it may wait for Ray, deaf to everything else
        kind, answer = receiver.recv()
    except EOFError:
        raise RayLost(f"Ray went away, and ended what was connected to it (see {output})") from None
    except KeyboardInterrupt:
        child.terminate()
        child.join(UNDO_S)
        child.kill()
        raise
    finally:
        receiver.close()
        child.join()
    if kind == "raised":
        raise answer
    return answer


def _work(sender: Connection, output: Path, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """The child's life, which ends with its parent's. An error goes to the parent, which tells it."""
    ctypes.CDLL(None).prctl(runner.PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    with output.open("wb") as file:
        os.dup2(file.fileno(), sys.stderr.fileno())
    try:
        message = "answered", function(*args)
    except RayschedError as error:
        message = "raised", error
    except KeyboardInterrupt:
        return
    except Exception:
        message = "raised", RuntimeError(traceback.format_exc())
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sender.send_bytes(pickle.dumps(message))
