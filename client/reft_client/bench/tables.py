"""A run's figures as tables for people; tab-separated rows where the output is no terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..cli.terminal import Terminal

__all__ = ["format_s", "print_result"]

LATENCIES = (
    ("TTFT", "ttft_s"),
    ("ITL", "itl_s"),
    ("TPOT", "tpot_s"),
    ("E2E", "e2e_s"),
    ("queue", "queue_s"),
)
MAX_GROUPS = 20
MAX_MISMATCHES = 5
MAX_TEXT = 200


def format_s(seconds: float) -> str:
    """Seconds for people: three digits, in ms below one second."""
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def print_result(document: dict[str, Any], terminal: Terminal) -> None:
    """Write every table of a run."""
    summary = document["summary"]
    terminal.table(("figure", "value"), _figures(summary))
    terminal.line()
    rows = [(name, *_spread(summary[key])) for name, key in LATENCIES if summary[key]["count"]]
    terminal.table(("latency", "mean", "p50", "p90", "p99", "max"), rows)
    for title, key in (("intervention", "interventions"), ("tenant", "tenants")):
        if document[key]:
            terminal.line()
            _print_groups(title, document[key], terminal)
    if summary["errors"]:
        terminal.line()
        messages = summary["error_messages"]
        rows = [(name, str(count), messages[name]) for name, count in summary["errors"].items()]
        terminal.table(("error", "requests", "first message"), rows)
    if document["verification"] is not None:
        terminal.line()
        _print_verification(document["verification"], terminal)
    _print_client(document["client"], terminal)


def _figures(summary: dict[str, Any]) -> list[tuple[str, str]]:
    mark = "about " if summary["are_tokens_approximate"] else ""
    return [
        ("requests", f"{summary['num_requests']} in {format_s(summary['duration_s'])}"),
        ("failed", str(summary["num_failed"])),
        ("requests/s", f"{summary['requests_per_s']:.3g}"),
        ("input tokens/s", f"{summary['input_tokens_per_s']:.1f}"),
        ("output tokens/s", f"{mark}{summary['output_tokens_per_s']:.1f}"),
        ("input tokens", f"{summary['input_tokens']}, {summary['cached_tokens']} from the cache"),
        ("output tokens", f"{mark}{summary['output_tokens']}"),
        ("goodput", f"{summary['goodput_requests_per_s']:.3g} requests/s, {summary['good_share']:.1%} of them good"),
    ]


def _spread(spread: dict[str, float]) -> tuple[str, ...]:
    return tuple(format_s(spread[name]) for name in ("mean", "p50", "p90", "p99", "max"))


def _print_groups(title: str, groups: dict[str, Any], terminal: Terminal) -> None:
    """The groups with most requests first."""
    ordered = sorted(groups.items(), key=lambda item: -item[1]["num_requests"])
    rows = [
        (
            name,
            str(group["num_requests"]),
            str(group["num_failed"]),
            f"{group['output_tokens_per_s']:.1f}",
            *(format_s(group[key][which]) for key in ("ttft_s", "tpot_s", "e2e_s") for which in ("p50", "p99")),
            f"{group['good_share']:.1%}",
        )
        for name, group in ordered[:MAX_GROUPS]
    ]
    header = ("requests", "failed", "tokens/s", "TTFT p50", "p99", "TPOT p50", "p99", "E2E p50", "p99", "good")
    terminal.table((title, *header), rows)
    if len(ordered) > MAX_GROUPS:
        terminal.line(f"and {len(ordered) - MAX_GROUPS} more (--save FILE.json has them all)")


def _print_verification(verification: dict[str, Any], terminal: Terminal) -> None:
    count = verification["num_mismatches"]
    terminal.line(
        f"verified: {verification['num_compared']} answers against {verification['num_references']} references, "
        f"{count or 'no'} mismatch{'' if count == 1 else 'es'}"
    )
    for item in verification["mismatches"][:MAX_MISMATCHES]:
        said = "" if item["answered_by"] is None else f", answered by {item['answered_by'] or 'the base model'}"
        terminal.line(f"  request {item['index']} for {item['intervention'] or 'the base model'}{said}")
        terminal.line(f"    alone:      {item['expected'][:MAX_TEXT]!r}")
        terminal.line(f"    under load: {item['actual'][:MAX_TEXT]!r}")


def _print_client(client: dict[str, Any], terminal: Terminal) -> None:
    lag = client["event_loop_lag_s"]["p99"]
    terminal.note(f"load tester: {client['cpu_share']:.0%} of a core, event loop lag {format_s(lag)} (p99)")
    for warning in client["warnings"]:
        terminal.note(f"warning: {warning}: these figures may be the load tester's own; try --processes")


def compare_rows(rows: Sequence[Sequence[str]], terminal: Terminal) -> None:
    """Write the table of a comparison."""
    terminal.table(("figure", "first", "second", "second/first", "95 % interval"), rows)
