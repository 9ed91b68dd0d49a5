"""Nothing that somebody writes into a job file, or into the inventory, is ever read by a shell on a host."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ssh_hosts import HostWorld, SSHHost

from raysched.backends.ssh.remote import Remote
from raysched.core.host import Host
from raysched.core.lease import Place
from raysched.core.work import Launch, Run
from raysched.testing.conformance import pack

SHOW = (
    "import os, sys; parts = (*sys.argv[1:], os.environ['TEXT'], *sorted(os.listdir())); "
    "[sys.stdout.buffer.write(os.fsencode(part) + b'\\0') for part in parts]"
)
NASTY = [
    "'",
    '"',
    "$(touch hurt)",
    "`touch hurt`",
    ";touch hurt;",
    "\n",
    "\\",
    "!",
    "*",
    "~",
    "%",
    "&",
    "|",
    "{a,b}",
    " ",
]
texts = st.lists(
    st.one_of(
        st.sampled_from(NASTY),
        st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=8),
    ),
    max_size=6,
).map("".join)
file_names = st.text(
    st.characters(exclude_characters="\0/", exclude_categories=("Cs",)), min_size=1, max_size=20
).filter(lambda name: name.strip(". ") and len(name.encode()) < 200)


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made = asyncio.new_event_loop()
    yield made
    made.close()


@pytest.fixture(scope="module")
def strange(hosts: HostWorld) -> SSHHost:
    """A host whose account has csh, which expands more than any other."""
    return hosts.add("strange", shells={"csh": "/bin/tcsh"})


@pytest.fixture
def remote(strange: SSHHost, loop: asyncio.AbstractEventLoop, home: None) -> Iterator[Remote]:
    folder = strange.folder / 'it\'s $(touch hurt) `touch hurt` a "folder" !1'
    host = Host("strange", strange.address, "csh", python=sys.executable, folder=str(folder))
    made = Remote(host, "tests", asyncio.Semaphore(1), lambda: None)
    loop.run_until_complete(made.connect())
    assert folder.is_dir()
    yield made
    loop.run_until_complete(made.hang_up())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts, texts, texts, file_names)
def test_what_arrives_is_byte_for_byte_what_was_asked(
    remote: Remote, loop: asyncio.AbstractEventLoop, tmp_path: Path, name, word, text, file
) -> None:
    """Name, arguments, environment, and paths in the working directory, with the login shell csh."""
    packages = tmp_path / "packages"
    packages.mkdir(exist_ok=True)
    run = Run(f"job-{uuid4()}", 1, 0)
    entry = (sys.executable, "-I", "-X", "utf8", "-c", SHOW, word)
    env = (("TEXT", text),)
    digest = pack(packages, {file: b"x"})
    launch = Launch(run, f"{run.job}.1", Place("strange", (), 0, 0), name, entry, env, digest)

    async def work() -> bytes:
        await remote.start(launch, packages)
        while True:
            (seen,) = [seen for seen in await remote.observe() if seen.run == run]
            if seen.state != "running":
                assert seen.code == 0, seen
                break
            await asyncio.sleep(0.02)
        output = await remote.logs(run, 0, 1 << 20)
        await remote.forget(frozenset({run}))
        return output

    parts = [part.encode("utf-8", "surrogateescape") for part in (word, text, file)]
    assert loop.run_until_complete(work()) == b"".join(part + b"\0" for part in parts)


def test_nothing_was_run_that_was_only_text(strange: SSHHost) -> None:
    assert not list(strange.folder.rglob("hurt"))
