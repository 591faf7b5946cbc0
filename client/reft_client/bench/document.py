"""The result of a run as one JSON document: what is saved, shown and compared."""

from __future__ import annotations

import csv
import json
import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..errors import InvalidArgumentError
from .monitor import client_report
from .options import BenchOptions
from .page import render_page
from .records import RequestRecord
from .summary import BASE_MODEL, group_by, latency_cdfs, summarize, time_series
from .verification import Verification
from .worker import Outcome

__all__ = ["COLUMNS", "FORMAT", "build_document", "read_document", "request_columns", "save"]

FORMAT = "reft-bench/1"
COLUMNS = (
    *("index", "turn", "intervention", "tenant", "intended_s", "sent_s", "ttft_s", "tpot_s", "e2e_s", "max_itl_s"),
    *("queue_s", "prompt_tokens", "cached_tokens", "completion_tokens", "finish_reason", "error"),
)


def build_document(options: BenchOptions, outcome: Outcome, verification: Verification | None) -> dict[str, Any]:
    """Every figure of a run; requests of the warm-up are left out of all but the verification."""
    records = [record for record in outcome.records if not record.is_warmup]
    return {
        "format": FORMAT,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": _machine(),
        "options": options.model_dump(mode="json"),
        "is_interrupted": outcome.is_interrupted,
        "summary": summarize(records, options.slo),
        "interventions": group_by(records, lambda record: record.intervention, options.slo, BASE_MODEL),
        "tenants": group_by(records, lambda record: record.tenant, options.slo, "(nobody)"),
        "client": client_report(outcome.healths, records),
        "verification": None if verification is None else verification.to_json(),
        "sweep": None,
        "cdfs": latency_cdfs(records),
        "series": time_series(records),
        "requests": request_columns(records),
    }


def request_columns(records: Sequence[RequestRecord]) -> dict[str, list[Any]]:
    """One list per column, one item per request; times in seconds."""
    return {name: [_cell(record, name) for record in records] for name in COLUMNS}


def read_document(path: Path) -> dict[str, Any]:
    """Read a saved result.

    Raises:
        InvalidArgumentError: it can't be read, or is no result of `reft bench`.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidArgumentError(f"can't read {path}: {error}") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise InvalidArgumentError(f"{path} is no result of `reft bench --save FILE.json` in the format {FORMAT}")
    return document


def save(document: dict[str, Any], path: Path) -> None:
    """Write a document as its name's suffix says: `.json` everything, `.csv` a row per request, `.html` a page.

    Raises:
        OSError: it can't be written.
    """
    if path.suffix == ".json":
        path.write_text(json.dumps(document, separators=(",", ":")) + "\n", encoding="utf-8")
    elif path.suffix == ".html":
        path.write_text(render_page(document), encoding="utf-8")
    else:
        columns = document["requests"]
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(zip(*columns.values(), strict=True))


def _machine() -> dict[str, Any]:
    try:
        own = version("reft-serve")
    except PackageNotFoundError:
        own = "unknown"
    return {
        "system": platform.system(),
        "processor": platform.machine(),
        "num_cores": os.cpu_count(),
        "python": platform.python_version(),
        "reft-serve": own,
    }


def _cell(record: RequestRecord, name: str) -> Any:
    value = max(record.gaps_s, default=None) if name == "max_itl_s" else getattr(record, name)
    return round(value, 6) if isinstance(value, float) else value
