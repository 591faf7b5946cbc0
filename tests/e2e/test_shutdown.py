"""SIGTERM while requests run: they finish, or end with a typed error, new ones are refused, and the status is 0."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx

LONG = {"prompt": "Once upon a time", "max_tokens": 8000, "ignore_eos": True}
"""Minutes of work: it can't finish by itself while the test runs."""


@contextmanager
def started(tmp_path: Path, *flags: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A server's address and process; its log must hold no traceback."""
    command = [sys.executable, "-m", "reft_server.cli", "--port", "0", "--store-dir", str(tmp_path / "store")]
    log_path = tmp_path / "log"
    with log_path.open("w") as log:
        process = subprocess.Popen([*command, *flags], stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            assert process.stdout is not None
            found = (re.search(r"ready on (http://[\d.:]+)", line) for line in process.stdout)
            url = next((match[1] for match in found if match), None)
            assert url, log_path.read_text()
            yield url, process
        finally:
            process.kill()
            process.communicate()
    assert "Traceback" not in log_path.read_text()


def data(lines: Iterator[str]) -> Iterator[str]:
    """The events of a stream."""
    return (line.removeprefix("data: ") for line in lines if line.startswith("data: "))


def test_shutdown_ends_requests_that_outlive_the_limit_with_an_error(tmp_path: Path) -> None:
    with started(tmp_path, "--shutdown-timeout-s", "1") as (url, process), ThreadPoolExecutor(1) as executor:
        whole = executor.submit(httpx.post, f"{url}/v1/completions", json=LONG, timeout=60)
        events: list[str] = []
        is_sent = False
        with httpx.stream("POST", f"{url}/v1/completions", json={**LONG, "stream": True}, timeout=60) as response:
            for event in data(response.iter_lines()):
                events.append(event)
                if not is_sent and "reft:num_requests_running 2.0" in httpx.get(f"{url}/metrics").text:
                    process.send_signal(signal.SIGTERM)
                    is_sent = True
        answer = whole.result()
        assert process.wait(timeout=60) == 0
    assert json.loads(events[-1])["error"]["code"] == "engine_unavailable"
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "engine_unavailable"


def test_shutdown_lets_open_streams_finish_and_refuses_new_requests(tmp_path: Path) -> None:
    body = {"prompt": "Once upon a time", "max_tokens": 120, "ignore_eos": True, "stream": True}
    with started(tmp_path, "--shutdown-timeout-s", "60") as (url, process), httpx.Client(base_url=url) as client:
        assert client.get("/ready").status_code == 200
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as response:
            events = data(response.iter_lines())
            seen = [next(events)]
            process.send_signal(signal.SIGTERM)
            while client.get("/ready").status_code == 200:
                pass
            ready, refused = client.get("/ready"), client.post("/v1/completions", json={"prompt": "a"})
            health = client.get("/health")
            seen += events
        assert process.wait(timeout=60) == 0
    assert ready.json()["error"]["code"] == "server_draining"
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "server_draining")
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.headers["connection"] == "close"
    assert health.status_code == 200
    assert seen[-1] == "[DONE]"
    assert json.loads(seen[-2])["choices"][0]["finish_reason"] == "length"


def test_shutdown_of_an_idle_server_does_not_wait(tmp_path: Path) -> None:
    with started(tmp_path, "--shutdown-timeout-s", "600") as (_, process):
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
