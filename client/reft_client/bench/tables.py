"""A run's figures as tables: of text for the terminal, of HTML for the page."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..cli.terminal import Terminal

__all__ = ["Table", "format_s", "mismatch_lines", "print_result", "sweep_verdict", "tables_of", "verdict"]

LATENCIES = (
    ("TTFT", "ttft_s"),
    ("ITL", "itl_s"),
    ("TPOT", "tpot_s"),
    ("E2E", "e2e_s"),
    ("queue", "queue_s"),
)
SPREAD = ("mean", "p50", "p90", "p99", "max")
MAX_GROUPS = 20
MAX_MISMATCHES = 5
MAX_TEXT = 200


@dataclass(frozen=True)
class Table:
    """The first column is text, the others are figures."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def format_s(seconds: float) -> str:
    """Seconds for people: three digits, in ms below one second."""
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def tables_of(document: dict[str, Any]) -> Iterator[Table]:
    """Every table of a run that has something to say."""
    summary = document["summary"]
    if document["sweep"] is not None:
        yield _sweep(document["sweep"])
    yield Table(("figure", "value"), tuple(_figures(summary)))
    latencies = tuple(
        (name, *(format_s(summary[key][which]) for which in SPREAD)) for name, key in LATENCIES if summary[key]["count"]
    )
    yield Table(("latency", *SPREAD), latencies)
    for title, key in (("intervention", "interventions"), ("tenant", "tenants")):
        if document[key]:
            yield _groups(title, document[key])
    if summary["errors"]:
        messages = summary["error_messages"]
        rows = tuple((name, str(count), messages[name]) for name, count in summary["errors"].items())
        yield Table(("error", "requests", "first message"), rows)


def _figures(summary: dict[str, Any]) -> list[tuple[str, str]]:
    mark = "about " if summary["are_tokens_approximate"] else ""
    inputs = [("input tokens", "the server does not say")]
    if summary["input_tokens"] is not None:
        inputs = [
            ("input tokens/s", f"{summary['input_tokens_per_s']:.1f}"),
            ("input tokens", f"{summary['input_tokens']}, {summary['cached_tokens']} from the cache"),
        ]
    return [
        ("requests", f"{summary['num_requests']} in {format_s(summary['duration_s'])}"),
        ("failed", str(summary["num_failed"])),
        ("requests/s", f"{summary['requests_per_s']:.3g}"),
        ("output tokens/s", f"{mark}{summary['output_tokens_per_s']:.1f}"),
        *inputs,
        ("output tokens", f"{mark}{summary['output_tokens']}"),
        ("goodput", f"{summary['goodput_requests_per_s']:.3g} requests/s, {summary['good_share']:.1%} of them good"),
    ]


def _groups(title: str, groups: dict[str, Any]) -> Table:
    """The groups with most requests first."""
    ordered = sorted(groups.items(), key=lambda item: -item[1]["num_requests"])
    header = ("requests", "failed", "tokens/s", "TTFT p50", "p99", "TPOT p50", "p99", "E2E p50", "p99", "good")
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
    if len(ordered) > MAX_GROUPS:
        rows.append((f"and {len(ordered) - MAX_GROUPS} more", *[""] * len(header)))
    return Table((title, *header), tuple(rows))


def _sweep(sweep: dict[str, Any]) -> Table:
    header = ("rate", "answered/s", "tokens/s", "TTFT p50", "p99", "TPOT p50", "p99", "E2E p50", "p99", "good", "met")
    rows = tuple(
        (
            f"{point['rate']:.3g}",
            f"{point['requests_per_s']:.3g}",
            f"{point['output_tokens_per_s']:.1f}",
            *(format_s(point[key][which]) for key in ("ttft_s", "tpot_s", "e2e_s") for which in ("p50", "p99")),
            f"{point['good_share']:.1%}",
            "yes" if point["is_met"] else "no",
        )
        for point in sweep["points"]
    )
    return Table(header, rows)


def sweep_verdict(sweep: dict[str, Any]) -> str:
    """The sweep in a sentence."""
    if sweep["best_rate"] is None:
        return "no rate met the objectives"
    if all(point["is_met"] for point in sweep["points"]):
        return f"every rate up to {sweep['best_rate']:.3g} requests/s met the objectives: sweep to a higher one"
    return f"highest rate that met the objectives: {sweep['best_rate']:.3g} requests/s; its figures are above"


def verdict(verification: dict[str, Any]) -> str:
    """The verification in a sentence."""
    count = verification["num_mismatches"]
    return (
        f"verified: {verification['num_compared']} answers against {verification['num_references']} references, "
        f"{count or 'no'} mismatch{'' if count == 1 else 'es'}"
    )


def mismatch_lines(item: dict[str, Any], max_text: int) -> tuple[str, str, str]:
    """Which request, what it should have got, and what it got."""
    said = "" if item["answered_by"] is None else f", answered by {item['answered_by'] or 'the base model'}"
    return (
        f"request {item['index']} for {item['intervention'] or 'the base model'}{said}",
        f"alone:      {item['expected'][:max_text]!r}",
        f"under load: {item['actual'][:max_text]!r}",
    )


def print_result(document: dict[str, Any], terminal: Terminal) -> None:
    """Write every table of a run, the conclusions, and what the load tester thinks of itself."""
    for table in tables_of(document):
        terminal.table(table.header, table.rows)
        terminal.line()
    if document["sweep"] is not None:
        terminal.line(sweep_verdict(document["sweep"]))
    if document["verification"] is not None:
        _print_verification(document["verification"], terminal)
    client = document["client"]
    lag = client["event_loop_lag_s"]["p99"]
    terminal.note(f"load tester: {client['cpu_share']:.0%} of a core, event loop lag {format_s(lag)} (p99)")
    for warning in client["warnings"]:
        terminal.note(f"warning: {warning}: these figures may be the load tester's own; try --processes")


def _print_verification(verification: dict[str, Any], terminal: Terminal) -> None:
    terminal.line(verdict(verification))
    for item in verification["mismatches"][:MAX_MISMATCHES]:
        request, *texts = mismatch_lines(item, MAX_TEXT)
        terminal.line(f"  {request}")
        for text in texts:
            terminal.line(f"    {text}")
