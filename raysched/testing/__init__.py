"""What tests of programs that use raysched, and of further backends, can build on.

`MemoryBackend` launches nothing and runs anything; `SimulatedGPUs` lets things happen to simulated GPUs;
`RayDashboard` answers KubeRay where no Ray runs;
`conformance` holds the tests that every backend passes (it needs pytest and is imported by name).
"""

from raysched.testing.gpus import SimulatedGPUs
from raysched.testing.memory import MemoryBackend, VirtualRun
from raysched.testing.ray_dashboard import RayDashboard

__all__ = ["MemoryBackend", "RayDashboard", "SimulatedGPUs", "VirtualRun"]
