"""`reft routes ...`: which interventions answer the requests of a task."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from typing import Any

from ..sync_client import ReftClient
from ..types import InterventionRef, RouteInfo, RouteShadow, RouteTarget
from .reference import parse_reference
from .terminal import Terminal, format_time

__all__ = ["add_routes"]

_BASE = "base"
_TARGET = "NAME[@VERSION][*SCALE][+NAME...]"


def add_routes(commands: Any, add: Callable[..., argparse.ArgumentParser]) -> None:
    """Add `reft routes` and its commands; `add` adds one."""
    group = commands.add_parser(
        "routes",
        help="say which interventions answer the requests of a task",
        description="Say which interventions answer the requests of a task.",
    )
    sub = group.add_subparsers(title="commands", metavar="COMMAND", required=True)
    add(sub, "list", "list the routes in force", _list, "reft routes list")
    show = add(sub, "show", "show the route of a task", _show, "reft routes show support")
    put = add(
        sub,
        "set",
        "set the route of a task; the task default also answers those that have none",
        _set,
        "reft routes set support polite@4\n"
        "reft routes set support polite@4=9 'polite@5+brief*0.5=1' --shadow polite@6 --fraction 0.1\n"
        "reft routes set default base",
    )
    revisions = add(sub, "revisions", "list a route's revisions", _revisions, "reft routes revisions support")
    back = add(
        sub,
        "rollback",
        "go back to what was in force before, or to a revision",
        _roll_back,
        "reft routes rollback support\nreft routes rollback support 3",
    )
    delete = add(sub, "delete", "delete a route and its revisions", _delete, "reft routes delete support --yes")
    for parser in (show, put, revisions, back, delete):
        parser.add_argument("task", metavar="TASK")
    put.add_argument(
        "targets",
        nargs="+",
        type=_parse_target,
        metavar=f"{_TARGET}[=WEIGHT]",
        help=f"interventions, applied in order, and their share of the requests (default: 1); {_BASE} = none",
    )
    put.add_argument("--shadow", type=_parse_refs, metavar=_TARGET, help="run it too, and answer nobody with it")
    put.add_argument(
        "--fraction", type=float, default=1.0, metavar="F", help="the share of requests with a shadow (default: 1)"
    )
    put.add_argument("--description", default="", help="what it is for")
    back.add_argument("revision", nargs="?", type=int, metavar="REVISION")
    delete.add_argument("--yes", action="store_true", help="don't ask")


def _list(args: argparse.Namespace, client: ReftClient, terminal: Terminal) -> int:
    answer = client.routes.list()
    if args.json:
        terminal.json(answer)
    elif answer.data:
        _print(answer.data, terminal)
    else:
        terminal.note("there are no routes yet; `reft routes set TASK NAME` makes one")
    return 0


def _show(args: argparse.Namespace, client: ReftClient, terminal: Terminal) -> int:
    return _print_one(client.routes.get(args.task), args, terminal)


def _set(args: argparse.Namespace, client: ReftClient, terminal: Terminal) -> int:
    shadow = None if args.shadow is None else RouteShadow(intervention=args.shadow, fraction=args.fraction)
    answer = client.routes.set(args.task, args.targets, shadow=shadow, description=args.description)
    return _print_one(answer, args, terminal)


def _revisions(args: argparse.Namespace, client: ReftClient, terminal: Terminal) -> int:
    answer = client.routes.revisions(args.task)
    if args.json:
        terminal.json(answer)
    else:
        _print(answer.data, terminal)
    return 0


def _roll_back(args: argparse.Namespace, client: ReftClient, terminal: Terminal) -> int:
    return _print_one(client.routes.rollback(args.task, args.revision), args, terminal)


def _delete(args: argparse.Namespace, client: ReftClient, terminal: Terminal) -> int:
    if not args.yes:
        if not terminal.stdin.isatty():
            args.usage_error("there is no one to ask; add --yes to delete without asking")
        if input(f"Delete the route of {args.task}, and its revisions? [y/N] ").strip().lower() not in ("y", "yes"):
            terminal.note("nothing was deleted")
            return 0
    answer = client.routes.delete(args.task)
    terminal.answer(answer, f"deleted the route of {answer.task}", is_json=args.json)
    return 0


def _parse_refs(text: str) -> list[InterventionRef]:
    return [] if text == _BASE else [parse_reference(part) for part in text.split("+")]


def _parse_target(text: str) -> RouteTarget:
    refs, equals, weight = text.partition("=")
    if equals and not (weight.isascii() and weight.isdigit() and len(weight) < 8):
        raise argparse.ArgumentTypeError(f"{text!r}: {weight!r} is not a weight; write {_TARGET}=9")
    return RouteTarget(intervention=_parse_refs(refs), weight=int(weight) if equals else 1)


def _print_one(route: RouteInfo, args: argparse.Namespace, terminal: Terminal) -> int:
    if args.json:
        terminal.json(route)
    else:
        _print((route,), terminal)
    return 0


def _print(routes: Iterable[RouteInfo], terminal: Terminal) -> None:
    rows = [
        (
            route.task,
            str(route.revision),
            "yes" if route.is_active else "",
            route.tenant,
            " ".join(f"{_refs(target)}={target.weight}" for target in route.targets),
            "" if route.shadow is None else f"{_refs(route.shadow)} ({route.shadow.fraction:g})",
            format_time(route.created),
            route.description,
        )
        for route in routes
    ]
    terminal.table(("task", "revision", "in force", "tenant", "targets", "shadow", "created", "description"), rows)


def _refs(one: RouteTarget | RouteShadow) -> str:
    written = (f"{ref}" if ref.scale == 1 else f"{ref}*{ref.scale:g}" for ref in one.intervention_refs())
    return "+".join(written) or _BASE
