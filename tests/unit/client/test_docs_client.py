"""docs/client.md and docs/bench.md: their Python runs, their commands parse, and they leave nothing out."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

import reft_client
from reft_client import ReftClientError
from reft_client.cli.parser import build_parser

DOCS = Path(__file__).parents[3] / "docs"
PAGE = "\n".join((DOCS / name).read_text(encoding="utf-8") for name in ("client.md", "bench.md"))
PYTHON = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = "".join(re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL)).splitlines()


class CannedAnswers(BaseHTTPRequestHandler):
    """Answers like a server with one word to say."""

    HEAD: ClassVar[dict[str, Any]] = {"id": "c", "created": 1, "model": "m"}
    INFO: ClassVar[dict[str, Any]] = {
        "name": "haiku",
        "version": 1,
        "content_hash": "sha256:ff",
        "size_bytes": 1,
        "created": 1,
        "base_model": "m",
    }

    ALIAS: ClassVar[dict[str, Any]] = {"name": "haiku", "alias": "prod", "version": 1, "content_hash": "sha256:ff"}

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        route = {"task": "support", "revision": 1, "created": 1}
        self._send(json.dumps(self.ALIAS if "/aliases/" in self.path else route), "application/json", 200)

    def do_PATCH(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self._send(json.dumps(self.INFO), "application/json", 200)

    def do_POST(self) -> None:
        if self.path.endswith("/rollback"):
            self.do_PUT()
            return
        raw = self.rfile.read(int(self.headers["content-length"]))
        if self.path.endswith("/compare"):
            side = {**self.HEAD, "choices": [{"index": 0, "text": "hi"}]}
            answer = json.dumps({**self.INFO, "is_same": True, "base": side, "edited": side})
            self._send(answer, "application/json", 200)
            return
        if self.path.startswith("/v1/interventions"):
            self._send(json.dumps(self.INFO), "application/json", 201)
            return
        word = {"message": {"content": "hi"}, "delta": {"content": "hi"}, "text": "hi"}
        answer = json.dumps({**self.HEAD, "choices": [{"index": 0, **word}]})
        if json.loads(raw).get("stream"):
            self._send(f"data: {answer}\n\n" * 50 + "data: [DONE]\n\n", "text/event-stream", 200)
        else:
            self._send(answer, "application/json", 200)

    def _send(self, body: str, content_type: str, status: int) -> None:
        self.send_response(status)
        self.send_header("content-type", content_type)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""


@pytest.fixture
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), CannedAnswers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("block", PYTHON, ids=range(len(PYTHON)))
def test_docs_python_block_runs(
    block: str,
    url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "haiku.safetensors").write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REFT_URL", url)
    exec(compile(block, "docs/client.md", "exec"), {"__name__": "__main__"})  # noqa: S102 the page is ours
    assert ("hi" in capsys.readouterr().out) is ("print(" in block)


@pytest.mark.parametrize("command", COMMANDS)
def test_docs_command_parses(command: str) -> None:
    argv = shlex.split(command.split("|")[-1])
    assert argv[0] == "reft"
    assert callable(build_parser().parse_args(argv[1:]).run)


def test_docs_name_every_error() -> None:
    exported = [getattr(reft_client, name) for name in reft_client.__all__]
    errors = [item.__name__ for item in exported if isinstance(item, type) and issubclass(item, ReftClientError)]
    assert [name for name in errors if f"`{name}`" not in PAGE] == []


def test_docs_name_every_command_and_option() -> None:
    def walk(parser: argparse.ArgumentParser) -> Iterator[str]:
        for action in parser._actions:
            yield from (option for option in action.option_strings if option.startswith("--"))
            if isinstance(action, argparse._SubParsersAction):
                yield from action.choices
                for child in action.choices.values():
                    yield from walk(child)

    missing = {word for word in walk(build_parser()) if not re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", PAGE)}
    # Every command has --help, and the name of an output file is shown by its short form.
    assert missing <= {"--help", "--version", "--output", "--intervention"}


def test_docs_name_every_generation_option() -> None:
    options = {*reft_client.options.CompletionOptions.__annotations__, *reft_client.options.ChatOptions.__annotations__}
    assert [name for name in sorted(options) if f"`{name}`" not in PAGE and f"{name}=" not in PAGE] == []
