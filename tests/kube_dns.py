"""The names of a cluster's headless services, for pods on a real kubelet.

    python kube_dns.py ADDRESS KUBECONFIG

It answers `SERVICE.NAMESPACE.svc.cluster.local` and `POD.SERVICE.NAMESPACE.svc.cluster.local` over UDP with
what the API server knows at that moment, and that there is no other name. Nothing else of DNS is needed here:
KubeRay finds the head of a Ray so, and the pods of a Job each other.
"""

from __future__ import annotations

import json
import socket
import ssl
import struct
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

DOMAIN = ["svc", "cluster", "local"]
ADDRESS_TYPE, SECONDS = 1, 1
NO_SUCH_NAME = 3
HEADER = struct.Struct("!6H")

Endpoints = Callable[[str, str], Any]


def endpoints_by(kubeconfig: Path) -> Endpoints:
    """Asks the API server for a service's endpoints: `ask(namespace, service)`, None where it has none."""
    access = json.loads(kubeconfig.read_text())
    cluster, user = access["clusters"][0]["cluster"], access["users"][0]["user"]
    trusted = ssl.create_default_context(cafile=cluster["certificate-authority"])

    def ask(namespace: str, service: str) -> Any:
        url = f"{cluster['server']}/api/v1/namespaces/{namespace}/endpoints/{service}"
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {user['token']}"})
        try:
            with urllib.request.urlopen(request, timeout=5, context=trusted) as answer:
                return json.load(answer)
        except urllib.error.HTTPError:
            return None

    return ask


def addresses(name: str, ask: Endpoints) -> list[str]:
    """The addresses behind a name; none where there is no such name."""
    words = name.lower().split(".")
    *labels, namespace = words[: -len(DOMAIN)] or [""]
    if words[-len(DOMAIN) :] != DOMAIN or len(labels) not in (1, 2):
        return []
    found = ask(namespace, labels[-1]) or {}
    ready = [one for subset in found.get("subsets") or [] for one in subset.get("addresses") or []]
    return [one["ip"] for one in ready if len(labels) == 1 or one.get("hostname") == labels[0]]


def answer(query: bytes, ask: Endpoints) -> bytes:
    """What is answered to a query of one name."""
    id, *_ = HEADER.unpack_from(query)
    labels: list[str] = []
    at = HEADER.size
    while length := query[at]:
        labels.append(query[at + 1 : at + 1 + length].decode())
        at += 1 + length
    (kind,) = struct.unpack_from("!H", query, at + 1)
    question = query[HEADER.size : at + 5]
    found = addresses(".".join(labels), ask)
    told = found if kind == ADDRESS_TYPE else []
    flags = 0x8580 | (0 if found else NO_SUCH_NAME)
    records = [
        struct.pack("!3HIH4s", 0xC00C, ADDRESS_TYPE, 1, SECONDS, 4, socket.inet_aton(one)) for one in told
    ]
    return HEADER.pack(id, flags, 1, len(told), 0, 0) + question + b"".join(records)


def serve(address: str, kubeconfig: Path) -> None:
    """Answer until it is killed."""
    ask = endpoints_by(kubeconfig)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listening:
        listening.bind((address, 53))
        while True:
            query, asker = listening.recvfrom(512)
            try:
                listening.sendto(answer(query, ask), asker)
            except (OSError, ValueError, IndexError, struct.error) as error:
                print(f"no answer to {query!r}: {error}", flush=True)


if __name__ == "__main__":
    serve(sys.argv[1], Path(sys.argv[2]))
