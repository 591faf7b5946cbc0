"""A server of OpenAI's streaming API that answers at once and costs little: what a load tester can be measured against.

`python -m benchmarks.stream_server --port 8999 --interval-ms 5` streams a word every 5 ms, `max_tokens` of them.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
from collections.abc import Callable
from typing import Any

Answer = Callable[[dict[str, Any]], list[str]]


def words_of(body: dict[str, Any]) -> list[str]:
    """An answer that depends on the prompt and the intervention alone."""
    asked = json.dumps([body.get("prompt"), body.get("messages"), body.get("intervention")])
    seed = int.from_bytes(hashlib.sha256(asked.encode()).digest()[:4])
    return [f" w{(seed + place) % 1000}" for place in range(body["max_tokens"])]


class StreamServer:
    """Answers completions and chats; `async with` serves on a free port.

    Args:
        interval_s: between two tokens of an answer.
        answer: the pieces of an answer.
        refuse: the status and body of a refusal; None = the request is answered.
        reports_usage: the last event has the counts.
        num_extra_tokens: what `/tokenize` counts besides the words; None = there is no `/tokenize`.

    Attributes:
        bodies: every generation request, in order of arrival.
    """

    def __init__(
        self,
        *,
        interval_s: float = 0.0,
        answer: Answer = words_of,
        refuse: Callable[[dict[str, Any]], tuple[int, dict[str, Any]] | None] = lambda _: None,
        reports_usage: bool = True,
        num_extra_tokens: int | None = 0,
        keeps_bodies: bool = True,
    ) -> None:
        self._interval_s = interval_s
        self._answer = answer
        self._refuse = refuse
        self._reports_usage = reports_usage
        self._num_extra_tokens = num_extra_tokens
        self._keeps_bodies = keeps_bodies
        self._server: asyncio.Server | None = None
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self.bodies: list[dict[str, Any]] = []
        self.url = ""

    async def start(self, port: int = 0) -> None:
        """Listen on this machine; port 0 = any free one."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aenter__(self) -> StreamServer:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close()
            for writer in self._connections.values():
                writer.close()
            await asyncio.gather(*self._connections)
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections[task] = writer
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                fields = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
                content = await reader.readexactly(int(fields.get("content-length", 0)))
                await self._respond(head.split(" ")[1], json.loads(content) if content else {}, writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            del self._connections[task]
            writer.close()

    async def _respond(self, path: str, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        if path == "/v1/models":
            writer.write(_whole(200, {"object": "list", "data": [{"id": "words"}]}))
        elif path == "/tokenize" and self._num_extra_tokens is not None:
            text = body["prompt"] if "prompt" in body else body["messages"][0]["content"]
            count = len(text.split()) + self._num_extra_tokens
            writer.write(_whole(200, {"count": count, "tokens": [0] * count}))
        elif path not in ("/v1/completions", "/v1/chat/completions"):
            writer.write(_whole(404, {"detail": "Not Found"}))
        elif (refusal := self._refuse(body)) is not None:
            writer.write(_whole(*refusal))
        else:
            if self._keeps_bodies:
                self.bodies.append(body)
            await self._stream(body, writer, is_chat="chat" in path)

    async def _stream(self, body: dict[str, Any], writer: asyncio.StreamWriter, *, is_chat: bool) -> None:
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nx-queue-time: 3\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )
        words = self._answer(body)
        for word in words:
            choice = {
                "index": 0,
                "finish_reason": None,
                **({"delta": {"content": word}} if is_chat else {"text": word}),
            }
            writer.write(
                _event({"id": "cmpl-1", "object": "chunk", "created": 1, "model": "words", "choices": [choice]})
            )
            await asyncio.sleep(self._interval_s)
        last = {"index": 0, "finish_reason": "length", **({"delta": {}} if is_chat else {"text": ""})}
        writer.write(_event({"id": "cmpl-1", "choices": [last]}))
        if self._reports_usage:
            num_prompt_tokens = len(str(body.get("prompt") or body.get("messages")).split())
            usage = {"prompt_tokens": num_prompt_tokens, "completion_tokens": len(words)}
            writer.write(_event({"id": "cmpl-1", "choices": [], "usage": usage}))
        writer.write(_chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")


def _whole(status: int, body: dict[str, Any]) -> bytes:
    content = json.dumps(body).encode()
    head = f"HTTP/1.1 {status} Whatever\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    return head.encode() + content


def _event(event: dict[str, Any]) -> bytes:
    return _chunk(b"data: " + json.dumps(event).encode() + b"\n\n")


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


async def main() -> None:
    """Serve until the process is stopped."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8999)
    parser.add_argument("--interval-ms", type=float, default=5.0)
    args = parser.parse_args()
    server = StreamServer(interval_s=args.interval_ms / 1e3, keeps_bodies=False)
    await server.start(args.port)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
