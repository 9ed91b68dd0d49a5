"""What tests of programs that use raysched, and of further backends, can build on.

`MemoryBackend` launches nothing and runs anything; `conformance` holds the tests that every backend passes
(it needs pytest and is imported by name).
"""

from raysched.testing.memory import MemoryBackend, VirtualRun

__all__ = ["MemoryBackend", "VirtualRun"]
