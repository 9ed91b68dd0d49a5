"""What is measured on a host arrives at the head as it was."""

from __future__ import annotations

import json

from raysched.backends.ssh import calls, frames
from raysched.gpu.driver import GPUUse, ProcessUse, Sample
from raysched.gpu.owners import User
from raysched.gpu.processes import Process

PROCESS = Process(4711, 99, 1, "python3")


def test_a_sample_arrives_as_it_was() -> None:
    use = GPUUse(5, (ProcessUse(4711, None, "MIG-1", 5, True),), 7, {"MIG-1": 3}, 9, 60)
    sample = Sample({"GPU-1": use, "GPU-2": GPUUse(None)}, {4711: User(PROCESS, None, "ana")})
    answer = calls.signature("sample").answer
    arrived: Sample = frames.decode(answer, json.loads(json.dumps(frames.encode(answer, sample))))
    assert arrived == sample
    assert arrived.users[4711].process.name == "python3"


def test_who_is_to_end_arrives_as_it_was() -> None:
    signature = calls.signature("end_strays")
    sent = json.loads(json.dumps(signature.encode_arguments(((PROCESS,), True))))
    assert signature.decode_arguments(sent) == {"processes": (PROCESS,), "kill": True}
