"""Reads the stream of one answer as it arrives: as little work per token as possible.

Every event of an OpenAI-compatible server is one `data:` line, so lines are enough; `reft_client.sse` knows the rest
of the standard and costs several times as much.
"""

from __future__ import annotations

import json
from array import array
from typing import Any

__all__ = ["AnswerReader"]


class AnswerReader:
    """Feed it bytes cut anywhere, with the moment at which they came.

    Attributes:
        first_s: the moment of the first piece of text; None = none yet.
        gaps_s: seconds between pieces; 0 for pieces that came together.
        num_pieces: pieces of text.
        usage: the counts that the server reported last.
        timing: reft-serve's `timing` of the answer.
        error: the error object of a stream that failed.
        is_done: `[DONE]` came.
    """

    def __init__(self) -> None:
        self.first_s: float | None = None
        self.last_s = 0.0
        self.gaps_s: array[float] = array("d")
        self.num_pieces = 0
        self.usage: dict[str, Any] | None = None
        self.timing: dict[str, Any] | None = None
        self.error: dict[str, Any] | None = None
        self.finish_reason: str | None = None
        self.answered_by: str | None = None
        self.is_done = False
        self._tail = b""
        self._pieces: list[str] = []

    @property
    def text(self) -> str:
        """The answer so far."""
        return "".join(self._pieces)

    def feed(self, data: bytes, now_s: float) -> None:
        """Take bytes that came at `now_s`.

        Raises:
            ValueError, TypeError, KeyError, AttributeError: an event is not one of this API's.
        """
        lines = (self._tail + data).split(b"\n")
        self._tail = lines.pop()
        for line in lines:
            if line.startswith(b"data:"):
                payload = line[5:].strip()
                if payload == b"[DONE]":
                    self.is_done = True
                elif payload:
                    self._take(json.loads(payload), now_s)

    def _take(self, event: Any, now_s: float) -> None:
        if event.get("error"):
            error = event["error"]
            self.error = error if isinstance(error, dict) else {"message": str(error)}
        if event.get("usage"):
            self.usage = event["usage"]
        if self.answered_by is None and "intervention" in event:
            self.answered_by = ",".join(item["name"] for item in event["intervention"] or ())
        for choice in event.get("choices") or ():
            delta = choice.get("delta")
            if delta is None:
                text = choice.get("text")
            else:
                text = delta.get("content") or delta.get("reasoning_content") or delta.get("reasoning")
            if text:
                self._note(text, now_s)
            self.finish_reason = choice.get("finish_reason") or self.finish_reason
            self.timing = choice.get("timing") or self.timing

    def _note(self, text: str, now_s: float) -> None:
        if self.first_s is None:
            self.first_s = now_s
        else:
            self.gaps_s.append(now_s - self.last_s)
        self.last_s = now_s
        self.num_pieces += 1
        self._pieces.append(text)
