"""The command line: what it sends, what it prints where, and its exit codes."""

from __future__ import annotations

import errno
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from reft_client.cli import main
from reft_client.cli.terminal import Terminal, format_size, format_time, printable

INFO = {
    "name": "haiku",
    "version": 3,
    "content_hash": "sha256:ff",
    "size_bytes": 20_480,
    "created": 0,
    "base_model": "m",
    "formulas": ["loreft"],
    "components": ["block_output"],
    "layers": [1, 2],
    "positions": ["f3+l3"],
    "low_rank_dimension": 4,
    "num_parameters": 12_345,
    "description": "answers in \x1b[31mhaiku",
    "license": "MIT",
    "state": "loaded",
}
COMPLETION = {
    "id": "c1",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "text": " Paris", "finish_reason": "stop"}],
}
CHAT = {"id": "c1", "created": 1, "model": "m", "choices": [{"message": {"role": "assistant", "content": "ahoy"}}]}
EVENTS = {"content-type": "text/event-stream"}


class Server:
    """Answers every request with `answers[path]`, and remembers what was asked."""

    def __init__(self) -> None:
        self.answers: dict[str, Callable[[httpx.Request], httpx.Response]] = {}
        self.requests: list[httpx.Request] = []
        self.transport = httpx.MockTransport(self._handle)

    def _handle(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        return self.answers[request.url.path](request)

    def json(self, path: str, answer: dict[str, Any], status: int = 200, **headers: str) -> None:
        self.answers[path] = lambda _: httpx.Response(status, json=answer, headers=headers)

    def events(self, path: str, *events: dict[str, Any] | str) -> None:
        raw = "".join(f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n" for event in events)
        self.answers[path] = lambda _: httpx.Response(200, content=raw, headers=EVENTS)

    def error(self, path: str, status: int, message: str, code: str, **headers: str) -> None:
        self.json(path, {"error": {"message": message, "type": "t", "param": None, "code": code}}, status, **headers)

    @property
    def sent(self) -> dict[str, Any]:
        body: dict[str, Any] = json.loads(self.requests[-1].content)
        return body


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def run(server: Server, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run `reft ...` against `server`: exit code, standard output, standard error."""

    def run_command(*argv: str) -> tuple[int, str, str]:
        try:
            code = main(argv, transport=server.transport)
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run_command


Run = Callable[..., tuple[int, str, str]]


def type_in(monkeypatch: pytest.MonkeyPatch, text: str, *, is_terminal: bool) -> None:
    stdin = io.StringIO(text)
    monkeypatch.setattr(stdin, "isatty", lambda: is_terminal)
    monkeypatch.setattr("sys.stdin", stdin)


def text_chunk(text: str) -> dict[str, Any]:
    return {"id": "c1", "created": 1, "model": "m", "choices": [{"index": 0, "text": text}]}


def chat_chunk(text: str) -> dict[str, Any]:
    return {"id": "c1", "created": 1, "model": "m", "choices": [{"index": 0, "delta": {"content": text}}]}


def test_complete_streams_the_answer_and_ends_the_line(server: Server, run: Run) -> None:
    server.events("/v1/completions", text_chunk(" Pa"), text_chunk("ris"), "[DONE]")
    assert run("complete", "The capital of France is") == (0, " Paris\n", "")
    assert server.sent == {"prompt": "The capital of France is", "stream": True}


def test_complete_sends_every_option(server: Server, run: Run) -> None:
    server.json("/v1/completions", COMPLETION)
    options = "--no-stream --max-tokens 5 --temperature 0 --top-p 0.5 --top-k 3 --seed 7 --stop a --stop b --model m"
    code, out, _ = run("complete", "x", *options.split(), "-i", "pirate@2*-0.5", "-i", "haiku")
    assert (code, out) == (0, " Paris\n")
    assert server.sent == {
        "prompt": "x",
        "max_tokens": 5,
        "temperature": 0,
        "top_p": 0.5,
        "top_k": 3,
        "seed": 7,
        "stop": ["a", "b"],
        "model": "m",
        "intervention": [{"name": "pirate", "version": 2, "scale": -0.5}, {"name": "haiku"}],
    }


@pytest.mark.parametrize("prompt", [["-"], []])
def test_complete_reads_standard_input(
    server: Server, run: Run, monkeypatch: pytest.MonkeyPatch, prompt: list[str]
) -> None:
    type_in(monkeypatch, "from a pipe", is_terminal=False)
    server.events("/v1/completions", "[DONE]")
    assert run("complete", *prompt)[0] == 0
    assert server.sent["prompt"] == "from a pipe"


def test_complete_refuses_standard_input_that_is_not_text(
    server: Server, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe"), encoding="utf-8"))
    assert run("complete", "-") == (2, "", "reft: standard input is not utf-8 text\n")
    assert server.requests == []


def test_complete_without_prompt_on_a_terminal_is_wrong_usage(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    type_in(monkeypatch, "", is_terminal=True)
    code, _, err = run("complete")
    assert code == 2
    assert "give a prompt" in err


def test_complete_json_prints_the_response(server: Server, run: Run) -> None:
    server.json("/v1/completions", {**COMPLETION, "newer": 1})
    code, out, _ = run("complete", "x", "--json")
    assert code == 0
    assert (json.loads(out)["choices"][0]["text"], json.loads(out)["newer"]) == (" Paris", 1)
    assert "stream" not in server.sent


def test_complete_json_stream_prints_one_chunk_a_line(server: Server, run: Run) -> None:
    server.events("/v1/completions", text_chunk("a"), text_chunk("b"), "[DONE]")
    _, out, _ = run("complete", "x", "--json", "--stream")
    assert [json.loads(line)["choices"][0]["text"] for line in out.splitlines()] == ["a", "b"]


def test_chat_answers_one_message(server: Server, run: Run) -> None:
    server.events("/v1/chat/completions", chat_chunk("aho"), chat_chunk("y"), "[DONE]")
    assert run("chat", "hello", "--system", "be brief", "-i", "pirate", "--max-tokens", "9") == (0, "ahoy\n", "")
    assert server.sent == {
        "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}],
        "intervention": [{"name": "pirate"}],
        "max_completion_tokens": 9,
        "stream": True,
    }


@pytest.mark.parametrize(("flags", "expected"), [(["--no-stream"], "ahoy\n"), (["--json"], None)])
def test_chat_answers_without_stream(server: Server, run: Run, flags: list[str], expected: str | None) -> None:
    server.json("/v1/chat/completions", CHAT)
    code, out, _ = run("chat", "hello", *flags)
    assert code == 0
    assert out == expected or json.loads(out)["choices"][0]["message"]["content"] == "ahoy"


def test_chat_json_stream_prints_chunks(server: Server, run: Run) -> None:
    server.events("/v1/chat/completions", chat_chunk("a"), "[DONE]")
    _, out, _ = run("chat", "x", "--json", "--stream")
    assert json.loads(out)["choices"][0]["delta"]["content"] == "a"


def test_chat_reads_a_piped_message(server: Server, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    type_in(monkeypatch, "piped", is_terminal=False)
    server.events("/v1/chat/completions", "[DONE]")
    run("chat")
    assert server.sent["messages"] == [{"role": "user", "content": "piped"}]


def test_conversation_keeps_its_turns_and_its_interventions(
    server: Server, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    type_in(monkeypatch, "one\n\n/use pirate*2\ntwo\n/reset\n/use\nthree\n/exit\n", is_terminal=True)
    server.events("/v1/chat/completions", chat_chunk("ahoy"), "[DONE]")
    code, out, err = run("chat", "--system", "be brief")
    assert code == 0
    assert out.count("ahoy\n") == 3
    assert "Ctrl-D" in err
    bodies = [json.loads(request.content) for request in server.requests]
    system = {"role": "system", "content": "be brief"}
    assert bodies[1]["messages"] == [
        system,
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "ahoy"},
        {"role": "user", "content": "two"},
    ]
    assert bodies[1]["intervention"] == [{"name": "pirate", "scale": 2.0}]
    assert bodies[2]["messages"] == [system, {"role": "user", "content": "three"}]
    assert bodies[2].get("intervention", []) == []


def test_conversation_survives_an_error_and_ends_at_end_of_input(
    server: Server, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    type_in(monkeypatch, "one\n/use a@\n/what\n", is_terminal=True)
    server.error("/v1/chat/completions", 400, "too long", "context_length_exceeded")
    code, _, err = run("chat")
    assert code == 0
    assert "reft: too long\n" in err
    assert "name@version" in err
    assert "/reset" in err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["complete", "x", "--temperature", "9"], "temperature"),
        (["complete", "x", "--max-tokens", "0"], "max_tokens"),
        (["complete", "x", "-i", "a@"], "name@version"),
        (["complete", "x", "-i", "a*b"], "not a number"),
        (["complete", "x", "-i", "a*nan"], "finite"),
        (["complete", "x", "--timeout", "0"], "positive"),
        (["complete", "x", "--timeout", "soon"], "not a number"),
        (["models", "--url", "nowhere"], "not a server's URL"),
        (["interventions", "upload", "missing.safetensors"], "can't read"),
        (["interventions"], "required"),
        ([], "required"),
        (["bench"], "invalid choice"),
    ],
)
def test_wrong_usage_exits_with_2_and_sends_nothing(server: Server, run: Run, argv: list[str], message: str) -> None:
    code, out, err = run(*argv)
    assert (code, out) == (2, "")
    assert message in err
    assert server.requests == []


@pytest.mark.parametrize(
    ("status", "message", "code", "headers", "expected"),
    [
        (400, "top_k is too large", "invalid_request", {}, "reft: top_k is too large\n"),
        (401, "no key", "invalid_api_key", {}, "reft: no key; put your key into REFT_API_KEY\n"),
        (
            404,
            "no intervention named haiku.",
            "intervention_not_found",
            {},
            "reft: no intervention named haiku; `reft interventions list` shows what there is\n",
        ),
        (404, "no model x", "model_not_found", {}, "reft: no model x\n"),
        (500, "it failed", "internal_error", {"x-request-id": "r1"}, "reft: it failed (request id r1)\n"),
        (429, "full", "engine_overloaded", {"retry-after": "999"}, "reft: full; try again in a moment\n"),
    ],
)
def test_refusal_is_one_sentence_on_standard_error(
    server: Server, run: Run, status: int, message: str, code: str, headers: dict[str, str], expected: str
) -> None:
    server.error("/v1/completions", status, message, code, **headers)
    assert run("complete", "x") == (1, "", expected)


def test_server_that_is_down_says_how_to_start_it(server: Server, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    monkeypatch.setattr("time.sleep", lambda _: None)
    server.answers["/health"] = refuse
    code, out, err = run("health", "--url", "http://127.0.0.1:9")
    assert (code, out) == (1, "")
    assert err.startswith("reft: can't reach http://127.0.0.1:9: ")
    assert "`make serve`" in err
    assert err.count("\n") == 1


def test_stream_that_fails_midway_keeps_what_came_and_exits_with_1(server: Server, run: Run) -> None:
    error = {
        "error": {"message": "the step failed", "type": "server_error", "param": None, "code": "engine_step_failed"}
    }
    server.events("/v1/completions", text_chunk("half"), error)
    assert run("complete", "x") == (1, "half\n", "reft: the step failed\n")


def test_interrupt_exits_with_130(server: Server, run: Run) -> None:
    def interrupt(_: httpx.Request) -> httpx.Response:
        raise KeyboardInterrupt

    server.answers["/v1/completions"] = interrupt
    assert run("complete", "x") == (130, "", "\n")


@pytest.mark.parametrize("argv", [["--url", "http://h:1", "health"], ["health", "--url", "http://h:1"]])
def test_server_options_work_before_and_after_the_command(server: Server, run: Run, argv: list[str]) -> None:
    server.json("/health", {"status": "ok"})
    server.json("/ready", {"status": "ready"})
    assert run(*argv) == (0, "http://h:1 is up and takes requests\n", "")
    assert server.requests[0].url.host == "h"


def test_health_fails_when_the_engine_is_not_ready(server: Server, run: Run) -> None:
    server.json("/health", {"status": "ok"})
    server.error("/ready", 503, "the engine is starting", "engine_unavailable")
    assert run("health") == (1, "", "reft: the engine is starting; try again in a moment\n")


def test_models_lists_base_and_interventions(server: Server, run: Run) -> None:
    base = {"id": "m", "created": 1}
    server.json("/v1/models", {"data": [base, {"id": "haiku", "created": 1, "root": "m", "parent": "m"}]})
    assert run("models")[1].splitlines() == ["id\tkind\tbase model", "m\tbase\t", "haiku\tintervention\tm"]


def test_interventions_list_is_a_table_and_json(server: Server, run: Run) -> None:
    server.json("/v1/interventions", {"data": [INFO]})
    _, out, _ = run("interventions", "list")
    row = "haiku\t3\tloreft\t1,2\tf3+l3\t4\t20.0 KiB\t1970-01-01 00:00\tloaded"
    assert out.splitlines()[1:] == [row]
    assert json.loads(run("interventions", "list", "--json")[1])["data"][0]["name"] == "haiku"


def test_interventions_list_of_an_empty_store_says_so(server: Server, run: Run) -> None:
    server.json("/v1/interventions", {"data": []})
    code, out, err = run("interventions", "list")
    assert (code, out) == (0, "")
    assert "upload" in err


def test_interventions_show_has_no_control_characters(server: Server, run: Run) -> None:
    server.json("/v1/interventions/haiku", INFO)
    _, out, _ = run("interventions", "show", "haiku@3")
    assert server.requests[0].url.params["version"] == "3"
    assert "description\tanswers in \ufffd[31mhaiku" in out
    assert "parameters\t12,345" in out


def test_interventions_versions_lists_them(server: Server, run: Run) -> None:
    server.json("/v1/interventions/haiku/versions", {"name": "haiku", "data": [{**INFO, "version": 1}, INFO]})
    assert [line.split("\t")[1] for line in run("interventions", "versions", "haiku")[1].splitlines()[1:]] == ["1", "3"]
    assert len(json.loads(run("interventions", "versions", "haiku", "--json")[1])["data"]) == 2


def test_interventions_upload_shows_the_version_and_its_self_test(server: Server, run: Run, tmp_path: Path) -> None:
    path = tmp_path / "haiku.safetensors"
    path.write_bytes(b"content")
    site = {"layer": 1, "component": "block_output", "num_edited_rows": 6, "delta_norm": 0.5, "residual_norm": 20}
    server.json("/v1/interventions", {**INFO, "self_test": {"sites": [site], "duration_s": 0.1}}, 201)
    code, out, err = run("interventions", "upload", str(path))
    assert code == 0
    assert "self-test\tlayer 1 block_output: 6 rows edited, change 0.5 of norm 20" in out
    assert "-i haiku" in err
    assert server.requests[0].content == b"content"
    assert server.requests[0].url.params["name"] == "haiku"
    assert json.loads(run("interventions", "upload", str(path), "--name", "other", "--json")[1])["version"] == 3
    assert server.requests[1].url.params["name"] == "other"


@pytest.mark.parametrize(("answer", "is_deleted"), [("y\n", True), ("yes\n", True), ("n\n", False), ("\n", False)])
def test_interventions_delete_asks_first(
    server: Server, run: Run, monkeypatch: pytest.MonkeyPatch, answer: str, is_deleted: bool
) -> None:
    type_in(monkeypatch, answer, is_terminal=True)
    server.json("/v1/interventions/haiku", {"name": "haiku", "version": 2, "deleted": True})
    code, out, _ = run("interventions", "delete", "haiku@2")
    assert code == 0
    assert ("deleted haiku@2" in out) is is_deleted
    assert len(server.requests) == int(is_deleted)


def test_interventions_delete_with_yes_does_not_ask(server: Server, run: Run) -> None:
    server.json("/v1/interventions/haiku", {"name": "haiku", "version": None, "deleted": True})
    assert run("interventions", "delete", "haiku", "--yes")[1] == "deleted haiku\n"
    assert server.requests[0].method == "DELETE"


def test_interventions_delete_with_no_one_to_ask_is_wrong_usage(
    server: Server, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    type_in(monkeypatch, "", is_terminal=False)
    code, _, err = run("interventions", "delete", "haiku")
    assert (code, server.requests) == (2, [])
    assert "--yes" in err


def test_interventions_download_saves_and_never_overwrites_unasked(
    server: Server, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    server.json("/v1/interventions/haiku", INFO)
    server.answers["/v1/interventions/haiku/download"] = lambda _: httpx.Response(200, content=b"bytes")
    assert run("interventions", "download", "haiku")[1] == "saved haiku@3 as haiku.safetensors\n"
    assert Path("haiku.safetensors").read_bytes() == b"bytes"
    Path("haiku.safetensors").write_bytes(b"mine")
    code, _, err = run("interventions", "download", "haiku")
    assert (code, Path("haiku.safetensors").read_bytes()) == (2, b"mine")
    assert "--force" in err
    assert run("interventions", "download", "haiku", "--force", "--json")[0] == 0
    assert Path("haiku.safetensors").read_bytes() == b"bytes"


def test_interventions_download_stays_in_the_folder(
    server: Server, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    monkeypatch.chdir(tmp_path / "in")
    server.json("/v1/interventions/haiku", {**INFO, "name": "../evil"})
    server.answers["/v1/interventions/../evil/download"] = lambda _: httpx.Response(200, content=b"bytes")
    assert run("interventions", "download", "haiku")[0] == 0
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["evil.safetensors"]


def test_interventions_download_reports_a_full_disk(
    server: Server, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("reft_client.exchange.FileSink.write", fail)
    server.json("/v1/interventions/haiku", INFO)
    server.answers["/v1/interventions/haiku/download"] = lambda _: httpx.Response(200, content=b"bytes")
    code, _, err = run("interventions", "download", "haiku", "-o", str(tmp_path / "out"))
    assert (code, err) == (1, "reft: a local file: No space left on device\n")
    assert list(tmp_path.iterdir()) == []


class Screen(io.StringIO):
    """A standard stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


def test_terminal_aligns_tables_and_disarms_what_it_prints() -> None:
    screen = Screen()
    terminal = Terminal(io.StringIO(), screen, Screen())
    terminal.write("\x1b[31mred")
    terminal.table(("name", "value"), [("a", "[bold]\x1b[2J"), ("bcdef", "2")])
    text = screen.getvalue()
    assert "\ufffd[31mred" in text
    assert "[bold]\ufffd[2J" in text
    assert "\x1b[31m" not in text
    assert "bcdef  2" in text


def test_answer_for_a_program_is_not_changed() -> None:
    out = io.StringIO()
    Terminal(io.StringIO(), out, io.StringIO()).write("\x1b[31mred")
    assert out.getvalue() == "\x1b[31mred"


@pytest.mark.parametrize(
    "argv",
    [
        ["--help"],
        ["complete", "--help"],
        ["chat", "--help"],
        ["models", "--help"],
        ["health", "--help"],
        *(["interventions", name, "--help"] for name in ("list", "upload", "show", "versions", "delete", "download")),
    ],
)
def test_help_has_examples(run: Run, argv: list[str]) -> None:
    code, out, _ = run(*argv)
    assert code == 0
    assert "examples:\n  " in out
    assert "REFT_URL" in out


@pytest.mark.parametrize(
    ("num_bytes", "expected"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (5 << 20, "5.0 MiB"), (3 << 40, "3072.0 GiB")],
)
def test_format_size_picks_the_unit(num_bytes: int, expected: str) -> None:
    assert format_size(num_bytes) == expected


def test_format_time_is_utc() -> None:
    assert format_time(86_400) == "1970-01-02 00:00"


def test_printable_keeps_text_and_replaces_controls() -> None:
    assert printable("a\tb\nü\x1b]0;x\x07\x9b\x7f") == "a\tb\nü\ufffd]0;x\ufffd\ufffd\ufffd"
