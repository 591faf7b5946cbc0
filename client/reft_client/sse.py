"""A parser for server-sent events: bytes in, events out, nothing else.

Source: WHATWG HTML, section 9.2.6, "Interpreting an event stream".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from .errors import APIResponseValidationError

__all__ = ["EventParser", "ServerSentEvent"]

_LINE_END = re.compile(rb"\r\n|\n|\r")
_BOM = "\ufeff"
MAX_EVENT_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class ServerSentEvent:
    """One event; several `data` lines are joined by a newline."""

    data: str
    event: str = "message"
    id: str = ""


class EventParser:
    """Feed it bytes cut anywhere; the events are the same for every way of cutting.

    Raises:
        APIResponseValidationError: an event larger than `MAX_EVENT_BYTES`.
    """

    def __init__(self) -> None:
        self._pending: list[bytes] = []  # pieces of the line that is not complete yet
        self._data: list[str] = []
        self._event = ""
        self._last_id = ""
        self._num_bytes = 0
        self._is_first_line = True
        self._ended_with_cr = False

    def feed(self, data: bytes) -> Iterator[ServerSentEvent]:
        """Yield the events that `data` completes. Exhaust it before the next call."""
        if self._ended_with_cr and data.startswith(b"\n"):  # the second half of a CRLF cut in two
            data = data[1:]
            self._ended_with_cr = False
        if not data:
            return
        self._ended_with_cr = data.endswith(b"\r")
        start = 0
        for match in _LINE_END.finditer(data):
            self._keep(data[start : match.start()])
            start = match.end()
            line = b"".join(self._pending)
            self._pending.clear()
            event = self._take_line(line.decode("utf-8", errors="replace"))
            if event is not None:
                yield event
        self._keep(data[start:])

    def _keep(self, piece: bytes) -> None:
        self._num_bytes += len(piece)
        if self._num_bytes > MAX_EVENT_BYTES:
            raise APIResponseValidationError(f"the server sent an event of more than {MAX_EVENT_BYTES} bytes")
        if piece:
            self._pending.append(piece)

    def _take_line(self, line: str) -> ServerSentEvent | None:
        if self._is_first_line:
            line = line.removeprefix(_BOM)
            self._is_first_line = False
        if not line:
            return self._dispatch()
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._event = value
        elif name == "id" and "\0" not in value:
            self._last_id = value
        return None  # a comment has an empty name; unknown fields are skipped, as the standard says

    def _dispatch(self) -> ServerSentEvent | None:
        data, event = self._data, self._event
        self._data, self._event, self._num_bytes = [], "", 0
        if not data:
            return None
        return ServerSentEvent(data="\n".join(data), event=event or "message", id=self._last_id)
