"""What tests of programs that use raysched, and of further backends, can build on.

`MemoryBackend` launches nothing and runs anything; `SimulatedGPUs` lets things happen to simulated GPUs;
`conformance` holds the tests that every backend passes (it needs pytest and is imported by name).
"""

from raysched.testing.gpus import SimulatedGPUs
from raysched.testing.memory import MemoryBackend, VirtualRun

__all__ = ["MemoryBackend", "SimulatedGPUs", "VirtualRun"]
