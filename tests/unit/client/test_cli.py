"""The command line as a whole: usage, errors, exit codes, help."""

from __future__ import annotations

import httpx
import pytest

from tests.unit.client.fakes import Run, Server, text_chunk


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
        (["benchmark"], "invalid choice"),
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
