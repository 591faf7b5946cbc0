"""From the records of a run to its figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from .records import RequestRecord
from .slo import Slo
from .statistics import Spread, percentile

__all__ = ["group_by", "latency_cdfs", "summarize", "time_series", "window_of"]

NUM_BUCKETS = 60
BASE_MODEL = "(base model)"


def window_of(records: Sequence[RequestRecord]) -> tuple[float, float]:
    """From the moment when the first request was due until the last was over, in seconds after the start."""
    if not records:
        return 0.0, 0.0
    return min(record.intended_s for record in records), max(record.end_s for record in records)


def summarize(records: Sequence[RequestRecord], slo: Slo, window: tuple[float, float] | None = None) -> dict[str, Any]:
    """Every figure of these records; failed requests count for errors and goodput only.

    Args:
        window: what rates divide by; None = the records' own.
    """
    start_s, end_s = window or window_of(records)
    duration_s = max(end_s - start_s, 1e-9)
    answered = [record for record in records if record.error is None]
    told = _known(record.prompt_tokens for record in answered)
    input_tokens = sum(told) if told or not answered else None  # None = the server does not say
    output_tokens = sum(record.completion_tokens for record in answered)
    num_good = sum(slo.is_met_by(record) for record in records)
    failed = [record for record in records if record.error is not None]
    return {
        "num_requests": len(records),
        "num_failed": len(failed),
        "errors": dict(Counter(str(record.error) for record in failed).most_common()),
        "error_messages": {str(record.error): record.error_message for record in reversed(failed)},
        "duration_s": round(end_s - start_s, 6),
        "requests_per_s": round(len(answered) / duration_s, 4),
        "input_tokens": input_tokens,
        "cached_tokens": sum(record.cached_tokens or 0 for record in answered),
        "output_tokens": output_tokens,
        "input_tokens_per_s": None if input_tokens is None else round(input_tokens / duration_s, 3),
        "output_tokens_per_s": round(output_tokens / duration_s, 3),
        "are_tokens_approximate": any(record.is_approximate for record in answered),
        "ttft_s": Spread.of(_known(record.ttft_s for record in answered)).to_json(),
        "itl_s": Spread.of(gap for record in answered for gap in record.gaps_s).to_json(),
        "tpot_s": Spread.of(_known(record.tpot_s for record in answered)).to_json(),
        "e2e_s": Spread.of(record.e2e_s for record in answered).to_json(),
        "queue_s": Spread.of(_known(record.queue_s for record in answered)).to_json(),
        "num_good": num_good,
        "good_share": round(num_good / len(records), 6) if records else 0.0,
        "goodput_requests_per_s": round(num_good / duration_s, 4),
    }


def group_by(
    records: Sequence[RequestRecord], key: Callable[[RequestRecord], str | None], slo: Slo, nobody: str
) -> dict[str, Any]:
    """`summarize` of each group, its rates over the whole run; empty where there is one nameless group only.

    Args:
        nobody: stands for the key None.
    """
    groups: dict[str | None, list[RequestRecord]] = {}
    for record in records:
        groups.setdefault(key(record), []).append(record)
    if set(groups) <= {None}:
        return {}
    window = window_of(records)
    names = sorted(groups, key=lambda name: (name is not None, name or ""))
    return {nobody if name is None else name: summarize(groups[name], slo, window) for name in names}


def latency_cdfs(records: Sequence[RequestRecord]) -> dict[str, list[float]]:
    """Percentiles 0 to 100 of each latency, in seconds; a latency that nobody has is left out."""
    answered = [record for record in records if record.error is None]
    values = {
        "ttft_s": sorted(_known(record.ttft_s for record in answered)),
        "itl_s": sorted(gap for record in answered for gap in record.gaps_s),
        "tpot_s": sorted(_known(record.tpot_s for record in answered)),
        "e2e_s": sorted(record.e2e_s for record in answered),
    }
    return {
        name: [round(percentile(ordered, percent), 6) for percent in range(101)]
        for name, ordered in values.items()
        if ordered
    }


def time_series(records: Sequence[RequestRecord]) -> dict[str, Any]:
    """The run in equal slices: TTFT by when requests were due, tokens by when they came, answers by their end."""
    start_s, end_s = window_of(records)
    width_s = max(end_s - start_s, 1e-9) / NUM_BUCKETS
    tokens = [0.0] * NUM_BUCKETS
    due, finished, failed = ([0] * NUM_BUCKETS for _ in range(3))
    ttfts: list[list[float]] = [[] for _ in range(NUM_BUCKETS)]

    def bucket(moment_s: float) -> int:
        return min(NUM_BUCKETS - 1, max(0, int((moment_s - start_s) / width_s)))

    for record in records:
        due[bucket(record.intended_s)] += 1
        (finished if record.error is None else failed)[bucket(record.end_s)] += 1
        if record.first_s is None or record.error is not None:
            continue
        ttfts[bucket(record.intended_s)].append(record.first_s - record.intended_s)
        tokens_per_piece = record.completion_tokens / (len(record.gaps_s) + 1)
        moment_s = record.first_s
        tokens[bucket(moment_s)] += tokens_per_piece
        for gap in record.gaps_s:
            moment_s += gap
            tokens[bucket(moment_s)] += tokens_per_piece
    return {
        "slice_s": round(width_s, 6),
        "output_tokens_per_s": [round(count / width_s, 3) for count in tokens],
        "due_per_s": [round(count / width_s, 4) for count in due],
        "requests_per_s": [round(count / width_s, 4) for count in finished],
        "failed_per_s": [round(count / width_s, 4) for count in failed],
        "ttft_p50_s": [_round(values, 50) for values in ttfts],
        "ttft_p99_s": [_round(values, 99) for values in ttfts],
    }


def _round(values: list[float], percent: float) -> float | None:
    return round(percentile(sorted(values), percent), 6) if values else None


def _known(values: Any) -> list[float]:
    return [value for value in values if value is not None]
