"""A cloud for tests: moto's server on this machine, which answers as EC2 does. Its machines are entries in a
table; a test that wants to log in gives them addresses of hosts of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from running import free_port, wait_until

REGION = "us-west-2"


class Cloud:
    """The cloud at a port of this machine. `env` leads boto3 there."""

    def __init__(self, port: int) -> None:
        self.env = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "nobody",
            "AWS_SECRET_ACCESS_KEY": "nothing",
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    @property
    def ec2(self) -> Any:
        """boto3's view of its machines."""
        return self._resource("ec2")

    def _resource(self, name: str) -> Any:
        import boto3

        keys = {"aws_access_key_id": "nobody", "aws_secret_access_key": "nothing"}
        session = boto3.session.Session(region_name=REGION, **keys)
        return session.resource(name, endpoint_url=self.env["AWS_ENDPOINT_URL"])

    def profile(self, name: str) -> dict[str, str]:
        """A new profile for instances; Ray would make one, and wait a quarter of a minute for it."""
        self._resource("iam").create_instance_profile(InstanceProfileName=name)
        return {"Name": name}

    def subnet(self, addresses: str) -> str:
        """A new subnet with these addresses (CIDR), whose machines get no public ones; its id."""
        network = self.ec2.create_vpc(CidrBlock=addresses)
        return self.ec2.create_subnet(VpcId=network.id, CidrBlock=addresses, AvailabilityZone=f"{REGION}a").id

    def machines(self) -> dict[str, int]:
        """How many instances there are in each state."""
        states = [instance.state["Name"] for instance in self.ec2.instances.all()]
        return {state: states.count(state) for state in sorted(set(states))}

    def groups(self) -> set[str]:
        """The security groups that somebody made."""
        return {group.group_name for group in self.ec2.security_groups.all()} - {"default"}


@contextmanager
def cloud() -> Iterator[Cloud]:
    """An empty cloud, gone afterwards."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            made = Cloud(port)
            wait_until(lambda: _answers(made), "moto answers", 120)
            yield made
        finally:
            server.kill()


def _answers(made: Cloud) -> bool:
    from botocore.exceptions import BotoCoreError

    try:
        return list(made.ec2.vpcs.all()) is not None
    except BotoCoreError:
        return False
