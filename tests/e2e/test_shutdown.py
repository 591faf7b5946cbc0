"""SIGTERM while requests run: they get a typed error, not a cut connection, and the log no traceback."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

LONG = {"prompt": "Once upon a time", "max_tokens": 8000, "ignore_eos": True}
"""Minutes of work: it can't finish by itself while the test runs."""


def stream_until_signalled(url: str, process: subprocess.Popen[str]) -> list[str]:
    """Every event of a streamed answer; the signal is sent, once, when both requests run."""
    events: list[str] = []
    is_sent = False
    with httpx.stream("POST", f"{url}/v1/completions", json={**LONG, "stream": True}, timeout=60) as response:
        for line in response.iter_lines():
            if line.startswith("data: "):
                events.append(line.removeprefix("data: "))
            if not is_sent and "reft:num_requests_running 2.0" in httpx.get(f"{url}/metrics").text:
                process.send_signal(signal.SIGTERM)
                is_sent = True
    return events


def test_shutdown_ends_running_requests_with_an_error(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "reft_server.cli", "--port", "0", "--store-dir", str(tmp_path / "store")]
    log_path = tmp_path / "log"
    with log_path.open("w") as log, ThreadPoolExecutor(1) as executor:
        process = subprocess.Popen(
            [*command, "--shutdown-timeout-s", "1"], stdout=subprocess.PIPE, stderr=log, text=True
        )
        try:
            assert process.stdout is not None
            found = (re.search(r"ready on (http://[\d.:]+)", line) for line in process.stdout)
            url = next((match[1] for match in found if match), None)
            assert url, log_path.read_text()
            whole = executor.submit(httpx.post, f"{url}/v1/completions", json=LONG, timeout=60)
            events = stream_until_signalled(url, process)
            response = whole.result()
            status = process.wait(timeout=60)
        finally:
            process.kill()
            process.communicate()
    assert json.loads(events[-1])["error"]["code"] == "engine_unavailable"
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "engine_unavailable"
    assert status == -signal.SIGTERM
    assert "Traceback" not in log_path.read_text()
