"""How many streamed tokens does `reft bench` take per second and core?

Question: tokens/s that one process of the load tester reads, each in an event of its own, and their number per second
of its CPU time, parsing and timing included. Baseline: none; the goal is 2,000 tokens/s per core.
Ceiling: what the mock server sends on another core if nobody is slow, streams divided by the interval of tokens.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from typing import Any

import httpx

from benchmarks.figures import spread, write_result
from benchmarks.machine import describe

PORT = 8997
INTERVAL_MS = 5
NUM_TOKENS = 200
STREAMS = (16, 64)


def run_bench(num_streams: int, num_requests: int) -> dict[str, Any]:
    """One run of the load tester against the mock server."""
    command = [
        *(sys.executable, "-c", "import sys; from reft_client.cli import main; sys.exit(main())"),
        *("bench", "--url", f"http://127.0.0.1:{PORT}", "--concurrency", str(num_streams), "--json", "--quiet"),
        *("--requests", str(num_requests), "--max-tokens", str(NUM_TOKENS), "--prompt-tokens", "32"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def measure(num_streams: int, num_rounds: int) -> dict[str, Any]:
    """Medians over the rounds."""
    documents = [run_bench(num_streams, 8 * num_streams) for _ in range(num_rounds)]
    rates = [document["summary"]["output_tokens_per_s"] for document in documents]
    shares = [document["client"]["cpu_share"] for document in documents]
    return {
        "ceiling_tokens_per_s": num_streams * 1000 / INTERVAL_MS,
        "tokens_per_s": spread(rates, 0),
        "cpu_share": spread(shares),
        "tokens_per_cpu_s": spread([rate / share for rate, share in zip(rates, shares, strict=True)], 0),
        "event_loop_lag_p99_ms": spread([1e3 * item["client"]["event_loop_lag_s"]["p99"] for item in documents], 1),
        "num_warned": sum(document["client"]["is_bottleneck"] for document in documents),
    }


def main() -> None:
    """Measure and keep the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    command = [sys.executable, "-m", "benchmarks.stream_server", "--port", str(PORT), "--interval-ms", str(INTERVAL_MS)]
    with subprocess.Popen(command) as server:
        try:
            _wait_until_ready(time.monotonic() + 20)
            runs = {str(num_streams): measure(num_streams, args.rounds) for num_streams in STREAMS}
        finally:
            server.kill()
    job = {"interval_ms": INTERVAL_MS, "num_tokens": NUM_TOKENS, "rounds": args.rounds}
    write_result("load-tester", {"machine": describe(), "job": job, "streams": runs})


def _wait_until_ready(deadline: float) -> None:
    while True:
        try:
            httpx.get(f"http://127.0.0.1:{PORT}/v1/models", timeout=1)
        except httpx.HTTPError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return


if __name__ == "__main__":
    main()
