"""Clients that are too slow, on real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn

from reft_server.connections import ConnectionLimits, HttpConfig

QUICK = ConnectionLimits(max_connections=2, header_timeout_s=0.15, write_timeout_s=0.15)
REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


async def app(scope: Any, receive: Any, send: Any) -> None:
    """`/large` sends more than any buffer holds; `/early` answers before it has read the body; others say ok."""
    if scope["path"] != "/early":
        await receive()
    body = b"x" * (32 << 20) if scope["path"] == "/large" else b"ok"
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def serving() -> AsyncGenerator[tuple[uvicorn.Server, int]]:
    """A server on a free port."""
    server = uvicorn.Server(HttpConfig(app, QUICK, port=0, log_config=None, lifespan="off", access_log=False))
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        yield server, server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        await task


async def _end_of(reader: asyncio.StreamReader) -> bytes:
    """What comes until the server ends the connection, in whatever way."""
    try:
        return await asyncio.wait_for(reader.read(-1), 10)
    except ConnectionResetError:
        return b""


@pytest.mark.parametrize("start", [b"", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: x\r\nX-A: "])
def test_request_whose_head_never_ends_is_closed(start: bytes) -> None:
    async def check() -> bytes:
        async with serving() as (_, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(start)
            try:
                return await _end_of(reader)
            finally:
                writer.close()

    assert asyncio.run(check()) == b""


def test_head_that_trickles_is_closed_all_the_same() -> None:
    async def check() -> int:
        async with serving() as (_, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET / HTTP/1.1\r\n")
            num_sent = 0
            while not reader.at_eof() and reader.exception() is None and num_sent < 1000:
                writer.write(b"x")
                num_sent += 1
                await asyncio.sleep(0.01)
            writer.close()
            return num_sent

    assert asyncio.run(check()) < 1000


def test_second_request_gets_its_own_deadline_and_a_pause_between_them_none() -> None:
    async def check() -> list[bytes]:
        async with serving() as (_, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            answers = []
            for _ in range(2):
                writer.write(REQUEST)
                answers.append(await reader.readuntil(b"ok"))
                await asyncio.sleep(2 * QUICK.header_timeout_s)
            writer.write(b"GET")
            answers.append(await _end_of(reader))
            writer.close()
            return answers

    first, second, last = asyncio.run(check())
    assert first.startswith(b"HTTP/1.1 200")
    assert second.startswith(b"HTTP/1.1 200")
    assert last == b""


def test_body_that_goes_on_after_the_answer_is_cut() -> None:
    async def check() -> bytes:
        async with serving() as (_, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\nx")
            answer = await reader.readuntil(b"ok")
            for _ in range(1000):
                if reader.at_eof() or reader.exception() is not None:
                    break
                writer.write(b"x")
                await asyncio.sleep(0.01)
            else:
                pytest.fail("the connection is still open")
            writer.close()
            return answer

    assert asyncio.run(check()).startswith(b"HTTP/1.1 200")


def test_client_that_does_not_read_is_cut() -> None:
    async def check() -> int:
        async with serving() as (server, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
            writer.write(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
            async with asyncio.timeout(10):
                while not server.server_state.connections:
                    await asyncio.sleep(0.01)
                while server.server_state.connections:
                    await asyncio.sleep(0.01)
            writer.close()
            del reader
            return len(server.server_state.connections)

    assert asyncio.run(check()) == 0


def test_connection_beyond_the_limit_is_closed_and_the_others_go_on() -> None:
    async def check() -> tuple[bytes, bytes]:
        async with serving() as (server, port):
            held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
            async with asyncio.timeout(10):
                while len(server.server_state.connections) < 2:
                    await asyncio.sleep(0.001)
            extra_reader, extra_writer = await asyncio.open_connection("127.0.0.1", port)
            refused = await _end_of(extra_reader)
            held[0][1].write(REQUEST)
            answer = await held[0][0].readuntil(b"ok")
            for writer in (extra_writer, held[0][1], held[1][1]):
                writer.close()
            return refused, answer

    refused, answer = asyncio.run(check())
    assert refused == b""
    assert answer.startswith(b"HTTP/1.1 200")
