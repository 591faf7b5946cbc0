"""`reft complete` and `reft chat`."""

from __future__ import annotations

import io
import json

import pytest

from tests.unit.client.fakes import CHAT, COMPLETION, Run, Server, chat_chunk, text_chunk, type_in


def test_complete_streams_the_answer_and_ends_the_line(server: Server, run: Run) -> None:
    server.events("/v1/completions", text_chunk(" Pa"), text_chunk("ris"), "[DONE]")
    assert run("complete", "The capital of France is") == (0, " Paris\n", "")
    assert server.sent == {"prompt": "The capital of France is", "stream": True}


def test_complete_sends_every_option(server: Server, run: Run) -> None:
    server.json("/v1/completions", COMPLETION)
    options = "--no-stream --max-tokens 5 --temperature 0 --top-p 0.5 --top-k 3 --seed 7 --stop a --stop b --model m"
    code, out, _ = run("complete", "x", *options.split(), "-i", "pirate@2*-0.5", "-i", "haiku")
    assert (code, out) == (0, "hi\n")
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


@pytest.mark.parametrize("command", ["complete", "chat"])
def test_source_and_subspaces_belong_to_the_intervention_before_them(server: Server, run: Run, command: str) -> None:
    server.json("/v1/completions", COMPLETION)
    server.json("/v1/chat/completions", CHAT)
    options = ["-i", "a", "--subspaces", "0,3", "-i", "b@2*-1", "--source", "two words", "--subspaces", "task_a, 7"]
    code, _, _ = run(command, "x", "--no-stream", *options)
    assert code == 0
    assert server.sent["intervention"] == [
        {"name": "a", "subspaces": [0, 3]},
        {"name": "b", "version": 2, "scale": -1, "source": "two words", "subspaces": ["task_a", 7]},
    ]


@pytest.mark.parametrize(
    "options",
    [["--source", "x"], ["--subspaces", "0", "-i", "a"], ["-i", "a", "--source", "x", "--source", "y"]],
)
def test_source_and_subspaces_without_their_intervention_are_wrong_usage(run: Run, options: list[str]) -> None:
    code, out, error = run("complete", "x", *options)
    assert (code, out) == (2, "")
    assert "-i NAME" in error or "can't be read" in error


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
    assert (json.loads(out)["choices"][0]["text"], json.loads(out)["newer"]) == ("hi", 1)
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


def test_chat_answers_without_stream(server: Server, run: Run) -> None:
    server.json("/v1/chat/completions", CHAT)
    assert run("chat", "hello", "--no-stream") == (0, "hi\n", "")
    code, out, _ = run("chat", "hello", "--json")
    assert (code, json.loads(out)["choices"][0]["message"]["content"]) == (0, "hi")
    assert "stream" not in server.sent


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
    assert err.splitlines()[1:] == [
        "(the next answer is by pirate*2)",
        "(the conversation is forgotten)",
        "(the next answer is by the base model)",
    ]
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
    assert "reft: there is no command /what\n/use" in err
