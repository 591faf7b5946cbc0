"""`reft interventions promote`, `rollback`, `restore`, `describe`, `card`, `test`, `compare` and the like."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import InvalidArgumentError
from ..sync_client import ReftClient
from ..types import Alias, ChatCompletionResponse, CompletionResponse
from .reference import parse_reference
from .terminal import Terminal, format_time

__all__ = ["add_sets"]

Add = Callable[..., argparse.ArgumentParser]


def add_sets(sub: Any, add: Add) -> None:
    """Add the commands to those of `reft interventions`; `add` adds one."""
    _add_aliases(sub, add)
    restore = add(
        sub,
        "restore",
        "bring back what was deleted",
        _restore,
        "reft interventions restore haiku\nreft interventions restore haiku@2",
    )
    test = add(sub, "test", "run the self-test again", _test, "reft interventions test haiku@2")
    for parser in (restore, test):
        parser.add_argument("name", metavar="NAME[@VERSION]")
    describe = add(
        sub,
        "describe",
        "change the description and the labels",
        _describe,
        "reft interventions describe haiku --description 'Answers in haiku' --label task=style --label draft-",
    )
    describe.add_argument("name", metavar="NAME")
    describe.add_argument("--description", metavar="TEXT", help="empty = none")
    describe.add_argument(
        "--label", action="append", default=[], metavar="KEY[=VALUE]", help="set a label; KEY- takes it away"
    )
    card = add(
        sub,
        "card",
        "show or write the model card",
        _card,
        "reft interventions card haiku\nreft interventions card haiku --write card.md",
    )
    card.add_argument("name", metavar="NAME")
    card.add_argument("--write", type=Path, metavar="FILE", help="make this markdown file the card")
    compare = add(
        sub,
        "compare",
        "the base model's answer beside the edited one",
        _compare,
        "reft interventions compare haiku 'Tell me about the sea.' --max-tokens 64\n"
        "reft interventions compare haiku@3 'Tell me about the sea.' --against haiku@2 --chat",
    )
    compare.add_argument("name", metavar="NAME[@VERSION]")
    compare.add_argument("prompt", metavar="PROMPT")
    compare.add_argument("--chat", action="store_true", help="the prompt is a user's message")
    compare.add_argument("--against", metavar="NAME[@VERSION]", help="(default: the base model)")
    compare.add_argument("--max-tokens", type=int, default=64, metavar="N", help="(default: 64)")
    compare.add_argument("--temperature", type=float, default=0.0, metavar="T", help="(default: 0)")
    compare.add_argument("--seed", type=int, default=0, metavar="N", help="of both sides (default: 0)")


def _add_aliases(sub: Any, add: Add) -> None:
    aliases = add(sub, "aliases", "list the aliases of a set", _aliases, "reft interventions aliases haiku")
    promote = add(
        sub,
        "promote",
        "let an alias name a version",
        _promote,
        "reft interventions promote haiku@3 prod\nreft interventions promote haiku@staging prod",
    )
    rollback = add(
        sub,
        "rollback",
        "let an alias name what it named before",
        _rollback,
        "reft interventions rollback haiku prod",
    )
    unalias = add(sub, "unalias", "forget an alias", _unalias, "reft interventions unalias haiku staging")
    promote.add_argument("name", metavar="NAME@VERSION")
    for parser in (aliases, rollback, unalias):
        parser.add_argument("name", metavar="NAME")
    for parser in (promote, rollback, unalias):
        parser.add_argument("alias", metavar="ALIAS")


def _aliases(args: argparse.Namespace, client: ReftClient, terminal: Terminal) -> int:
    answer = client.interventions.aliases(args.name)
    if args.json:
        terminal.json(answer)
    else:
        rows = [(one.alias, str(one.version), one.content_hash or "deleted") for one in answer.data]
        terminal.table(("alias", "version", "content hash"), rows)
    return 0


def _promote(args: argparse.Namespace, client: ReftClient, terminal: Terminal) -> int:
    reference = parse_reference(args.name)
    if reference.version is None:
        raise InvalidArgumentError("say which version: NAME@3, NAME@sha256:..., or another alias: NAME@staging")
    return _show_alias(args, client.interventions.promote(reference.name, args.alias, reference.version), terminal)


def _rollback(args: argparse.Namespace, client: ReftClient, terminal: Terminal) -> int:
    return _show_alias(args, client.interventions.rollback(args.name, args.alias), terminal)


def _show_alias(args: argparse.Namespace, answer: Alias, terminal: Terminal) -> int:
    before = "" if answer.previous is None else f", which was version {answer.previous}"
    text = f"{answer.name}@{answer.alias} is version {answer.version}{before}"
    terminal.answer(answer, text, is_json=args.json)
    return 0


def _unalias(args: argparse.Namespace, client: ReftClient, terminal: Terminal) -> int:
    answer = client.interventions.delete_alias(args.name, args.alias)
    terminal.answer(answer, f"{answer.name} has no alias {answer.alias} any more", is_json=args.json)
    return 0


def _restore(args: argparse.Namespace, client: ReftClient, terminal: Terminal) -> int:
    answer = client.interventions.restore(args.name)
    if args.json:
        terminal.json(answer)
    else:
        for info in answer.data:
            terminal.line(f"restored {info.name}@{info.version} of {format_time(info.created)} UTC")
    return 0


def _describe(args: argparse.Namespace, client: ReftClient, terminal: Terminal) -> int:
    labels: dict[str, str | None] = {}
    for text in args.label:
        key, equals, value = text.partition("=")
        if not equals and key.endswith("-"):
            labels[key[:-1]] = None
        else:
            labels[key] = value
    if args.description is None and not labels:
        args.usage_error("nothing to change: give --description or --label")
    info = client.interventions.describe(args.name, description=args.description, labels=labels or None)
    if args.json:
        terminal.json(info)
    else:
        rows = [("description", info.description), *sorted(info.labels.items())]
        terminal.table(("field", "value"), [row for row in rows if row[1] or row[0] != "description"])
    return 0


def _card(args: argparse.Namespace, client: ReftClient, terminal: Terminal) -> int:
    if args.write is None:
        terminal.line(client.interventions.card(args.name).rstrip("\n"))
        return 0
    try:
        text = args.write.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgumentError(f"can't read {args.write}: {error}") from error
    info = client.interventions.set_card(args.name, text)
    terminal.answer(info, f"wrote the card of {info.name}", is_json=args.json)
    return 0


def _test(args: argparse.Namespace, client: ReftClient, terminal: Terminal) -> int:
    answer = client.interventions.test(args.name)
    if args.json:
        terminal.json(answer)
        return 0
    terminal.line(f"{answer.name}@{answer.version} passed")
    rows = [
        (str(site.layer), site.component, str(site.num_edited_rows), f"{site.delta_norm:.3g}")
        for site in answer.self_test.sites
    ]
    terminal.table(("layer", "component", "rows edited", "change"), rows)
    return 0


def _compare(args: argparse.Namespace, client: ReftClient, terminal: Terminal) -> int:
    asked: dict[str, Any] = {"messages": args.prompt} if args.chat else {"prompt": args.prompt}
    answer = client.interventions.compare(
        args.name,
        **asked,
        against=args.against,
        max_tokens=args.max_tokens,
        temperature=args.temperature,
        seed=args.seed,
    )
    if args.json:
        terminal.json(answer)
        return 0
    sides = ((args.against or "base model", answer.base), (f"{answer.name}@{answer.version}", answer.edited))
    terminal.table(("answers", "text"), [(name, _text(side)) for name, side in sides])
    return 0


def _text(answer: CompletionResponse | ChatCompletionResponse) -> str:
    if isinstance(answer, CompletionResponse):
        return answer.choices[0].text
    return answer.choices[0].message.content or ""
