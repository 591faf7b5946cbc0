"""The command line as a process, against a server on a socket: pipes, signals, and a stream that never ends."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

# A test run in the background inherits an ignored SIGINT.
COMMAND = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from reft_client.cli import main
sys.exit(main())
"""


class EndlessStream(BaseHTTPRequestHandler):
    """Streams `x` lines until the client goes away, then sets `gone`."""

    gone: threading.Event

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        chunk = {"id": "c", "created": 1, "model": "m", "choices": [{"index": 0, "text": "x" * 80 + "\n"}]}
        try:
            while not self.gone.wait(0.001):
                self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
        except OSError:
            self.gone.set()

    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""


@pytest.fixture
def stream_server() -> Iterator[tuple[str, threading.Event]]:
    gone = threading.Event()
    handler = type("Handler", (EndlessStream,), {"gone": gone})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", gone
        finally:
            gone.set()
            server.shutdown()
            thread.join()


@contextmanager
def reft(*argv: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", COMMAND, *argv]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def test_reader_that_goes_away_ends_the_command_quietly(stream_server: tuple[str, threading.Event]) -> None:
    url, gone = stream_server
    with reft("complete", "hi", "--url", url) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "x" * 80 + "\n"
        process.stdout.close()
        assert process.wait(30) == 141
        assert process.stderr.read() == ""
    assert gone.wait(30)


def test_interrupt_ends_the_command_and_the_connection(stream_server: tuple[str, threading.Event]) -> None:
    url, gone = stream_server
    with reft("complete", "hi", "--url", url) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "x" * 80 + "\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
        assert (process.returncode, err.strip()) == (130, "")
    assert gone.wait(30)


def test_command_without_a_server_says_what_to_do() -> None:
    with reft("models", "--url", "http://127.0.0.1:1") as process:
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (1, "")
    assert err.startswith("reft: can't reach http://127.0.0.1:1")
    assert "make serve" in err
    assert "Traceback" not in err
