"""`reft bench`'s options on the command line, and their way into `BenchOptions`."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from ..connection import DEFAULT_URL
from ..errors import InvalidArgumentError
from .arrivals import Rate
from .distributions import Distribution
from .mixes import expand_names
from .options import BenchOptions
from .slo import Slo, parse_seconds

__all__ = ["bench_options", "options_from"]

Value = TypeVar("Value")


def _read(parse: Callable[[str], Value]) -> Callable[[str], Value]:
    def read(text: str) -> Value:
        try:
            return parse(text)
        except InvalidArgumentError as error:
            raise argparse.ArgumentTypeError(error.message) from error

    return read


def _pair(name: str, default: int | None = None) -> Callable[[str], tuple[int, int]]:
    def parse(text: str) -> tuple[int, int]:
        first, _, second = text.partition(":")
        try:
            return int(first), int(second) if second or default is None else default
        except ValueError as error:
            raise InvalidArgumentError(f"{text!r} is not {name}") from error

    return _read(parse)


def _warmup(text: str) -> tuple[int, float]:
    """Requests, or seconds with a unit."""
    if text.isdecimal():
        return int(text), 0.0
    return 0, parse_seconds(text)


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise InvalidArgumentError(f"{text!r} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise InvalidArgumentError(f"{text!r} is not a JSON object")
    return value


def _save_path(text: str) -> Path:
    path = Path(text)
    if path.suffix not in (".json", ".csv", ".html"):
        raise InvalidArgumentError(f"{text!r}: the name must end in .json, .csv or .html")
    if not path.parent.is_dir():
        raise InvalidArgumentError(f"{text!r}: there is no folder {path.parent}")
    return path


def bench_options() -> argparse.ArgumentParser:
    """Every option of a run, as a parent of the command's parser."""
    parser = argparse.ArgumentParser(add_help=False)
    _add_load(parser.add_argument_group("load: one of --concurrency, --rate, --sweep and --trace"))
    _add_prompts(parser.add_argument_group("prompts"))
    _add_interventions(parser.add_argument_group("interventions"))
    _add_judgement(parser.add_argument_group("judgement"))
    group = parser.add_argument_group("output")
    group.add_argument(
        "--save",
        type=_read(_save_path),
        action="append",
        default=[],
        metavar="FILE",
        help="write FILE.json (everything), .csv (a row per request) or .html (a page with plots); may be repeated",
    )
    group.add_argument("--quiet", action="store_true", help="no progress while it runs")
    group.add_argument("--json", action="store_true", help="print the summary as JSON instead of tables")
    return parser


def _add_load(group: argparse._ArgumentGroup) -> None:
    distribution = _read(Distribution.parse)
    group.add_argument("--concurrency", type=int, metavar="N", help="closed loop: N users, each waits for its answer")
    group.add_argument("--rate", type=_read(Rate.parse), metavar="R[:R]", help="open loop: requests/s; 1:20 is a ramp")
    group.add_argument(
        "--sweep",
        type=_read(Rate.parse),
        metavar="R:R",
        help="open loop at one rate after the other, to find the highest that meets --slo",
    )
    group.add_argument("--trace", type=Path, metavar="FILE", help="open loop: JSONL rows with their time in `at_s`")
    group.add_argument("--trace-speed", type=float, default=1.0, metavar="X", help="play the trace X times as fast")
    group.add_argument(
        "--arrivals",
        default="poisson",
        metavar="PROCESS",
        help="constant, poisson or gamma:VARIATION; above 1 it comes in bursts (default: poisson)",
    )
    group.add_argument("--requests", type=int, metavar="N", help="end after N requests (sessions, with --turns)")
    group.add_argument("--duration", type=_read(parse_seconds), metavar="S", help="send for S seconds (also 500ms)")
    group.add_argument(
        "--warmup", type=_read(_warmup), default=(0, 0.0), metavar="N|Ts", help="first N requests, or T s, don't count"
    )
    group.add_argument("--think-time", type=distribution, metavar="DIST", help="seconds before a user's next request")
    group.add_argument("--processes", type=int, default=1, metavar="N", help="send from N processes (default: 1)")
    group.add_argument("--seed", type=int, default=0, help="same seed, same requests (default: 0)")


def _add_prompts(group: argparse._ArgumentGroup) -> None:
    distribution = _read(Distribution.parse)
    group.add_argument(
        "--endpoint", choices=("completions", "chat"), default="completions", help="(default: completions)"
    )
    group.add_argument("--prompt-tokens", type=distribution, metavar="DIST", help="length of prompts (default: 128)")
    group.add_argument(
        "--max-tokens",
        type=distribution,
        metavar="DIST",
        help="length of answers (default: 64). DIST is 128, uniform:64:256, normal:128:32 or lognormal:128:0.5",
    )
    group.add_argument(
        "--shared-prefix",
        type=_pair("TOKENS[:GROUPS]", 1),
        metavar="N[:G]",
        help="N more tokens, G kinds of them, first",
    )
    group.add_argument("--turns", type=distribution, metavar="DIST", help="turns of a session (default: 1)")
    group.add_argument("--prompts", type=Path, metavar="FILE", help="JSONL rows: prompt, messages or turns, ...")
    group.add_argument("--distinct-prompts", type=int, metavar="N", help="draw from a pool of N prompts")
    group.add_argument("--token-ids", type=_pair("LOW:HIGH"), metavar="LOW:HIGH", help="send random ids, not a text")
    group.add_argument(
        "--ignore-eos",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="answers go on to --max-tokens (default: yes for synthetic prompts)",
    )
    group.add_argument("--temperature", type=float, default=0.0, metavar="T", help="(default: 0, greedy)")
    group.add_argument(
        "--usage", action=argparse.BooleanOptionalAction, default=True, help="ask for token counts and times"
    )
    group.add_argument("--extra-body", type=_read(_json_object), default={}, metavar="JSON", help="more fields to send")


def _add_interventions(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--model", help="the base model's name (default: the first that the server lists)")
    group.add_argument(
        "--interventions",
        type=_read(expand_names),
        default=(),
        metavar="NAMES",
        help="names to choose from: haiku,pirate or set-{0..63}",
    )
    group.add_argument(
        "--mix",
        metavar="MIX",
        help="none, identical, distinct, uniform, zipf:S, skewed, tenant or task (default: uniform if there are names)",
    )
    group.add_argument(
        "--via",
        choices=("intervention", "model"),
        default="intervention",
        help="the field for it (default: intervention)",
    )
    group.add_argument("--tenants", type=int, default=0, metavar="N", help="send on behalf of N users")
    group.add_argument("--tenant-mix", default="uniform", metavar="MIX", help="how they share (default: uniform)")


def _add_judgement(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--slo", type=_read(Slo.parse), default=Slo(), metavar="BOUNDS", help="ttft:500ms,itl:50ms,e2e:10s"
    )
    group.add_argument(
        "--good-share",
        type=float,
        default=0.99,
        metavar="P",
        help="a --sweep's rate meets them if this share of its requests does (default: 0.99)",
    )
    group.add_argument(
        "--verify", action="store_true", help="run each distinct request alone first and compare every answer with it"
    )


def options_from(args: argparse.Namespace) -> BenchOptions:
    """The run that the arguments describe.

    Raises:
        InvalidArgumentError: they don't fit together.
    """
    given = {
        name: getattr(args, name)
        for name in ("think_time", "turns", "prompt_tokens", "max_tokens")
        if getattr(args, name) is not None
    }
    is_synthetic = args.prompts is None
    same = (
        *("endpoint", "model", "concurrency", "rate", "sweep", "arrivals", "trace", "trace_speed"),
        *("prompts", "distinct_prompts", "shared_prefix", "token_ids", "temperature", "extra_body"),
        *("interventions", "via", "tenants", "tenant_mix", "slo", "good_share", "verify", "processes", "seed"),
    )
    try:
        return BenchOptions(
            url=args.url or os.environ.get("REFT_URL") or DEFAULT_URL,
            timeout_s=args.timeout,
            num_requests=args.requests,
            duration_s=args.duration,
            warmup_requests=args.warmup[0],
            warmup_s=args.warmup[1],
            ignore_eos=is_synthetic if args.ignore_eos is None else args.ignore_eos,
            mix=args.mix or ("uniform" if args.interventions else "none"),
            asks_usage=args.usage,
            **{name: getattr(args, name) for name in same},
            **given,
        )
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        message = first["msg"].removeprefix("Value error, ")
        place = "--" + str(first["loc"][0]).removesuffix("_s").replace("_", "-") if first["loc"] else ""
        raise InvalidArgumentError(f"{place}: {message}" if place else message) from error
