"""`reft models` and `reft health`."""

from __future__ import annotations

import argparse

from ..sync_client import ReftClient
from .terminal import Terminal

__all__ = ["health", "models"]


def models(args: argparse.Namespace, client: ReftClient, terminal: Terminal) -> int:
    """`reft models`."""
    answer = client.models()
    if args.json:
        terminal.json(answer)
    else:
        terminal.table(
            ("id", "kind", "base model"),
            [(card.id, "intervention" if card.parent else "base", card.parent or "") for card in answer.data],
        )
    return 0


def health(args: argparse.Namespace, client: ReftClient, terminal: Terminal) -> int:
    """`reft health`: fails when the server is up but takes no requests."""
    client.health()
    answer = client.ready()
    terminal.answer(answer, f"{client.base_url} is up and takes requests", is_json=args.json)
    return 0
