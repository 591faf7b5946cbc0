"""Sends one request and notes what came back; whatever goes wrong ends up in the record."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Mapping
from typing import Any

import httpx

from ..connection import Connection
from .answers import AnswerReader
from .records import RequestRecord

__all__ = ["Sender"]

PATHS: Mapping[str, str] = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}
MAX_MESSAGE = 300


class Sender:
    """One client of the server, for any number of requests at once.

    Args:
        endpoint: `completions` or `chat`.

    Attributes:
        started_s: the moment from which records count, on `time.perf_counter`'s clock.
        num_tokens_seen: pieces of text so far, of all requests.
    """

    def __init__(
        self,
        connection: Connection,
        endpoint: str,
    ) -> None:
        self._path = PATHS[endpoint]
        self.started_s = 0.0
        self._client = httpx.AsyncClient(
            base_url=connection.base_url,
            headers={**connection.headers, "content-type": "application/json"},
            timeout=connection.timeout,
            # Idle connections go before uvicorn drops its end after 5 s.
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=4.0),
            trust_env=connection.trust_env,
        )
        self.num_tokens_seen = 0

    async def close(self) -> None:
        """Close every connection."""
        await self._client.aclose()

    async def warm_up(self) -> None:
        """Make a connection ahead of the first request, which would pay for loading the network's modules."""
        with contextlib.suppress(httpx.HTTPError):
            await self._client.get("/v1/models")

    def now_s(self) -> float:
        """Seconds after the start."""
        return time.perf_counter() - self.started_s

    async def send(self, body: Mapping[str, Any], record: RequestRecord) -> None:
        """Send `body` and read its stream to the end; fills in `record` from `sent_s` on."""
        content = json.dumps(body).encode()
        reader = AnswerReader()
        record.sent_s = self.now_s()
        try:
            async with self._client.stream("POST", self._path, content=content) as response:
                if response.status_code == 200:
                    await self._read(response, reader)
                    record.queue_s = _queue_s(response.headers, reader)
                else:
                    _note_refusal(record, response.status_code, await response.aread())
        except httpx.ConnectError as error:
            _note_error(record, "connect", error)
        except httpx.TimeoutException as error:
            _note_error(record, "timeout", error)
        except httpx.RequestError as error:
            _note_error(record, "connection", error)
        except (ValueError, KeyError, TypeError, AttributeError) as error:  # not an answer of this API
            _note_error(record, "malformed", error)
        record.end_s = self.now_s()
        _note_answer(record, reader)

    async def _read(self, response: httpx.Response, reader: AnswerReader) -> None:
        async for data in response.aiter_bytes():
            before = reader.num_pieces
            reader.feed(data, self.now_s())
            self.num_tokens_seen += reader.num_pieces - before


def _note_answer(record: RequestRecord, reader: AnswerReader) -> None:
    usage = reader.usage or {}
    record.first_s = reader.first_s
    record.gaps_s = reader.gaps_s
    record.text = reader.text
    record.finish_reason = reader.finish_reason
    record.answered_by = reader.answered_by
    record.prompt_tokens = usage.get("prompt_tokens")
    record.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
    record.is_approximate = "completion_tokens" not in usage
    record.completion_tokens = usage.get("completion_tokens", reader.num_pieces)
    if record.error is not None:
        return
    if reader.error is not None:
        record.error = f"stream_{reader.error.get('code') or reader.error.get('type') or 'error'}"
        record.error_message = str(reader.error.get("message", ""))[:MAX_MESSAGE]
    elif not reader.is_done and reader.finish_reason is None:
        record.error = "truncated"
        record.error_message = "the stream ended without a finish reason and without [DONE]"
    elif record.first_s is None:  # an answer of special tokens only has no text: it came when it was complete
        record.first_s = record.end_s


def _note_refusal(record: RequestRecord, status: int, content: bytes) -> None:
    try:
        error = json.loads(content)["error"]
        code, message = error.get("code") or error.get("type"), error.get("message")
    except (ValueError, KeyError, TypeError, AttributeError):
        code, message = None, content[:MAX_MESSAGE].decode(errors="replace")
    record.error = f"http_{status}_{code}" if code and str(code) != str(status) else f"http_{status}"
    record.error_message = str(message)[:MAX_MESSAGE]


def _note_error(record: RequestRecord, name: str, error: Exception) -> None:
    record.error = name
    record.error_message = (str(error) or type(error).__name__)[:MAX_MESSAGE]


def _queue_s(headers: httpx.Headers, reader: AnswerReader) -> float | None:
    """Seconds in the server's queue: our `timing`, `x-queue-time` in ms (TGI, LoRAX), or `usage.queue_time` (Groq)."""
    try:
        if reader.timing is not None:
            seconds = float(reader.timing["queue_s"])
        elif "x-queue-time" in headers:
            seconds = float(headers["x-queue-time"]) / 1e3
        else:
            seconds = float((reader.usage or {})["queue_time"])
    except (KeyError, TypeError, ValueError):
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None
