"""The commands and their options."""

from __future__ import annotations

import argparse
import math
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..bench.arguments import bench_options
from ..connection import DEFAULT_URL
from . import generation, server_state
from .admin import add_admin
from .grants import add_grants
from .interventions import add_interventions
from .plugins import add_plugins
from .reference import OfIntervention, parse_reference, parse_subspaces
from .routes import add_routes
from .sets import add_sets
from .terminal import Terminal

__all__ = ["build_parser"]

_ENVIRONMENT = f"""\
environment:
  REFT_URL       the server (default {DEFAULT_URL})
  REFT_API_KEY   the key to send, if the server wants one

exit codes: 0 done, 1 the server said no or can't be reached, 2 wrong usage, 130 interrupted, 141 broken pipe
"""


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from error
    if not (value > 0 and math.isfinite(value)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of seconds")
    return value


def _server_options(*, is_leaf: bool) -> argparse.ArgumentParser:
    # The same options before and after the command: a leaf must not reset what was given before it.
    default: Any = argparse.SUPPRESS if is_leaf else None
    parser = argparse.ArgumentParser(add_help=False)
    group = parser.add_argument_group("server")
    group.add_argument("--url", default=default, metavar="URL", help="the server's address (default: REFT_URL)")
    group.add_argument(
        "--timeout",
        type=_positive,
        default=argparse.SUPPRESS if is_leaf else 600.0,
        metavar="S",
        help="give up after S seconds of silence (default: 600)",
    )
    return parser


def _sampling_options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument(
        "-i",
        "--intervention",
        type=parse_reference,
        action="append",
        metavar="NAME[@VERSION][*SCALE]",
        help="apply it; repeat to apply several, in this order",
    )
    parser.add_argument(
        "--source",
        action=OfIntervention,
        default=argparse.SUPPRESS,
        metavar="TEXT",
        help="the source prompt of the -i before it, for an interchange",
    )
    parser.add_argument(
        "--subspaces",
        type=parse_subspaces,
        action=OfIntervention,
        default=argparse.SUPPRESS,
        metavar="D,D,...",
        help="only these rank dimensions of the -i before it act: numbers, or names that the set gives",
    )
    group = parser.add_argument_group("generation")
    group.add_argument("--model", help="the base model or an intervention (default: the base model)")
    group.add_argument("--task", help="let the route of a task choose the interventions")
    group.add_argument("--routing-key", metavar="KEY", help="with --task: the same key gets the same interventions")
    group.add_argument("--max-tokens", type=int, metavar="N", help="stop after N tokens")
    group.add_argument("--temperature", type=float, metavar="T", help="0 is greedy (default: 1)")
    group.add_argument("--top-p", type=float, metavar="P", help="sample among the likeliest tokens that reach P")
    group.add_argument("--top-k", type=int, metavar="K", help="sample among the K likeliest tokens")
    group.add_argument("--seed", type=int, help="make sampling repeatable")
    group.add_argument("--stop", action="append", metavar="TEXT", help="end before TEXT; may be repeated")
    group.add_argument(
        "--stream",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="print the answer as it comes (default: yes, unless --json)",
    )
    group.add_argument("--json", action="store_true", help="print the server's JSON; with --stream one chunk a line")
    return parser


def build_parser() -> argparse.ArgumentParser:
    """The parser; the chosen command's function is in `run`."""
    parser = argparse.ArgumentParser(
        prog="reft",
        description="Talk to a reft-serve server: one base model, an intervention of your choice in every request.",
        epilog=f"""\
examples:
  reft complete "The capital of France is" --max-tokens 8 --temperature 0
  reft chat -i haiku "Tell me about the sea"
  reft interventions upload haiku.safetensors

{_ENVIRONMENT}""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[_server_options(is_leaf=False)],
    )
    parser.add_argument("--version", action="version", version=f"reft {version('reft-serve')}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_generation(commands)
    _add_interventions(commands)
    add_routes(commands, _add)
    add_admin(commands, _add)
    _add(commands, "models", "list the models that a request may name", server_state.models, "reft models --json")
    add_plugins(commands)
    _add_bench(commands)
    _add(commands, "health", "say whether the server is up and takes requests", server_state.health, "reft health")
    return parser


def _add(
    commands: Any, name: str, summary: str, run: Any, examples: str, *parents: argparse.ArgumentParser
) -> argparse.ArgumentParser:
    """Add a command. `examples` is one command a line."""
    lines = "\n".join(f"  {line}" for line in examples.splitlines())
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=f"examples:\n{lines}\n\n{_ENVIRONMENT}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[_server_options(is_leaf=True), *parents],
    )
    parser.set_defaults(run=run, usage_error=parser.error)
    if not parents:
        parser.add_argument("--json", action="store_true", help="print the server's JSON")
    return parser


def _add_generation(commands: Any) -> None:
    sampling = _sampling_options()
    complete = _add(
        commands,
        "complete",
        "continue a prompt",
        generation.complete,
        'reft complete "Once upon a time" --max-tokens 64\n'
        "reft complete \"Once upon a time\" -i 'pirate@2*0.5' -i haiku --seed 1\n"
        'reft complete "A ticket costs 8 dollars" -i price --source "A ticket costs 2 dollars" --subspaces 0,1\n'
        "cat prompt.txt | reft complete - --temperature 0 --json",
        sampling,
    )
    complete.add_argument("prompt", nargs="?", help="the text to continue; - or nothing reads standard input")
    chat = _add(
        commands,
        "chat",
        "talk with the model, one message or many",
        generation.chat,
        'reft chat "Who are you?"\nreft chat -i pirate --system "Answer in one sentence."',
        sampling,
    )
    chat.add_argument("message", nargs="?", help="one message to answer; without it a conversation starts")
    chat.add_argument("--system", metavar="TEXT", help="the system message")


def _add_interventions(commands: Any) -> None:
    group = commands.add_parser(
        "interventions",
        help="list, upload, show, download and delete intervention sets",
        description="List, upload, show, download and delete intervention sets.",
    )
    sub = group.add_subparsers(title="commands", metavar="COMMAND", required=True)
    add_interventions(sub, _add)
    add_grants(sub, _add)
    add_sets(sub, _add)


def _add_bench(commands: Any) -> None:
    bench = _add(
        commands,
        "bench",
        "send load to a server, measure it, and check its answers",
        _run_bench,
        "reft bench --concurrency 8 --requests 200\n"
        "reft bench --rate 5 --duration 60 --interventions 'set-{0..63}' --mix zipf:1.1 --slo ttft:500ms,itl:50ms\n"
        "reft bench --concurrency 16 --requests 1000 --interventions haiku,pirate --distinct-prompts 20 --verify",
        bench_options(),
    )
    sub = bench.add_subparsers(title="commands", metavar="COMMAND")
    compare = _add(
        sub, "compare", "compare two saved results", _run_compare, "reft bench compare before.json after.json"
    )
    compare.add_argument("first", type=Path)
    compare.add_argument("second", type=Path)


# Only these commands need the load tester: it is imported when they run.
def _run_bench(args: argparse.Namespace, _: object, terminal: Terminal) -> int:
    from ..bench.command import run_bench

    return run_bench(args, terminal)


def _run_compare(args: argparse.Namespace, _: object, terminal: Terminal) -> int:
    from ..bench.command import run_compare

    return run_compare(args, terminal)
