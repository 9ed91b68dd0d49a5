"""A device plugin for a real kubelet (gRPC, v1beta1) with devices that are made up.

    python device_plugin.py nvidia.com/gpu=GPU-a::0,GPU-a::1 nvidia.com/mig-1g.10gb=MIG-a,MIG-b

As NVIDIA's does, it tells a container its devices in NVIDIA_VISIBLE_DEVICES, and gives `GPU-a::0` and
`GPU-a::1` out as replicas of one GPU. It has no generated code: grpcio and protobuf are enough.
"""

from __future__ import annotations

import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

FOLDER = Path("/var/lib/kubelet/device-plugins")
KUBELET = FOLDER / "kubelet.sock"
PACKAGE = "v1beta1"
MESSAGES = {  # the fields in the order of their numbers: `*` repeated, `?` a bool, `@X` a message X
    "Empty": "",
    "Options": "?pre_start_required ?get_preferred_allocation_available",
    "RegisterRequest": "version endpoint resource_name @Options:options",
    "Device": "ID health",
    "Devices": "*@Device:devices",
    "ContainerRequest": "*devices_ids",
    "Requests": "*@ContainerRequest:container_requests",
    "Variable": "key value",
    "ContainerResponse": "*@Variable:envs",
    "Responses": "*@ContainerResponse:container_responses",
}


def _messages() -> dict[str, Any]:
    """The classes of MESSAGES. (On the wire a map of text is a repeated pair, which `Variable` is.)"""
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name=f"{PACKAGE}.proto", package=PACKAGE, syntax="proto3")
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, field in enumerate(fields.split(), 1):
            label = kinds.LABEL_REPEATED if field.startswith("*") else kinds.LABEL_OPTIONAL
            kind, _, plain = field.lstrip("*").rpartition(":")
            added = message.field.add(name=plain.lstrip("?"), number=number, label=label)
            added.type = kinds.TYPE_BOOL if plain.startswith("?") else kinds.TYPE_STRING
            if kind:
                added.type, added.type_name = kinds.TYPE_MESSAGE, f".{PACKAGE}.{kind[1:]}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)  # type: ignore[no-untyped-call]
    named = {name: pool.FindMessageTypeByName(f"{PACKAGE}.{name}") for name in MESSAGES}
    return {name: message_factory.GetMessageClass(found) for name, found in named.items()}


OF = _messages()


def _wire(message: Any) -> bytes:
    return message.SerializeToString()


class Plugin:
    """Serves one resource, and tells the kubelet of it."""

    def __init__(self, resource: str, ids: list[str]) -> None:
        self._resource = resource
        self._ids = ids
        self._socket = FOLDER / f"{resource.replace('/', '-')}.sock"
        self._socket.unlink(missing_ok=True)
        self._server = grpc.server(ThreadPoolExecutor(4))
        self._server.add_generic_rpc_handlers((self._handlers(),))
        self._server.add_insecure_port(f"unix://{self._socket}")
        self._server.start()

    def _handlers(self) -> grpc.GenericRpcHandler:
        one, many = grpc.unary_unary_rpc_method_handler, grpc.unary_stream_rpc_method_handler
        empty = OF["Empty"].FromString
        methods = {
            "GetDevicePluginOptions": one(lambda *_: OF["Options"](), empty, _wire),
            "ListAndWatch": many(self._devices, empty, _wire),
            "Allocate": one(self._allocate, OF["Requests"].FromString, _wire),
        }
        return grpc.method_handlers_generic_handler(f"{PACKAGE}.DevicePlugin", methods)

    def _devices(self, _request: Any, context: Any) -> Any:
        """All of them, once: none ever gets ill. Ends with the call."""
        over = threading.Event()
        context.add_callback(over.set)
        yield OF["Devices"](devices=[OF["Device"](ID=id, health="Healthy") for id in self._ids])
        over.wait()

    def _allocate(self, request: Any, _context: Any) -> Any:
        return OF["Responses"](
            container_responses=[_given(asked.devices_ids) for asked in request.container_requests]
        )

    def register(self) -> None:
        """Tell the kubelet. Raises grpc.RpcError."""
        told = {"version": PACKAGE, "endpoint": self._socket.name, "resource_name": self._resource}
        with grpc.insecure_channel(f"unix://{KUBELET}") as channel:
            call = channel.unary_unary(f"/{PACKAGE}.Registration/Register", _wire, OF["Empty"].FromString)
            call(OF["RegisterRequest"](**told), timeout=120, wait_for_ready=True)


def _given(ids: Any) -> Any:
    devices = sorted({id.partition("::")[0] for id in ids})
    variable = OF["Variable"](key="NVIDIA_VISIBLE_DEVICES", value=",".join(devices))
    return OF["ContainerResponse"](envs=[variable])


if __name__ == "__main__":
    while not KUBELET.exists():  # before that it deletes what else is in its folder
        time.sleep(0.1)
    for word in sys.argv[1:]:
        resource, _, ids = word.partition("=")
        Plugin(resource, ids.split(",")).register()
        print(f"registered {word}", flush=True)
    threading.Event().wait()
