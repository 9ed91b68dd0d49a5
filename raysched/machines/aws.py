"""What Ray's launcher makes in AWS around the machines of one cluster, and leaves there itself.

A key pair and a role for instances stay: all of Ray's clusters in an account share them, and they cost
nothing.
"""

from __future__ import annotations

import time
from typing import Any

from raysched.errors import RayschedError
from raysched.machines.launcher import Launcher

GROUP = "ray-autoscaler-{}"
"""The security group of a cluster, as Ray names it."""
FREE_S = 300.0
PAUSE_S = 3.0


def sweep(launcher: Launcher, name: str) -> None:
    """Delete the security group of a cluster whose machines have ended; with another provider, nothing."""
    ec2: Any = getattr(launcher.provider, "ec2", None)
    if ec2 is None:
        return
    filters = [{"Name": "group-name", "Values": [GROUP.format(name)]}]
    for group in ec2.security_groups.filter(Filters=filters):
        _delete(group)


def _delete(group: Any) -> None:
    """As soon as the last machine has let go of it, which is a while after its end."""
    from botocore.exceptions import ClientError

    deadline = time.monotonic() + FREE_S
    while True:
        try:
            group.delete()
            return
        except ClientError as error:
            code = error.response["Error"]["Code"]
            if code == "InvalidGroup.NotFound":
                return
            if code != "DependencyViolation" or time.monotonic() > deadline:
                raise RayschedError(f"the security group {group.id} can't be deleted: {error}") from None
            time.sleep(PAUSE_S)
