"""How the serving end gets onto a host and starts there.

All that the login shell of the account reads is `COMMAND`, which means the same in any of them. What
follows goes to the `sh` that this starts: a script that looks for a Python, and then `PREPARE`, which that
Python runs. It asks for the bundle where the host does not have it yet, and becomes `serve.py`. Each step
says a line that begins with a mark; what profiles print before it is passed over.
"""

from __future__ import annotations

import shlex

COMMAND = "exec /bin/sh"

FOLDER = "~/.local/state/raysched-host"
"""Where everything of raysched lies on a host, unless the inventory says otherwise."""

PYTHONS = ("python3", *(f"python3.{minor}" for minor in (14, 13, 12, 11, 10)))
"""What is tried as Python, where the inventory names none."""

NEED, READY, FAILED, NO_PYTHON = "need", "ready", "failed", "no-python"
"""What the steps say behind the mark."""

_WHICH = 'sys.executable + " is Python " + sys.version.split()[0]'

PREPARE = """
import os, sys
mark, digest, folder = sys.argv[1:]

def say(text):
    os.write(1, f"\\n{mark} {text}\\n".encode("utf-8", "replace"))

def read(count):
    parts = []
    while count:
        part = os.read(0, min(count, 1 << 20))
        if not part:
            sys.exit(1)
        parts.append(part)
        count -= len(part)
    return b"".join(parts)

def unpack(data, code):
    import hashlib, io, shutil, tempfile, zipfile
    if hashlib.sha256(data).hexdigest() != digest:
        raise OSError("what arrived is damaged")
    new = tempfile.mkdtemp(dir=os.path.dirname(code))
    try:
        zipfile.ZipFile(io.BytesIO(data)).extractall(new)
        os.rename(new, code)
    except OSError:
        shutil.rmtree(new, ignore_errors=True)
        if not os.path.isdir(code):
            raise

try:
    os.umask(0o077)
    folder = os.path.abspath(os.path.expanduser(folder))
    code = os.path.join(folder, "code", digest)
    if not os.path.isdir(code):
        os.makedirs(os.path.dirname(code), exist_ok=True)
        say("need")
        unpack(read(int.from_bytes(read(4), "big")), code)
    os.chdir("/")
    say("ready")
    os.execv(sys.executable, [sys.executable, "-I", "-S", "-X", "utf8", code, folder])
except OSError as error:
    say(f"failed {folder}: {error.strerror or error}")
"""


def script(mark: str, digest: str, folder: str | None, python: str | None) -> bytes:
    """What is sent to `COMMAND`. Every value is quoted for `sh`."""
    prepare = shlex.join([PREPARE, mark, digest, folder or FOLDER])
    pythons = shlex.join([python] if python else PYTHONS)
    lines = f"""\
for python in {pythons}; do
  if "$python" -I -S -c 'import sys; sys.exit(sys.version_info < (3, 10))' </dev/null >/dev/null 2>&1; then
    exec "$python" -I -S -X utf8 -c {prepare}
  fi
done
for python in {pythons}; do
  "$python" -c {shlex.quote(f'import sys; print("{mark} {NO_PYTHON} " + {_WHICH})')} </dev/null && exit
done
printf '\\n%s %s\\n' {mark} {shlex.quote(f"{NO_PYTHON} none of these is there: {pythons}")}
"""
    return lines.encode("utf-8", "surrogateescape")
