"""A client that goes away frees the engine at once: a real server, real sockets."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import uvicorn
from transformers import PreTrainedTokenizerFast

from reft_interventions import FileLimits, dumps
from reft_interventions.store import InterventionStore
from reft_server.api.app import create_app
from reft_server.api.settings import ApiSettings
from reft_server.engine.pool import InterventionPool
from reft_server.registry import Registry
from tests.fakes.engine import FakeEngine
from tests.intervention_sets import BASE, make_set

DEADLINE_S = 20.0


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.005)


@pytest.fixture
def port(engine: FakeEngine, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Iterator[int]:
    """A uvicorn server in a thread, on a free port."""
    registry = Registry(InterventionStore(tmp_path), InterventionPool(1 << 20), engine, BASE, FileLimits())
    app = create_app(engine, tokenizer, registry, ApiSettings(max_body_bytes=10_000))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        wait_until(lambda: server.started)
        yield listener.getsockname()[1]
        server.should_exit = True
        thread.join(DEADLINE_S)
        assert not thread.is_alive()


def send(port: int, body: dict[str, object]) -> socket.socket:
    data = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(data)}"
    connection = socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S)
    connection.sendall(f"{head}\r\n\r\n".encode() + data)
    return connection


@pytest.mark.parametrize("hold_after", [0, 3])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prompts", [["abcdefgh"], ["abcdefgh", "ijklmnop"]])
def test_disconnect_cancels_every_choice_at_once(
    port: int, engine: FakeEngine, stream: bool, hold_after: int, prompts: list[str]
) -> None:
    engine.hold_after = hold_after
    connection = send(port, {"prompt": prompts, "stream": stream})
    wait_until(lambda: [item.num_tokens for item in engine.streams] == [hold_after] * len(prompts))
    if stream and hold_after:
        assert b"200 OK" in connection.recv(100)
    assert not any(item.is_cancelled for item in engine.streams)
    connection.close()
    wait_until(lambda: all(item.is_cancelled for item in engine.streams))


@pytest.mark.parametrize("stream", [False, True])
def test_disconnect_cancels_a_source_prompt_at_once(port: int, engine: FakeEngine, stream: bool) -> None:
    url = f"http://127.0.0.1:{port}/v1/interventions?name=das"
    request = urllib.request.Request(url, dumps(make_set(formula="dii")), {"content-type": "application/octet-stream"})
    with urllib.request.urlopen(request) as response:
        assert response.status == 201
    engine.hold_after = 0
    intervention = {"name": "das", "source": "Hello"}
    connection = send(port, {"prompt": "abcdefgh", "stream": stream, "intervention": intervention})
    wait_until(lambda: bool(engine.streams))
    assert not engine.streams[0].is_cancelled
    connection.close()
    wait_until(lambda: engine.streams[0].is_cancelled)
    assert [bool(one.captures) for one in engine.submitted] == [True]


def test_disconnect_of_one_client_leaves_its_neighbour_alone(port: int, engine: FakeEngine) -> None:
    engine.hold_after = 2
    leaving, staying = (send(port, {"prompt": "abcdefgh"}) for _ in range(2))
    wait_until(lambda: [item.num_tokens for item in engine.streams] == [2, 2])
    leaving.close()
    wait_until(lambda: any(item.is_cancelled for item in engine.streams))
    assert [item.is_cancelled for item in engine.streams].count(True) == 1
    engine.release()
    with staying:
        answer = http.client.HTTPResponse(staying)
        answer.begin()
        assert b"abcdefgh" in answer.read()
        answer.close()


def test_body_that_is_too_large_gets_its_answer_while_it_is_sent(port: int) -> None:
    connection = socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S)
    total = 3_000_000
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {total}"
    connection.sendall(f"{head}\r\n\r\n".encode())
    for _ in range(total // 100_000):
        connection.sendall(b" " * 100_000)
    answer = connection.recv(4096)
    assert answer.startswith(b"HTTP/1.1 413")
    connection.close()
