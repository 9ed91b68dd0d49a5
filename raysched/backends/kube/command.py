"""What the container of a job runs. Pure."""

from __future__ import annotations

SHELL = """\
job= told=
end() {
  told=1
  [ -z "$job" ] || kill -TERM "-$job" || kill -TERM "$job"
}
trap end TERM
if command -v setsid >/dev/null; then setsid /bin/sh -c -- "$1" & else /bin/sh -c -- "$1" & fi
job=$!
exec 2>/dev/null
[ -z "$told" ] || end
wait "$job"
code=$?
while kill -0 "$job"; do
  wait "$job"
  code=$?
done
while [ "$told" ] && kill -0 "-$job"; do sleep 0.2; done
exit "$code"
"""
"""Runs a command line as the job. Kubernetes tells only the first process of a container to end, and kills
the others with it; this one tells them all, and stays until they have finished."""


def command(entrypoint: str | tuple[str, ...]) -> list[str]:
    """The command of a container: a line is run by its shell, a list by nobody."""
    words = ("/bin/sh", "-c", SHELL, "sh", entrypoint) if isinstance(entrypoint, str) else entrypoint
    return [as_is(word) for word in words]


def as_is(text: str) -> str:
    """Text for Kubernetes, which puts in values of variables for `$(NAME)`, and takes `$$` for `$`."""
    return text.replace("$", "$$")
