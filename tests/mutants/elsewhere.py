"""Mutants of machines that Ray does not manage: hosts behind SSH, and sites."""

from __future__ import annotations

from mutant import Mutant

HOSTS = ("tests/core/test_hosts.py",)
SITES = ("tests/core/test_site.py",)

ELSEWHERE = (
    Mutant(
        "a host that is taken out under its jobs",
        "core/hosts.py",
        "if known.leaving and not held(state, name):",
        "if known.leaving:",
        HOSTS,
    ),
    Mutant(
        "a host that is changed under its jobs",
        "core/hosts.py",
        "if known is not None and known.host != command.host and held(state, name):",
        "if known is None and held(state, name):",
        HOSTS,
    ),
    Mutant(
        "work for a host that is out of reach",
        "core/hosts.py",
        "if node is not None and node.lost is None:",
        "if node is not None and node.lost is not None:",
        HOSTS,
    ),
    Mutant(
        "a host's GPU that is free while something runs there",
        "core/decide.py",
        'return "vm" if node in state.hosts else None',
        "return None",
        HOSTS,
    ),
    Mutant(
        "a GPU that a site gives and the ledger has given",
        "core/decide.py",
        ".single and all(_has_room(state, lease, place) for place in command.places):",
        ".single:",
        SITES,
    ),
    Mutant(
        "a retry used up by what a site took away",
        "core/decide.py",
        'if seen.state == "taken" and job.state != "stopping"',
        'if seen.state == "never" and job.state != "stopping"',
        SITES,
    ),
    Mutant(
        "a hard part that no site holds",
        "core/site.py",
        'if request.isolation == "hard":',
        'if request.isolation == "harder":',
        SITES,
    ),
)
