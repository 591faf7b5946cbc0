"""`reft interventions grants`, `grant` and `withdraw`: who else may use a set."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from ..sync_client import ReftClient
from .terminal import Terminal

__all__ = ["add_grants"]


def add_grants(sub: Any, add: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the commands to those of `reft interventions`; `add` adds one."""
    grants = add(sub, "grants", "list the tenants that may use a set", _grants, "reft interventions grants haiku")
    grant = add(sub, "grant", "let another tenant use a set", _grant, "reft interventions grant haiku globex")
    withdraw = add(sub, "withdraw", "take a grant back", _withdraw, "reft interventions withdraw haiku globex")
    for parser in (grants, grant, withdraw):
        parser.add_argument("name", metavar="NAME")
    for parser in (grant, withdraw):
        parser.add_argument("tenant", metavar="TENANT")


def _grants(args: argparse.Namespace, client: ReftClient, terminal: Terminal) -> int:
    answer = client.interventions.grants(args.name)
    if args.json:
        terminal.json(answer)
    else:
        terminal.table(("name", "tenant"), [(one.name, one.tenant) for one in answer.data])
    return 0


def _grant(args: argparse.Namespace, client: ReftClient, terminal: Terminal) -> int:
    answer = client.interventions.grant(args.name, args.tenant)
    terminal.answer(answer, f"{answer.tenant} may use {answer.name}", is_json=args.json)
    terminal.note("the server does not tell whether there is such a tenant: check the name")
    return 0


def _withdraw(args: argparse.Namespace, client: ReftClient, terminal: Terminal) -> int:
    answer = client.interventions.withdraw(args.name, args.tenant)
    terminal.answer(answer, f"{answer.tenant} may no longer use {answer.name}", is_json=args.json)
    return 0
