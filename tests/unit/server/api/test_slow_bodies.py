"""Bodies that come too slowly, straight over ASGI."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient

MakeClient = Callable[..., TestClient]


def send_slowly(client: TestClient, path: str, pieces: list[bytes], pause_s: float, *, is_complete: bool) -> Any:
    """The status, headers and JSON of the answer to a body in pieces; one that is not complete stops for ever."""
    sent: list[dict[str, Any]] = []
    waiting = list(pieces)

    async def receive() -> dict[str, Any]:
        if not waiting:
            await asyncio.Event().wait()
        await asyncio.sleep(pause_s)
        return {"type": "http.request", "body": waiting.pop(0), "more_body": bool(waiting) or not is_complete}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "query_string": b"name=style",
        "headers": [(b"content-type", b"application/json")],
    }
    asyncio.run(client.app(scope, receive, send))  # type: ignore[arg-type]
    return sent[0]["status"], dict(sent[0]["headers"]), json.loads(b"".join(one.get("body", b"") for one in sent[1:]))


@pytest.mark.parametrize("path", ["/tokenize", "/v1/interventions"])
@pytest.mark.parametrize("pieces", [[], [b"{"], [b"{", b'"']])
def test_body_that_stops_is_refused_and_its_connection_closed(
    make_client: MakeClient, path: str, pieces: list[bytes]
) -> None:
    client = make_client(body_timeout_s=0.05)
    status, headers, answer = send_slowly(client, path, pieces, 0.0, is_complete=False)
    assert (status, answer["error"]["code"]) == (408, "request_body_timeout")
    assert headers[b"connection"] == b"close"


def test_body_that_trickles_is_refused_though_it_never_stops(make_client: MakeClient) -> None:
    client = make_client(body_timeout_s=0.1)
    status, _, answer = send_slowly(client, "/tokenize", [b" "] * 1000, 0.01, is_complete=True)
    assert (status, answer["error"]["code"]) == (408, "request_body_timeout")


def test_slow_body_within_its_time_is_read(make_client: MakeClient) -> None:
    client = make_client(body_timeout_s=10.0)
    pieces = [b'{"prompt"', b': "ab"}']
    assert send_slowly(client, "/tokenize", pieces, 0.01, is_complete=True)[2]["count"] == 2
