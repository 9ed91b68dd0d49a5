"""What makes a real GPU unfit: errors that it reported, memory beyond mending, a reset that it waits for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pynvml

from raysched.gpu.answers import asked

FAULTS = {
    46: "it stopped processing",
    48: "an uncorrectable memory error",
    62: "its internal microcontroller halted",
    64: "a faulty memory row could not be remapped",
    74: "an NVLink error",
    79: "it has fallen off the bus",
    95: "an uncontained memory error",
    110: "a security fault",
    119: "its system processor (GSP) does not answer",
    120: "its system processor (GSP) failed",
    136: "an NVLink could not be trained",
    140: "an unrecovered memory error",
    143: "it could not be initialised",
}
"""The XIDs after which NVIDIA's catalogue wants the GPU reset, the node restarted or support asked. Others
are a program's own fault, or end with the program (such as 13, 31, 43, 45, 63, 94)."""

ACTIONS = {
    pynvml.NVML_GPU_RECOVERY_ACTION_GPU_RESET: "reset it",
    pynvml.NVML_GPU_RECOVERY_ACTION_NODE_REBOOT: "reboot the node",
    pynvml.NVML_GPU_RECOVERY_ACTION_DRAIN_P2P: "end the programs that use it together with other GPUs",
    pynvml.NVML_GPU_RECOVERY_ACTION_DRAIN_AND_RESET: "let its programs end, then reset it",
}
XID = pynvml.nvmlEventTypeXidCriticalError


class Health:
    """Listens to the errors that GPUs report. One that was reported before it listened is not known."""

    def __init__(self) -> None:
        self._events: Any = None
        self._heard: set[str] = set()
        self._xids: dict[str, int] = {}
        self._waited: set[str] = set()

    def listen(self, gpus: Iterable[tuple[str, Any]]) -> None:
        """Take in what these GPUs, by UUID and handle, reported since the last call."""
        if self._events is None:
            self._events = asked(pynvml.nvmlEventSetCreate)
        if self._events is None:
            return
        for uuid, handle in gpus:
            if uuid not in self._heard:
                self._heard.add(uuid)
                if (asked(pynvml.nvmlDeviceGetSupportedEventTypes, handle) or 0) & XID:
                    asked(pynvml.nvmlDeviceRegisterEvents, handle, XID, self._events)
        while event := asked(pynvml.nvmlEventSetWait_v2, self._events, 0):
            uuid = asked(pynvml.nvmlDeviceGetUUID, event.device)
            if uuid is not None and event.eventData in FAULTS:
                self._xids[uuid] = event.eventData

    def deafen(self) -> None:
        """Stop listening until the next `listen`: who listens to a GPU counts as a user of it."""
        if self._events is not None:
            try:
                pynvml.nvmlEventSetFree(self._events)
            except pynvml.NVMLError:
                return  # it listens on, and the next time may do
            self.forget()

    def forget(self) -> None:
        """The library is no longer used, and nobody listens any more."""
        self._events = None
        self._heard.clear()

    def fault(self, uuid: str, handle: Any) -> str:
        """Why a GPU must not be used, empty if it is healthy. An error that it reported stands until the
        driver has wanted something done about it and no longer does, else until this process ends."""
        action = _action(handle)
        if action:
            self._waited.add(uuid)
        elif uuid in self._waited:
            self._waited.remove(uuid)
            self._xids.pop(uuid, None)
        causes = [
            *([f"XID {self._xids[uuid]}: {FAULTS[self._xids[uuid]]}"] if uuid in self._xids else []),
            *(["its spare memory rows are used up"] if _rows_failed(handle) else []),
        ]
        if action:
            causes.append(f"the driver says: {ACTIONS.get(action, 'reset it or reboot the node')}")
        return "; ".join(causes)


def _action(handle: Any) -> int:
    """What the driver wants done about a GPU; 0 for nothing, or where it does not say."""
    fields = asked(pynvml.nvmlDeviceGetFieldValues, handle, [pynvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION])
    if fields is None or fields[0].nvmlReturn != pynvml.NVML_SUCCESS:
        return 0
    return fields[0].value.uiVal


def _rows_failed(handle: Any) -> bool:
    rows = asked(pynvml.nvmlDeviceGetRemappedRows, handle)
    return rows is not None and bool(rows[3])
